"""`edgectl layers plan`: who would hold which layers, and what that buys; works without a daemon or torch."""

from __future__ import annotations

import re
from typing import IO, get_args

import click
import msgspec

from edged.cli.layers_model import source_of
from edged.cli.layers_table import UNNAMED, print_layer_plan
from edged.cli.output import print_json, visible
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import BadRequest, ConfigError
from edged.layers.planning import plan as planner
from edged.layers.planning.costs import UNIT, LayerCosts, Sizes, estimated, sizes_of
from edged.layers.planning.plan import Candidate, Kind, Work
from edged.layers.planning.prospects import words
from edged.layers.schedule import Mode
from edged.layers.share import Architecture, DType

CONTEXT_TOKENS, TOKENS = 2048, 128
GIB = 1 << 30
_DEVICE = re.compile(
    r"(?P<id>[^=@]+)(?:=(?P<speed>\d+(?:\.\d+)?))?(?:@(?P<memory>\d+(?:\.\d+)?)(?P<unit>MiB|GiB))?"
)
Number = click.IntRange(1, 1 << 20)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    model: str | None
    layers: int | None
    stages: int | None
    devices: str | None
    micro_batches: int | None
    micro_batch: int
    context_tokens: int | None
    tokens: int
    requests: int | None
    dtype: DType
    mode: Mode
    kind: Kind | None


@click.command(
    epilog=example(
        "edgectl layers plan --layers 30 --stages 4",
        "edgectl layers plan --model smollm2-135m-instruct:q4_1 --devices cuda:0,cuda:1 --micro-batch 8",
        "edgectl layers plan --model ./model.gguf --devices cuda:0=4@8GiB,cpu=1@16GiB --requests 4",
    )
)
@click.option(
    "--model", type=TEXT, metavar="MODEL", help="NAME[:VARIANT], a .gguf file or a folder of safetensors."
)
@click.option("--layers", type=Number, help="Instead of a model: so many layers that are all alike.")
@click.option("--stages", type=Number, help="So many devices that are all alike.")
@click.option(
    "--devices",
    type=TEXT,
    metavar="NAME[=SPEED][@SIZE],...",
    help="Devices in the order of the layers; relative speed, and memory for weights and KV cache.",
)
@click.option("--micro-batches", type=Number, help="Under way at a time  [one a device].")
@click.option("--micro-batch", type=Number, default=1, show_default=True, help="Sequences of each.")
@click.option(
    "--context-tokens", type=Number, help=f"Prompt and answer  [the model's, at most {CONTEXT_TOKENS}]."
)
@click.option("--tokens", type=Number, default=TOKENS, show_default=True, help="Of these: of the answer.")
@click.option("--requests", type=Number, help="Asked at the same time  [all that there is room for].")
@click.option(
    "--dtype", type=click.Choice(get_args(DType)), default="float32", show_default=True, help="Of weights."
)
@click.option(
    "--mode", type=click.Choice(get_args(Mode)), default="ring", show_default=True, help="Order of the work."
)
@click.option("--even", "kind", flag_value="even", help="Equal numbers of layers  [with --stages].")
@click.option("--weighted", "kind", flag_value="weighted", help="By cost and speed  [with --devices].")
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
    asked = msgspec.convert(options, Asked)
    sizes, most_tokens = _sizes(session, asked)
    candidates = _candidates(asked)
    work = _work(asked, len(candidates), most_tokens)
    kind = asked.kind or ("weighted" if asked.devices else "even")
    made = planner.plan(sizes, _costs(sizes, work, file), candidates, work, kind)
    said = words(made)
    if as_json:
        print_json({**msgspec.to_builtins(made), "words": said})
        return
    print_layer_plan(made, said)


def _sizes(session: Session, asked: Asked) -> tuple[Sizes, int]:
    """What the parts weigh, and how many tokens a sequence can have; `ConfigError` for what is no model."""
    if (asked.model is None) == (asked.layers is None):
        raise click.UsageError("give either --model MODEL or --layers NUMBER")
    if asked.model is None:
        return Sizes(layers=asked.layers or 0), _context(asked, None)
    architecture = _architecture(session, asked.model)
    context_tokens = _context(asked, architecture)
    return sizes_of(architecture, asked.dtype, context_tokens), context_tokens


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


def _candidates(asked: Asked) -> list[Candidate]:
    if (asked.stages is None) == (asked.devices is None):
        raise click.UsageError("give either --stages NUMBER or --devices NAME,...")
    if asked.devices is None:
        return [Candidate(id=f"{UNNAMED}{number}") for number in range(asked.stages or 0)]
    return [_candidate(part.strip()) for part in asked.devices.split(",")]


def _candidate(text: str) -> Candidate:
    """Read `cuda:0=4@24GiB`."""
    found = _DEVICE.fullmatch(text)
    if found is None or float(found["speed"] or 1) <= 0:
        raise BadRequest(
            f"{text!r} is no device: write NAME, NAME=SPEED, NAME@SIZE or NAME=SPEED@SIZE, as in "
            "cuda:0=4@24GiB",
            param="devices",
        )
    unit = GIB if found["unit"] == "GiB" else 1 << 20
    return Candidate(
        id=found["id"],
        speed=float(found["speed"] or 1),
        memory_bytes=int(float(found["memory"] or 0) * unit),
    )


def _work(asked: Asked, devices: int, context_tokens: int) -> Work:
    return Work(
        mode=asked.mode,
        micro_batches=asked.micro_batches or (1 if asked.mode == "naive" else devices),
        micro_batch=asked.micro_batch,
        prompt_tokens=context_tokens - asked.tokens,
        tokens=asked.tokens,
        requests=asked.requests,
    )


def _costs(sizes: Sizes, work: Work, file: IO[bytes] | None) -> LayerCosts:
    if file is None:
        return estimated(sizes, work.micro_batch) if sizes.layer_bytes else UNIT
    try:
        return msgspec.json.decode(file.read(), type=LayerCosts)
    except msgspec.DecodeError as error:
        raise BadRequest(f"{visible(file.name)} holds no costs of layers: {error}", param="costs") from error
