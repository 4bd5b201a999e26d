"""What `edgectl` prints about the rung in force and the decisions behind it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edged.cli.output import print_table, readable_seconds, visible

if TYPE_CHECKING:
    from edged.config.tables import Rung
    from edged.report import Decision, GovernorStatus

RUNGS = ("RUNG", "DOES", "TIME", "NOW")
ROWS = ("TIME", "WHAT", "RUNG", "WHY")


def headline(status: GovernorStatus) -> str:
    """The rung in force, since when and why, in a line."""
    pinned = f", pinned to {status.pin}" if status.pin else ""
    way = ", stages on their way" if status.under_way else ""
    why = f": {status.why}" if status.why else ""
    since = readable_seconds(status.since_s)
    return visible(
        f"rung {status.name} ({status.rung} of {len(status.ladder) - 1}) for {since}{pinned}{way}{why}"
    )


def ahead(status: GovernorStatus, climb_after_s: float) -> str:
    """What follows a release; empty where nothing better is left to take.

    >>> from edged.report import GovernorStatus
    >>> ahead(GovernorStatus(rung=1, name="b", why="", since_s=0.0), 120.0)
    '; a better rung in about 2m 0s if it stays calm'
    """
    if status.rung == 0 or status.pin:
        return ""
    return f"; a better rung in about {readable_seconds(climb_after_s)} if it stays calm"


def print_standing(status: GovernorStatus) -> None:
    """The rung in force, then all of them."""
    click.echo(headline(status))
    if not status.thermal:
        click.echo("no temperature is known: only load and memory count")
    for signal, why in status.unknown.items():
        click.echo(visible(f"{signal} is unknown: {why}"))
    click.echo()
    print_table(RUNGS, [_row(status, rung) for rung in status.ladder])


def _row(status: GovernorStatus, rung: Rung) -> tuple[str, ...]:
    from edged.rungs.words import does

    name = rung.name
    spent_s = status.on_rung_s.get(name, 0.0)
    why = status.unavailable.get(name, "")
    if name == status.name:
        stands = f"in force without effect: {why}" if why else "in force"
    else:
        stands = f"cannot be taken: {why}" if why else ""
    if refused := status.left_out.get(name):
        stands = ", ".join(filter(None, (stands, f"refused, and tried again: {refused}")))
    now = ["floor" if name == status.floor and rung != status.ladder[-1] else "", stands]
    return name, does(rung), readable_seconds(spent_s), ", ".join(filter(None, now))


def print_history(rows: Sequence[Decision]) -> None:
    """A line for each decision, oldest first."""
    if rows:
        print_table(ROWS, [_line(row) for row in rows])
    else:
        click.echo("nothing was decided yet")


def _line(row: Decision) -> tuple[str, str, str, str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.at))
    rung = f"{row.before} -> {row.rung}" if row.before else row.rung
    return at, row.what, rung, f"{row.signal}: {row.why}" if row.what == "signal" else row.why
