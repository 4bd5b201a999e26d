"""How far `edgectl ladder measure` is: drawn on a terminal, some lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from edged.cli.output import progress_bar, readable_seconds, visible

if TYPE_CHECKING:
    from rich.progress import Progress

    from edged.rungs.invent import Making
    from edged.rungs.measure import Stand

LINES = 8
"""At most, where nobody watches, for each half of the work."""
UNBEGUN = (
    "stopped before anything was measured: questions that were being made are not kept, all that was "
    "measured before is; the same command begins again"
)
STOPPED = "stopped; every answer so far is kept: run the same command again to continue"


class Shown:
    """One line of progress: `making` and `stand` bring it up to date."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, ahead="")
        self._part = -1

    def making(self, now: Making) -> None:
        """Questions are being made."""
        self._tell("making questions about the documents", made_so_far(now), now.made, now.wanted)

    def stand(self, now: Stand) -> None:
        """Questions are being asked."""
        self._tell(now.what, measured_so_far(now), now.done, now.done + now.left)

    def _tell(self, what: str, ahead: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=visible(what), ahead=ahead)
        part = LINES * done // max(1, total)
        if self._bar.disable and part != self._part:
            click.echo(f"{visible(what)}: {ahead}", err=True)
        self._part = part


@contextmanager
def shown(said_when_stopped: str) -> Iterator[Shown]:
    """A line of progress; Ctrl-C and the other signals that end it say what is kept."""
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    from edged.rungs.taking import interruptible

    what: Any = TextColumn("{task.description}", markup=False)
    columns = SpinnerColumn(), what, TimeElapsedColumn(), TextColumn("{task.fields[ahead]}")
    try:
        with progress_bar(*columns) as bar, interruptible():
            yield Shown(bar)
    except KeyboardInterrupt:
        click.echo(said_when_stopped, err=True)
        raise


def made_so_far(now: Making) -> str:
    """How many questions there are, and for how long more are made."""
    return f"{now.made} of {now.wanted} made, for {readable_seconds(max(1.0, now.left_s))} more at most"


def measured_so_far(now: Stand) -> str:
    """How much is done, and how long the rest takes as far as that is known."""
    total = now.done + now.left
    return (
        f"{now.done} of {total} batches of questions done, {_expected(now.expected_s)}, "
        f"{readable_seconds(max(1.0, now.budget_left_s))} of the budget left"
    )


def _expected(expected_s: float | None) -> str:
    if expected_s is None:
        return "how long the rest takes is not known yet"
    return f"about {readable_seconds(expected_s)} to go" if expected_s >= 1 else "less than 1 s to go"
