"""Waiting for a stage that is being changed, and saying how it ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from edged.cli.output import print_json, progress_bar, readable_seconds, visible
from edged.errors import from_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edged.client import AdminClient
    from edged.report import Status, SwapReport

POLL_S = 0.1
_PHASES = {
    "stopping": "the old workers finish what they hold, new requests wait",
    "loading": "loading the new workers",
    "draining": "the old workers finish what they hold",
    "": "finishing",
}


def runs_with(status: Status, name: str, workers: int) -> bool:
    """Whether a stage serves with so many workers, all of them well."""
    stage = next((stage for stage in status.stages if stage.name == name), None)
    if stage is None or stage.state != "ready":
        return False
    return [worker.state for worker in stage.workers] == ["ready"] * workers


def follow(admin: AdminClient, name: str, changes: Sequence[str], *, as_json: bool) -> None:
    """Wait until the change is over and print it; what the daemon says where it failed.

    Ctrl-C stops the waiting only.
    """
    for change in changes:
        click.echo(visible(change), err=True)
    try:
        report = _ended(admin)
    except KeyboardInterrupt:
        click.echo("the daemon goes on with it: see `edgectl status`", err=True)
        raise
    if as_json:
        print_json(report)
    if changes and report.problem:
        raise (
            from_code(report.code, report.problem)
            if report.code
            else click.ClickException(visible(report.problem))
        )
    if not as_json:
        _print(name, report, changed=bool(changes))


def _ended(admin: AdminClient) -> SwapReport:
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    words = TextColumn("{task.description}", markup=False)
    with progress_bar(SpinnerColumn(), words, TimeElapsedColumn()) as bar:
        task = bar.add_task("changing the stage", total=None)
        while (report := admin.swap_report()).under_way:
            bar.update(task, description=_PHASES[report.phase])
            time.sleep(POLL_S)
        return report


def _print(name: str, report: SwapReport, *, changed: bool) -> None:
    if not changed:
        click.echo(f"stage {visible(name)} runs so already")
        return
    copies = ", one copy at a time" if report.one_copy else ""
    click.echo(f"stage {visible(name)} is changed after {readable_seconds(report.took_s)}{copies}")
    if found := report.agreement:
        click.echo(
            f"vectors of {found['passages']:.0f} stored passages agree: mean cosine "
            f"{found['mean_cosine']:.3f}, {found['overlap']:.0%} of the nearest are the same"
        )
    if override := report.overrides.get(name):
        click.echo(
            f"not as configured: {visible(override)}; until the next start, reload or plan, or: "
            f"edgectl stage swap {visible(name)} --revert"
        )
