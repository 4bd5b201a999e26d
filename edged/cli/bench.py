"""`edgectl bench`: load on the running daemon, and where its limit is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edged import pictures
from edged.cli.durations import DURATION
from edged.cli.output import print_json, print_table, readable_seconds
from edged.cli.session import TEXT, Session, example, json_option, valid, with_session
from edged.errors import BadRequest
from edged.plurals import counted

if TYPE_CHECKING:
    from edged.load.plot import Run
    from edged.load.report import Quantiles, Report


class _Clients(click.ParamType[tuple[int, ...]]):
    """`8` or `1,4,16`."""

    name = "clients"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the counts, or say what is possible."""
        parts = str(value).split(",")
        if not all(part.strip().isdigit() and 1 <= int(part) <= MOST_CLIENTS for part in parts):
            self.fail(f"write counts of 1 to {MOST_CLIENTS}, such as 8 or 1,4,16", param, ctx)
        return tuple(int(part) for part in parts)


MOST_CLIENTS = 256


@click.command(epilog=example("edgectl bench --clients 1,4,16 --duration 30s --plot load.png"))
@click.option(
    "--clients",
    type=_Clients(),
    default="1,4",
    show_default=True,
    help="Closed loop, one run for each count.",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Open loop: arrivals per second.")
@click.option("--duration", type=DURATION, default="20s", show_default=True, help="Of each run.")
@click.option(
    "--questions",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="One question a line; drawn from your own documents when absent.",
)
@click.option("--model", type=TEXT, default="rag", show_default=True, help="Pipeline or model.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--priority",
    type=click.Choice(["interactive", "batch"]),
    default="batch",
    show_default=True,
    help="Of the load: batch lets real users go first.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write FILE.png and FILE.svg.")
@json_option
@with_session
def bench(  # noqa: PLR0917 - one argument per option, passed by name
    session: Session,
    clients: tuple[int, ...],
    rate: float | None,
    duration: float,
    file: Path | None,
    model: str,
    max_tokens: int,
    priority: str,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Put load on the running daemon and report throughput, waiting times and the bottleneck.

    Real users are served meanwhile, and slower. Ctrl-C ends a run early; what was measured is reported.
    """
    if plot:
        pictures.check(plot)
    asked = _questions(session, file)
    fields: dict[str, Any] = {"max_tokens": max_tokens, "edged": {"priority": priority}}
    runs: list[Run] = []
    for load in [rate] if rate is not None else clients:
        runs.append(_run(session, model, fields, asked, duration, load))
        if not as_json:
            _print(runs[-1][0])
        if runs[-1][0].duration_s < duration:  # ended early
            break
    files = _plot(runs, plot)
    if as_json:
        print_json({"runs": [report for report, _ in runs], "plots": files})


def _questions(session: Session, file: Path | None) -> list[str]:
    from edged.load.questions import questions

    if file is None:
        return questions(session.config.library.dir)
    lines = [line for line in file.read_text(errors="surrogateescape").splitlines() if line.strip()]
    if not lines:
        raise BadRequest(f"{file} holds no question; write one a line", param="--questions")
    return [valid(line) for line in lines]


def _run(
    session: Session,
    model: str,
    fields: dict[str, Any],
    asked: list[str],
    duration_s: float,
    load: float,
) -> Run:
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    from edged.cli.output import progress_bar
    from edged.load.drive import Asker, Run
    from edged.load.report import report
    from edged.load.sample import Sample

    session.client.status()  # nobody there is said once, not once a client
    run = Run(Asker(session.client, model, fields).ask, asked, duration_s)
    is_open = isinstance(load, float)
    samples: list[Sample] = []
    stopped = False
    name = f"{load:g}/s" if is_open else counted(int(load), "client")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with progress_bar(*columns) as progress:
        task = progress.add_task(name, total=duration_s)
        results = run.open(load) if is_open else run.closed(int(load))
        try:
            click.echo(f"{name}: {duration_s:g} s of load; Ctrl-C ends it early", err=True)
            for sample in results:
                samples.append(sample)
                done = f"{name}: {len(samples)} done"
                progress.update(task, completed=min(run.elapsed_s, duration_s), description=done)
        except KeyboardInterrupt:
            stopped = True
            run.stop()
            click.echo("stopping: waiting for what is under way (Ctrl-C again to leave)", err=True)
            samples.extend(run.rest())
    elapsed_s = max((sample.end_s for sample in samples), default=run.elapsed_s)
    if is_open and not stopped:
        elapsed_s = max(elapsed_s, duration_s)
    at_once = run.peak_in_flight if is_open else int(load)
    return (
        report(samples, clients=at_once, rate_per_s=load if is_open else None, duration_s=elapsed_s),
        samples,
    )


def _print(report: Report) -> None:
    from edged.load.plot import label

    click.echo(
        f"\n{label(report)}, {report.duration_s:.0f} s: {report.answered} answered, "
        f"{report.throughput_per_s:.2f}/s, {report.tokens_per_s:.0f} tokens/s"
    )
    for code, count in report.errors.items():
        click.echo(f"  {count} x {code}")
    kinds = (("answer", report.latency), ("first token", report.first_token), ("token gap", report.token_gap))
    print_table(("", "P50", "P95", "P99", "MAX"), [(name, *_cells(times)) for name, times in kinds])
    rows = [
        (
            name,
            f"{load.utilisation:.0%}",
            readable_seconds(load.compute_s),
            readable_seconds(load.wait_s),
            f"{load.mean_batch:.1f}",
        )
        for name, load in report.stages.items()
    ]
    print_table(("STAGE", "BUSY", "WORK", "WAIT", "BATCH"), rows)
    click.echo(report.verdict)


def _cells(times: Quantiles) -> list[str]:
    values = (times.p50, times.p95, times.p99, times.maximum)
    return ["-" if value is None else readable_seconds(value) for value in values]


def _plot(runs: list[Run], path: Path | None) -> list[Path]:
    from edged.load.plot import save

    if path is None or not any(report.answered for report, _ in runs):
        return []
    files = save(runs, path)
    click.echo(f"plots: {', '.join(map(str, files))}", err=True)
    return files
