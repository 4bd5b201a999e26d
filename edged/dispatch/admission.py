"""What is accepted, and what is refused at once: pure."""

from __future__ import annotations

from math import inf

from edged.dispatch.deaths import RETRY_FAILED_S
from edged.dispatch.forecast import finish, wait_s
from edged.dispatch.ledger import Ledger, Request
from edged.dispatch.offload import rescued
from edged.dispatch.requests import Submission
from edged.dispatch.skipping import join, needed
from edged.errors import DeadlineUnmeetable, Draining, EdgedError, Overloaded, StageUnavailable
from edged.messages import SlotRef

MINIMUM_WAIT_S = 1.0
"""The shortest wait that a refused client is told; before anything was measured, the only one."""


def admit(ledger: Ledger, asked: Submission, now: float) -> Request:
    """Accept a request under a leased entry slot, or raise what the client is told at once."""
    deadline = now + asked.deadline_s
    try:
        route = needed(ledger, asked.route, asked.operation)
        _check_open(ledger, asked, route)
        if asked.firm:
            _check_deadline(ledger, asked, route, now)
        source = _entry_slot(ledger, asked, route)
    except EdgedError as error:
        ledger.count_rejection(error.code)
        raise
    ledger.last_request += 1
    ledger.accepted += 1
    request = Request(
        ledger.last_request, asked.route, asked.operation, source, deadline, now, priority=asked.priority
    )
    request.hops, request.characters = asked.hops, asked.resume_characters
    request.tokens.extend(asked.resume_tokens)
    ledger.requests[request.id] = request
    return request


def _check_open(ledger: Ledger, asked: Submission, route: tuple[str, ...]) -> None:
    if ledger.draining:
        raise Draining("the daemon is stopping; try again when it is back", retry_after_s=5)
    for stage in map(ledger.stages.__getitem__, route):
        if stage.failed and (asked.hops or not rescued(ledger, stage)):
            again_s = None if stage.retry_at == inf else RETRY_FAILED_S
            raise StageUnavailable(f"stage {stage.name!r} is down: {stage.failed}", retry_after_s=again_s)


def _check_deadline(ledger: Ledger, asked: Submission, route: tuple[str, ...], now: float) -> None:
    limit_s = asked.deadline_s
    prediction = finish(ledger, route, asked.priority, now + limit_s, now)
    if prediction is None or prediction.total_s <= limit_s:
        return
    alone = "" if prediction.service_s <= limit_s else ": too long even with nobody ahead"
    raise DeadlineUnmeetable(
        f"the answer is predicted in {prediction.total_s:.2f} s ({prediction.wait_s:.2f} s of waiting,"
        f" {prediction.service_s:.2f} s of work), and deadline_ms allows {limit_s:.2f} s{alone}",
        param="deadline_ms",
        retry_after_s=max(MINIMUM_WAIT_S, prediction.total_s - limit_s),
    )


def _entry_slot(ledger: Ledger, asked: Submission, route: tuple[str, ...]) -> SlotRef:
    slot = ledger.entry.lease(asked.priority)
    if slot is None:
        ahead_s = max(MINIMUM_WAIT_S, wait_s(ledger, route, asked.priority))
        whose = f"{ledger.entry.count} entry slots"
        if ledger.entry.room("interactive"):
            whose = "entry slots for batch work"
        raise Overloaded(f"all {whose} are taken; try again in {ahead_s:.1f} s", retry_after_s=ahead_s)
    return slot


def enqueue(ledger: Ledger, request: Request, source: SlotRef, now: float) -> None:
    """Queue an admitted request whose payload now lies in its entry slot; `Waited` gives it to a worker."""
    request.source = source
    join(ledger, request, now)
