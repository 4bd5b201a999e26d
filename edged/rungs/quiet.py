"""Whether a daemon may be measured now: not beside other work, nor in the governor's place. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from edged.errors import Overloaded, Shed
from edged.report import Decision, GovernorStatus

MOVES = frozenset({"down", "up", "released"})
"""What the governor's place is known by."""
PINS = 50
"""Newest rows of the history among which the last move is looked for."""


def check_quiet(
    outstanding: int, governor: GovernorStatus | None, decisions: Sequence[Decision], climb_after_s: float
) -> None:
    """Raise `Overloaded` beside other requests, and `Shed` where the governor has taken a rung by itself.

    `decisions` are the newest of the history, oldest first.
    """
    if outstanding > 0:
        raise Overloaded(
            "the daemon is answering requests: figures taken beside them would be wrong, and clients would "
            "get the answers of other rungs. Try again when nobody asks, or add --while-serving"
        )
    if governor is not None and governor.rung > 0 and not governor.pin:
        best, wait_s = governor.ladder[0].name, _steps(governor) * climb_after_s
        raise Shed(
            f"{_standing(governor, decisions)}, and measuring would take the governor's place. It climbs a "
            f"rung at a time: to {best!r} in {wait_s:.0f} s at the earliest. To measure at once: edgectl "
            f"governor pin {best} (afterwards: edgectl governor auto), or add --while-serving",
            retry_after_s=wait_s,
        )


def _steps(governor: GovernorStatus) -> int:
    """Up to the first rung, without those that cannot be taken."""
    return sum(rung.name not in governor.unavailable for rung in governor.ladder[: governor.rung])


def _standing(governor: GovernorStatus, decisions: Sequence[Decision]) -> str:
    last = next((row for row in reversed(decisions) if row.what in MOVES), None)
    name = repr(governor.name)
    if last is None:
        return f"the governor is on {name}"
    if last.what == "released":
        return f"rung {name} was pinned and released, and the governor has not left it yet"
    if last.what == "up":
        return f"the governor is on its way up and has come to {name} ({last.why})"
    return f"the governor has gone down to {name} ({last.why})"
