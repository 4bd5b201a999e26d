"""`edgectl plan --apply` and `--clear`: into the running daemon, and waiting until it runs so."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import msgspec

from edged.cli.output import progress_bar, visible
from edged.errors import EdgedError, Unreachable

if TYPE_CHECKING:
    from edged.client import AdminClient
    from edged.placement.table import Plan
    from edged.report import PlanReport

POLL_S = 0.1


class Applied(msgspec.Struct, frozen=True):
    """How it ended."""

    changes: list[str]
    unstored: str
    """See `PlanReport`."""


def apply(admin: AdminClient, plan: Plan | None) -> Applied:
    """Apply a plan, None: clear it; wait for the last new worker, and return what changed.

    `ClickException` when the daemon took it back; Ctrl-C stops the waiting only.
    """
    changes = admin.apply_plan(plan)
    for change in changes:
        click.echo(visible(change), err=True)
    try:
        report = _followed(admin, len(changes))
    except KeyboardInterrupt:
        click.echo("the daemon goes on with it: see `edgectl status`", err=True)
        raise
    if report.problem:
        raise click.ClickException(f"{visible(report.problem)}; what served before serves on")
    if (report.plan and report.plan.id) != (plan and plan.id):
        raise click.ClickException("the daemon did not finish it: see `edgectl status` and `edgectl logs`")
    return Applied(changes, report.unstored)


def _followed(admin: AdminClient, count: int) -> PlanReport:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

    words = TextColumn("{task.description}", markup=False)
    with progress_bar(SpinnerColumn(), words, BarColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("replacing workers", total=max(count, 1))
        while True:
            report = admin.plan()
            if not report.under_way:
                return report
            loading = f"loading {report.waiting[0]}" if report.waiting else "finishing"
            done = max(0, count - len(report.waiting))
            bar.update(task, description=visible(loading), completed=done)
            time.sleep(POLL_S)


def foreseen(admin: AdminClient, plan: Plan) -> list[str] | None:
    """What applying would change, or why it would be refused; None where no daemon can be asked."""
    try:
        return admin.apply_plan(plan, dry_run=True)
    except Unreachable:
        return None
    except EdgedError as error:
        return [f"refused [{error.code}]: {error.message}"]
