"""`edgectl layers plan`: who would hold which layers, and what that buys; works without a daemon or torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Literal, NamedTuple, get_args

import click
import msgspec

from edged.cli.layers_devices import DEVICES
from edged.cli.layers_model import source_of
from edged.cli.layers_table import UNNAMED, print_layer_plan
from edged.cli.output import print_json, visible
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import BadRequest, ConfigError
from edged.layers.limits import CONTEXT_TOKENS, MOST_SEQUENCES
from edged.layers.planning import plan as planner
from edged.layers.planning.conditions import Planned, doubts
from edged.layers.planning.costs import UNIT, LayerCosts, MeasuredCosts, Sizes, estimated, sizes_of
from edged.layers.planning.options import options_of
from edged.layers.planning.partition import MAX_CANDIDATES
from edged.layers.planning.plan import Candidate, Work
from edged.layers.planning.prospects import words
from edged.layers.schedule import Mode
from edged.layers.share import Architecture, DType, auto_dtype

TOKENS = 128
MOST_LAYERS = 1024
Number = click.IntRange(1, 1 << 20)
Sequences = click.IntRange(1, MOST_SEQUENCES)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    model: str | None
    layers: int | None
    stages: int | None
    devices: tuple[Candidate, ...] | None
    micro_batches: int | None
    micro_batch: int
    context_tokens: int | None
    tokens: int
    requests: int | None
    dtype: DType | Literal["auto"]
    mode: Mode
    even: bool
    weighted: bool

    @property
    def kind(self) -> planner.Kind:
        """How layers are shared out; even where nothing is known of the devices."""
        if self.even or self.weighted:
            return "even" if self.even else "weighted"
        return "weighted" if self.devices else "even"


class Model(NamedTuple):
    """What is known of a model."""

    sizes: Sizes
    context_tokens: int
    """Of a sequence."""
    architecture: Architecture | None


@click.command(
    epilog=example(
        "edgectl layers plan --layers 30 --stages 4",
        "edgectl layers plan --model smollm2-135m-instruct:q4_1 --devices cuda:0,cuda:1 --micro-batch 8",
        "edgectl layers plan --model ./model.gguf --devices cpu=1@16GiB,cuda:0=4@8GiB --requests 4",
    )
)
@click.option(
    "--model", type=TEXT, metavar="MODEL", help="NAME[:VARIANT], a .gguf file or a folder of safetensors."
)
@click.option(
    "--layers",
    type=click.IntRange(1, MOST_LAYERS),
    help="Instead of a model: so many layers that are all alike.",
)
@click.option("--stages", type=click.IntRange(1, MAX_CANDIDATES), help="So many devices that are all alike.")
@click.option(
    "--devices",
    type=DEVICES,
    metavar="NAME[=SPEED][@SIZE],...",
    help="Devices in the order of the layers; relative speed, and memory for weights and KV cache.",
)
@click.option("--micro-batches", type=Sequences, help="Under way at a time  [one a device].")
@click.option("--micro-batch", type=Sequences, default=1, show_default=True, help="Sequences of each.")
@click.option(
    "--context-tokens", type=Number, help=f"Prompt and answer  [the model's, at most {CONTEXT_TOKENS}]."
)
@click.option("--tokens", type=Number, default=TOKENS, show_default=True, help="Of these: of the answer.")
@click.option("--requests", type=Number, help="Asked at the same time  [all that there is room for].")
@click.option(
    "--dtype",
    type=click.Choice(["auto", *get_args(DType)]),
    default="auto",
    show_default=True,
    help="Of weights and KV cache: bfloat16 on GPUs alone, else float32.",
)
@click.option(
    "--mode", type=click.Choice(get_args(Mode)), default="ring", show_default=True, help="Order of the work."
)
@click.option("--even", is_flag=True, help="Equal numbers of layers  [with --stages].")
@click.option("--weighted", is_flag=True, help="By cost and speed  [with --devices].")
@click.option(
    "--costs",
    "file",
    type=click.File("rb"),
    help="Measured seconds, as `edgectl layers measure` saves them.",
)
@json_option
@with_session
def plan(session: Session, /, file: IO[bytes] | None, as_json: bool, **options: object) -> None:
    """Show which device would hold which layers, and what the split buys for the requests at hand.

    Seconds come from --costs, or are estimated from bytes and memory bandwidth. A device that does not help
    is left out, unless the split is --even.
    """
    asked = Asked(**options)  # type: ignore[arg-type] # click gives them by these names
    candidates = _candidates(asked)
    model = _model(session, asked)
    work = _work(asked, len(candidates), model.context_tokens)
    costs, warnings = (_estimated(model.sizes, work), ()) if file is None else _costs(file, asked, model)
    made = planner.plan(model.sizes, costs, candidates, work, asked.kind)
    said = words(made)
    if as_json:
        named, refused = options_of(made) if asked.devices else ({}, {})
        plain = {"model": asked.model, **msgspec.to_builtins(made), "words": said, "warnings": warnings}
        print_json(plain | {"options": named, "not_possible": refused})
        return
    print_layer_plan(made, said)
    for warning in warnings:
        click.echo(f"warning: {visible(warning)}", err=True)


def _candidates(asked: Asked) -> Sequence[Candidate]:
    """Devices, and what is asked of them; `UsageError` for what contradicts itself."""
    if (asked.model is None) == (asked.layers is None):
        raise click.UsageError("give either --model MODEL or --layers NUMBER")
    if (asked.stages is None) == (asked.devices is None):
        raise click.UsageError("give either --stages NUMBER or --devices NAME,...")
    if asked.even and asked.weighted:
        raise click.UsageError("give either --even or --weighted")
    if asked.devices is None:
        return [Candidate(id=f"{UNNAMED}{number}") for number in range(asked.stages or 0)]
    if asked.model is None and any(each.memory_bytes for each in asked.devices):
        raise click.UsageError("--layers says nothing of sizes; leave @SIZE out, or give --model MODEL")
    return asked.devices


def _model(session: Session, asked: Asked) -> Model:
    """What the parts weigh, and how many tokens a sequence can have; `ConfigError` for what is no model."""
    if asked.model is None:
        return Model(Sizes(layers=asked.layers or 0), _context(asked, None), None)
    architecture = _architecture(session, asked.model)
    context_tokens = _context(asked, architecture)
    return Model(sizes_of(architecture, _dtype(asked), context_tokens), context_tokens, architecture)


def _dtype(asked: Asked) -> DType:
    """What the engine would take; unnamed devices are planned as CPUs are."""
    if asked.dtype != "auto":
        return asked.dtype
    return auto_dtype([each.id for each in asked.devices]) if asked.devices else "float32"


def _architecture(session: Session, model: str) -> Architecture:
    from edged.layers.weights.checkpoint import describe

    return describe(source_of(session, model))


def _context(asked: Asked, architecture: Architecture | None) -> int:
    most = architecture.context_tokens if architecture else asked.context_tokens or CONTEXT_TOKENS
    wanted = asked.context_tokens or min(most, CONTEXT_TOKENS)
    if wanted > most:
        raise ConfigError(
            f"context_tokens = {wanted} exceeds the model's {most}; take at most {most}",
            param="context_tokens",
        )
    if asked.tokens >= wanted:
        raise ConfigError(
            f"tokens = {asked.tokens} leaves no room for a prompt in context_tokens = {wanted}; take less",
            param="tokens",
        )
    return wanted


def _work(asked: Asked, devices: int, context_tokens: int) -> Work:
    micro_batches = asked.micro_batches or (1 if asked.mode == "naive" else devices)
    if micro_batches * asked.micro_batch > MOST_SEQUENCES:
        raise ConfigError(
            f"{micro_batches} micro-batches of {asked.micro_batch} are {micro_batches * asked.micro_batch} "
            f"sequences; a generator takes at most {MOST_SEQUENCES}",
            param="micro_batch",
        )
    return Work(
        mode=asked.mode,
        micro_batches=micro_batches,
        micro_batch=asked.micro_batch,
        prompt_tokens=context_tokens - asked.tokens,
        tokens=asked.tokens,
        requests=asked.requests,
    )


def _estimated(sizes: Sizes, work: Work) -> LayerCosts:
    return estimated(sizes, work.micro_batch) if sizes.layer_bytes else UNIT


def _costs(file: IO[bytes], asked: Asked, model: Model) -> tuple[LayerCosts, Sequence[str]]:
    """Read measured costs, with what speaks against them; `ConfigError` for those of another model."""
    try:
        read = msgspec.json.decode(file.read(), type=MeasuredCosts)
    except msgspec.DecodeError as error:
        raise BadRequest(f"{visible(file.name)} holds no costs of layers: {error}", param="costs") from error
    planned = Planned(
        model=asked.model or "",
        architecture=model.architecture,
        dtype=model.sizes.dtype,
        micro_batch=asked.micro_batch,
        context_tokens=model.context_tokens,
        candidates=asked.devices or (),
    )
    return read, doubts(read, planned)
