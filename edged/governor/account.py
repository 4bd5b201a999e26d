"""What the governor did, as it is told: one log event and one row of the history each, and counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Literal

from edged.governor.bands import Policy, Standing
from edged.governor.events import GoTo, Report
from edged.governor.history import History
from edged.governor.tally import Tally
from edged.governor.words import because
from edged.report import Decision

logger = logging.getLogger("edged.governor")

EVENTS = {
    "down": "rung changes",
    "up": "rung changes",
    "refused": "rung refused",
    "signal": "signal heard of",
    "pinned": "rung pinned",
    "released": "rung released",
    "offered": "rung offered",
}
"""Log events by what a row of the history says."""
REFUSED = "rung "
"""Beginning of what a `Report` is about when it is no signal."""


class Account:
    """Keeps the books of `Governing`."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.tally = Tally()
        self.why = ""
        """The reason of the newest change, or that the rung was released since."""

    def changed(self, command: GoTo, policy: Policy, standings: Mapping[str, Standing]) -> None:
        """A rung is left for another."""
        cause = command.cause
        direction: Literal["down", "up"] = "down" if command.rung > command.before else "up"
        self.why = because(cause)
        self.tally.changes[direction, cause.signal.partition(".")[0] or cause.why] += 1
        self._write(
            Decision(
                at=time.time(),
                what=direction,
                rung=command.name,
                before=policy.rungs[command.before],
                why=self.why,
                cause=cause.why,
                signal=cause.signal,
                value=cause.value,
                predicted=cause.predicted,
                limit=cause.limit,
                readings=known(standings),
            )
        )

    def reported(self, report: Report, rung: str, standings: Mapping[str, Standing]) -> None:
        """A signal is not known any more, or is again; or a rung was refused."""
        refused = report.what.startswith(REFUSED)
        self._write(
            Decision(
                at=time.time(),
                what="refused" if refused else "signal",
                rung=report.what.removeprefix(REFUSED) if refused else rung,
                signal="" if refused else report.what,
                why=report.why or "known again",
                readings=known(standings),
            ),
            logging.WARNING if report.why else logging.INFO,
        )
        self.tally.refused += refused

    def noted(self, what: Literal["pinned", "released", "offered"], rung: str, why: str) -> None:
        """The operator, or whoever offers something, said so."""
        if what == "released":
            self.why = f"released {why}"
        self._write(Decision(at=time.time(), what=what, rung=rung, why=why))

    def _write(self, row: Decision, level: int = logging.INFO) -> None:
        fields = {name: getattr(row, name) for name in row.__struct_fields__ if name not in {"at", "what"}}
        said = {name: value for name, value in fields.items() if value not in ("", None, {})}
        logger.log(level, EVENTS[row.what], extra=said)
        self.history.add(row)


def known(standings: Mapping[str, Standing]) -> dict[str, float]:
    """The signals' readings, as far as there are any."""
    return {name: round(each.value, 4) for name, each in standings.items() if each.value is not None}
