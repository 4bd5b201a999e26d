"""`edgectl layers run`: answers from a model laid over several devices, checked against one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import click

from edged import pictures
from edged.cli.layers_model import Devices, overlap_options, source_of, variant_of
from edged.cli.layers_ran import held_by, plotted, print_answers, print_plotted, print_ran
from edged.cli.output import progress_bar
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import ConfigError
from edged.layers.limits import MOST_SEQUENCES
from edged.layers.schedule import Mode
from edged.layers.spec import Transport

if TYPE_CHECKING:
    from edged.layers.assembly import Assembly
    from edged.layers.meter import Meter
    from edged.layers.trial import PipelineSession, Ran

PROMPTS = (
    "Once upon a time, in a village by the sea, there lived",
    "Here is a list of the days of the week and what people do on each of them:\n",
    "The capital of France is",
    "Water boils at",
    "The router has three lights. The first light shows that the power is on. The second",
    "A",
    "To bake bread you need flour, water, salt and yeast. First",
    "The three primary colours are red,",
)
"""Of unlike length, for a run that names none."""
FAILED = 1


@click.command(
    epilog=example(
        "edgectl layers run --model smollm2-135m-instruct:q4_1 --stages 2 --check",
        'edgectl layers run --model ./model --devices cuda:0,cuda:1 --prompt "Once upon a time"',
    )
)
@click.option(
    "--model", type=TEXT, required=True, metavar="MODEL", help="As for `edgectl layers plan`, or random:..."
)
@click.option("--stages", type=click.IntRange(1, 64), help="So many stages on the CPU.")
@click.option("--devices", type=TEXT, metavar="NAME,...", help="One stage each, in the order of the layers.")
@click.option("--layers", type=TEXT, metavar="COUNT,...", help="Layers of each device.")
@click.option("--even", is_flag=True, help="Equal numbers of layers  [with --stages].")
@click.option(
    "--weighted",
    is_flag=True,
    help="By estimated time; a device that does not help is left out  [with --devices].",
)
@click.option(
    "--micro-batches", type=click.IntRange(1, MOST_SEQUENCES), help="Under way at a time  [one a stage]."
)
@click.option("--max-sequences", type=click.IntRange(1, MOST_SEQUENCES), default=8, show_default=True)
@click.option("--context-tokens", type=click.IntRange(16), default=512, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=16, show_default=True, help="Of each answer.")
@click.option("--prompt", "prompts", type=TEXT, multiple=True, help="Repeatable  [eight of unlike length].")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="ring", show_default=True)
@click.option(
    "--transport", type=click.Choice(["auto", *get_args(Transport)]), default="auto", show_default=True
)
@overlap_options
@click.option(
    "--check",
    is_flag=True,
    help="In float32, compare with the first device alone; exit code 1 when a token differs.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write FILE.png and FILE.svg.")
@json_option
@with_session
def run(
    session: Session,
    /,
    model: str,
    prompts: tuple[str, ...],
    tokens: int,
    check: bool,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Answer prompts with a model laid over several devices, without the daemon."""
    devices = Devices.of(*(options.pop(each) for each in ("stages", "devices", "layers", "even", "weighted")))
    settings = {key: value for key, value in options.items() if value is not None} | devices.options()
    settings["state_dir"] = str(session.config.daemon.state_dir)
    if plot:
        pictures.check(plot)
    source = source_of(session, model)
    texts = prompts or PROMPTS
    if check:
        settings["dtype"] = "float32"  # in bfloat16 the shape of a batch can turn a token
    many = _answers(source, settings, texts, tokens, timeline=plot is not None)
    alone = {"devices": list(devices.names[:1]), "micro_batches": many.ran.room, "dtype": "float32"}
    shape = {key: settings[key] for key in ("max_sequences", "context_tokens")}
    single = _answers(source, shape | alone, texts, tokens) if check else None
    differing = _differing(many.ran.answers, single.ran.answers) if single else None
    if not as_json:
        _print(texts, many, differing)
    print_plotted(
        lambda: plotted(many.ran, many.meter, plot) if plot else [],
        partial(_told, texts, many, differing) if as_json else None,
    )
    return FAILED if differing else 0


class Answered(NamedTuple):
    """A run, by what, and its answers as text."""

    ran: Ran
    assembly: Assembly
    meter: Meter
    held: list[dict[str, Any]]
    """By each stage."""
    texts: list[str]


def _answers(
    source: str, settings: dict[str, Any], texts: Sequence[str], tokens: int, *, timeline: bool = False
) -> Answered:
    from edged.plugins import load

    backend = load("torch_pipeline")  # first: it says what to install where torch is missing
    from edged.layers import trial

    variant = variant_of(source)
    session = cast("PipelineSession", backend.open(variant, backend.devices()[0], settings))
    try:
        if timeline:
            session.meter.keep_timeline()
        prompts = [session.vocabulary.encode(text, special=False) for text in texts]
        if not all(prompts):
            raise ConfigError("a prompt has no tokens; write some text", param="--prompt")
        with progress_bar() as bar:
            task = bar.add_task("tokens", total=tokens * len(prompts))
            ran = trial.run(session, prompts, tokens, lambda done, _: bar.update(task, completed=done))
        said = [session.vocabulary.decode(answer) for answer in ran.answers]
        held = held_by(session.assembly, session.loaded)
        return Answered(ran, session.assembly, session.meter, held, said)
    finally:
        session.close()


def _told(
    texts: Sequence[str], many: Answered, differing: list[dict[str, int]] | None, files: Sequence[Path]
) -> dict[str, Any]:
    verdict = {} if differing is None else {"identical": not differing, "differing": differing}
    return {
        "run": many.ran,
        "devices": [stage["device"] for stage in many.held],
        "stages": many.held,
        "left_out": many.assembly.left_out,
        "prompts": texts,
        "texts": many.texts,
        "files": [str(file) for file in files],
        **verdict,
    }


def _print(texts: Sequence[str], many: Answered, differing: list[dict[str, int]] | None) -> None:
    print_answers(texts, many.texts)
    print_ran(many.ran, many.held, many.assembly)
    if differing is not None:
        click.echo(f"one device gives {_verdict(differing, len(texts))}")


def _differing(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    """Name the prompts whose answers differ, and the first token at which they do."""
    found = []
    for prompt, (left, right) in enumerate(zip(one, other, strict=True)):
        if tuple(left) != tuple(right):
            pairs = zip(left, right, strict=False)
            at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
            found.append({"prompt": prompt, "token": at})
    return found


def _verdict(differing: Sequence[dict[str, int]], prompts: int) -> str:
    if not differing:
        return "the same tokens" + (f" for all {prompts} prompts" if prompts > 1 else "")
    places = ", ".join(f"prompt {each['prompt']} from token {each['token']}" for each in differing)
    return f"other tokens for {len(differing)} of {prompts} prompts: {places}"
