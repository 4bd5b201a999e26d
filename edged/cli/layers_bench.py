"""`edgectl layers bench`: measured bubble beside its formula, and throughput at constant micro-batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from edged import pictures
from edged.cli.durations import NEEDS_UNIT
from edged.cli.layers_model import source_of, variant_of
from edged.cli.layers_ran import plotted, print_plotted
from edged.cli.layers_run import PROMPTS
from edged.cli.output import print_table, progress_bar
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import ConfigError
from edged.layers.schedule import Mode, check
from edged.layers.spec import Transport
from edged.plurals import counted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from edged.layers.meter import Meter
    from edged.layers.trial import PipelineSession, Ran


class _Counts(click.ParamType[tuple[int, ...]]):
    """`2` or `2,4`."""

    name = "counts"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the counts, or say what is possible."""
        parts = str(value).split(",")
        if not all(part.strip().isdigit() and 1 <= int(part) <= MOST for part in parts):
            self.fail(f"write counts of 1 to {MOST}, such as 2 or 1,2,4,8", param, ctx)
        return tuple(int(part) for part in parts)


MOST = 64


@click.command(
    epilog=example(
        "edgectl layers bench --synthetic 60ms --stages 2,4 --micro-batches 1,2,4,8",
        "edgectl layers bench --model smollm2-135m-instruct:q4_1 --stages 1,2 --plot pipeline.png",
    )
)
@click.option("--synthetic", type=NEEDS_UNIT, help="Stages that only wait so long: the schedule alone.")
@click.option("--model", type=TEXT, metavar="MODEL", help="As for `edgectl layers run`.")
@click.option("--stages", type=_Counts(), default="2,4", show_default=True)
@click.option("--micro-batches", type=_Counts(), help="[one a stage]")
@click.option(
    "--micro-batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences of each, constant."
)
@click.option("--tokens", type=click.IntRange(1), default=16, show_default=True, help="Of each answer.")
@click.option("--mode", "modes", type=click.Choice(get_args(Mode)), multiple=True, help="Repeatable  [ring].")
@click.option(
    "--transport", type=click.Choice(["auto", *get_args(Transport)]), default="auto", show_default=True
)
@click.option("--context-tokens", type=click.IntRange(16), default=512, show_default=True)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write FILE.png and FILE.svg of the last."
)
@json_option
@with_session
def bench(  # noqa: PLR0917 - one argument per option, passed by name
    session: Session,
    /,
    synthetic: float | None,
    model: str | None,
    stages: tuple[int, ...],
    micro_batches: tuple[int, ...] | None,
    modes: tuple[Mode, ...],
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run pipelines of several sizes one after the other, on the CPU, and compare bubble and formula.

    A bubble is the share of the stages' time that was not spent computing. The formula holds for stages that
    take equally long, decode only. More micro-batches of the same size are more requests in flight.
    """
    if (synthetic is None) == (model is None):
        raise click.UsageError("give either --synthetic DURATION or --model MODEL")
    from edged.plugins import load

    load("torch_pipeline")  # it says what to install where torch is missing
    source = source_of(session, model) if model else ""
    asked: tuple[Mode, ...] = modes or ("ring",)
    cases: list[tuple[Mode, int, int]] = [
        (mode, n, m) for mode in asked for n in stages for m in micro_batches or (n,)
    ]
    ran: list[Ran] = []
    refused: list[dict[str, Any]] = []
    meter: Meter | None = None
    if plot:
        pictures.check(plot)
    with progress_bar() as bar:
        whole = bar.add_task("pipelines", total=len(cases))
        tokens = bar.add_task("tokens")
        for mode, count, batches in cases:
            try:
                check(mode, count, batches)
            except ConfigError as error:
                refused.append(
                    {"mode": mode, "stages": count, "micro_batches": batches, "why": error.message}
                )
            else:
                told = partial(_advance, bar, tokens)
                one, meter = _one(source, synthetic, mode, (count, batches), options, told)
                ran.append(one)
            bar.advance(whole)
    if not as_json:
        _print(ran, refused)
    print_plotted(
        lambda: plotted(ran[-1], meter, plot) if plot and ran and meter else [],
        partial(_told, ran, refused) if as_json else None,
    )


def _told(ran: Sequence[Ran], refused: Sequence[dict[str, Any]], files: Sequence[Path]) -> dict[str, Any]:
    runs = [{"tokens_per_s": each.tokens_per_s, "run": each} for each in ran]
    return {"runs": runs, "refused": refused, "files": [str(file) for file in files]}


def _advance(bar: Progress, task: TaskID, done: int, most: int) -> None:
    bar.update(task, completed=done, total=most)


def _one(
    source: str,
    synthetic: float | None,
    mode: Mode,
    size: tuple[int, int],
    options: dict[str, Any],
    told: Callable[[int, int], None],
) -> tuple[Ran, Meter]:
    from edged.layers import trial
    from edged.layers.assembly import Settings, assemble_synthetic
    from edged.layers.meter import Meter
    from edged.layers.spec import Synthetic

    stages, micro_batches = size
    settings: dict[str, Any] = {
        "mode": mode,
        "transport": options["transport"],
        "micro_batches": micro_batches,
        "max_sequences": micro_batches * options["micro_batch"],
        "context_tokens": options["context_tokens"],
    }
    if synthetic is not None:
        meter = Meter(stages)
        meter.keep_timeline()
        assembly = assemble_synthetic(Synthetic(stage_s=synthetic), Settings(**settings), stages)
        return trial.run_synthetic(assembly, options["tokens"], meter, told), meter
    session = _session(source, settings | {"devices": ["cpu"] * stages, "split": "even"})
    try:
        session.meter.keep_timeline()
        texts = [PROMPTS[number % len(PROMPTS)] for number in range(session.max_sequences)]
        prompts = [session.vocabulary.encode(text, special=False) for text in texts]
        return trial.run(session, prompts, options["tokens"], told), session.meter
    finally:
        session.close()


def _session(source: str, settings: dict[str, Any]) -> PipelineSession:
    from edged.plugins import load

    backend = load("torch_pipeline")
    return cast("PipelineSession", backend.open(variant_of(source), backend.devices()[0], settings))


def _print(ran: Sequence[Ran], refused: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            each.mode,
            str(each.stages),
            str(each.micro_batches),
            str(each.micro_batch),
            f"{each.bubble:.3f}",
            f"{each.formula:.3f}",
            f"{each.bubble - each.formula:+.3f}",
            f"{each.tokens_per_s:.1f}",
        )
        for each in ran
    ]
    headings = ("MODE", "STAGES", "MICRO-BATCHES", "SIZE", "BUBBLE", "FORMULA", "DIFFERENCE", "TOKENS/S")
    print_table(headings, rows)
    for each in refused:
        stages, batches = counted(each["stages"], "stage"), counted(each["micro_batches"], "micro-batch")
        click.echo(f"refused: {each['mode']}, {stages}, {batches}: {each['why']}")
