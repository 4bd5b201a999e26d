"""Whom a rung lets in: pure."""

from __future__ import annotations

import math

from edged.dispatch.forecast import wait_s
from edged.dispatch.ledger import Ledger
from edged.dispatch.requests import Submission
from edged.errors import Shed
from edged.governor.force import InForce

SHORTEST_S = 1.0


def check(force: InForce, ledger: Ledger, asked: Submission, *, why: str, climb_s: float) -> None:
    """Let a request in, or raise `Shed` with the time after which to try again.

    `why` is the reason for the rung, `climb_s` the soonest that a better one can be taken.
    """
    doing = force.settings
    if asked.continues or ledger.draining:  # the latter is refused as what it is
        return
    if doing.shed_batch and asked.priority == "batch":
        raise _shed(force, why, "takes no work of priority batch", climb_s)
    if doing.busy_share < 1.0:
        most = most_at_once(ledger, doing.busy_share)
        room = most if asked.priority == "interactive" else max(1, most // 2)
        if ledger.outstanding >= room:
            again_s = wait_s(ledger, asked.route) / doing.busy_share
            raise _shed(force, why, f"works for {doing.busy_share:.0%} of the time", again_s)


def _shed(force: InForce, why: str, what: str, again_s: float) -> Shed:
    reason = f" ({why})" if why else ""
    return Shed(f"on the rung {force.name!r}{reason} the box {what}", retry_after_s=max(SHORTEST_S, again_s))


def most_at_once(ledger: Ledger, share: float) -> int:
    """Requests that wait no longer than those that fill the queue of a box that works all the time."""
    return math.ceil(ledger.entry.count * share)


def load(ledger: Ledger, share: float) -> float:
    """Share of the entry's slots that are taken; of those that may be, where work rests at times."""
    taken = ledger.entry.used / ledger.entry.count
    return taken if share >= 1.0 else min(1.0, max(taken, ledger.outstanding / most_at_once(ledger, share)))
