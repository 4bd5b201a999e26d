"""`edgectl calibrate`: what every way to run the stages costs on this box; works without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edged.cli.durations import DURATION
from edged.cli.output import print_json, progress_bar, readable_seconds, visible
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import EdgedError

if TYPE_CHECKING:
    from rich.progress import Progress

    from edged.placement.calibrate import Stand
    from edged.placement.forms import Candidate
    from edged.placement.survey import Forget
    from edged.placement.table import Table
    from edged.placement.workload import Workload
    from edged.report import Status

BUDGET_S = 600.0
STOPPED = "stopped; every figure so far is kept: run the same command again to continue"


@click.command(epilog=example("edgectl calibrate --budget 5m", "edgectl calibrate --show"))
@click.option("--budget", type=DURATION, default=BUDGET_S, help="Stop after this time, e.g. 5m  [10m].")
@click.option(
    "--stage", "stages", type=TEXT, multiple=True, metavar="NAME", help="Only this stage; repeatable."
)
@click.option(
    "--fresh", "forget", flag_value="all", help="Forget what was measured before; with --stage, of it alone."
)
@click.option(
    "--disturbed", "forget", flag_value="disturbed", help="Take again what other processes disturbed."
)
@click.option("--show", is_flag=True, help="Print what is known, and measure nothing.")
@click.option("--while-serving", is_flag=True, help="Measure beside a busy daemon; both get slower.")
@json_option
@with_session
def calibrate(
    session: Session,
    budget: float,
    stages: tuple[str, ...],
    forget: Forget | None,
    show: bool,
    while_serving: bool,
    as_json: bool,
) -> None:
    """Measure what each way to run the stages costs here.

    Every variant that is present, on every backend and device, at several thread counts and batches;
    the best ones also side by side. The likeliest come first, so a short budget gives a usable table.
    Ctrl-C keeps what was measured; a rerun goes on. The planner chooses from the result.
    """
    if show:
        _show(session, stages, as_json=as_json)
        return
    _heed_daemon(session, while_serving=while_serving)
    table = _measure(session, budget, stages, forget)
    _print(session, table, stages, as_json=as_json)


def _show(session: Session, stages: tuple[str, ...], *, as_json: bool) -> None:
    from edged.placement import storage, survey
    from edged.placement.fingerprint import known_fingerprint
    from edged.placement.staleness import stale

    table = storage.load(storage.path_in(session.config.daemon.state_dir))
    if table is None:
        raise click.ClickException("nothing was calibrated here yet; run: edgectl calibrate")
    now = known_fingerprint(table, survey.open_store(session.config, session.environment))
    for reason in stale(table, now):
        click.echo(f"note: stale: {visible(reason)}", err=True)
    _print(session, table, stages, as_json=as_json)


def _print(session: Session, table: Table, stages: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        print_json(table)
        return
    from edged.cli.forms_table import print_forms
    from edged.placement.completeness import lacking
    from edged.placement.survey import stages_of

    print_forms(table, stages)
    if missing := lacking(table, stages_of(session.config, ())):
        what = visible(", ".join(missing))
        click.echo(f"note: not everything is measured ({what}); `edgectl calibrate` goes on", err=True)


def _heed_daemon(session: Session, *, while_serving: bool) -> None:
    """Refuse beside a daemon that works; say so beside an idle one."""
    try:
        status = session.client.status()
    except EdgedError:
        return
    if _busy(status) and not while_serving:
        raise click.ClickException(
            "the daemon is answering requests, or did so within the last minute: figures taken beside it "
            "would be wrong, and its clients would wait longer. Try again when nobody asked for a minute, "
            "or add --while-serving"
        )
    how = "busy: expect figures that are too high" if _busy(status) else "idle, so it does not disturb"
    click.echo(f"note: the daemon is {how}", err=True)


def _busy(status: Status) -> bool:
    """Whether it holds a request, or has finished one within the last minute."""
    return status.outstanding > 0 or any(stage.rate_per_s > 0 for stage in status.stages)


def _measure(session: Session, budget_s: float, stages: tuple[str, ...], forget: Forget | None) -> Table:
    from edged.placement import storage
    from edged.placement.calibrate import Calibration, Limits

    path = storage.path_in(session.config.daemon.state_dir)
    with storage.only_writer(path), progress_bar(*_columns()) as bar:
        candidates, workload, table = _prepare(session, stages, forget)
        task = bar.add_task("", total=None, ahead="")

        def watch(stand: Stand) -> None:
            _draw(bar, task, stand)

        def keep(known: Table) -> None:
            storage.save(known, path)

        run = Calibration(candidates, workload, table, Limits(budget_s), keep, watch)
        try:
            return run.run()
        except KeyboardInterrupt:
            click.echo(STOPPED, err=True)
            raise


def _prepare(
    session: Session, stages: tuple[str, ...], forget: Forget | None
) -> tuple[list[Candidate], Workload, Table]:
    from edged.placement import storage, survey

    config = session.config
    store = survey.open_store(config, session.environment)
    chosen = survey.stages_of(config, stages)
    found, missing = survey.runtimes(chosen)
    for backend, reason in missing.items():
        click.echo(f"note: backend {backend} is left out: {visible(reason)}", err=True)
    candidates = survey.all_candidates(chosen, config, store, found)
    # Without --stage nothing of the file is kept, so that a damaged one does not stand in the way.
    nothing = forget == "all" and not stages
    former = None if nothing else storage.load(storage.path_in(config.daemon.state_dir))
    workload = survey.workload(config)
    table, dropped = survey.starting_table(former, candidates, workload, forget or "")
    for reason in dropped:
        click.echo(f"note: measured anew because of {visible(reason)}", err=True)
    return candidates, workload, table


def _columns() -> tuple[Any, ...]:
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    what = TextColumn("{task.description}", markup=False)
    return SpinnerColumn(), what, TimeElapsedColumn(), TextColumn("{task.fields[ahead]}")


def _draw(bar: Progress, task: Any, stand: Stand) -> None:
    ahead = (
        f"{stand.done} measured, {stand.left} to go (about {readable_seconds(stand.expected_s)}), "
        f"{readable_seconds(max(stand.budget_left_s, 0.0))} of the budget left"
    )
    bar.update(task, description=visible(stand.what), ahead=ahead)
    if bar.disable and not stand.done:
        click.echo(ahead, err=True)
