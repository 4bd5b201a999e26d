"""When a request would be answered, by what is queued and what was measured: pure.

The stages of a pipeline work side by side, so a request waits once, where most work is ahead of it, and is
worked on in every stage. Where nothing was measured, nothing is predicted.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from edged.dispatch.ledger import Ledger, Request, Stage
from edged.messages import Priority

ENOUGH = 3
"""Services of a stage before it is used to refuse: the first is slower than the rest."""
FRESH_S = 10.0
"""A stage is not judged by older measurements: the next request measures it anew."""
STEADY = 3.0
"""Services: a busy stage that has finished nothing for so long is not doing what was measured."""


class Finish(msgspec.Struct, frozen=True):
    """A prediction in seconds from now: waiting, then being worked on."""

    wait_s: float
    service_s: float

    @property
    def total_s(self) -> float:
        """Until the answer is complete."""
        return self.wait_s + self.service_s


def wait_s(ledger: Ledger, route: tuple[str, ...], priority: Priority = "interactive") -> float:
    """How long a new request without a deadline of its own would wait: work ahead of it, stage by stage."""
    return sum(_ahead(ledger, ledger.stages[name], priority) for name in route)


def _ahead(ledger: Ledger, stage: Stage, priority: Priority) -> float:
    queued = len(stage.queue) if priority == "batch" else len(stage.queue.line("interactive"))
    running = sum(len(ledger.workers[worker].held) for worker in stage.workers)
    return (queued + running) * stage.item_s / max(stage.desired, 1)


def finish(
    ledger: Ledger, route: tuple[str, ...], priority: Priority, deadline: float, now: float
) -> Finish | None:
    """Predict the end of a request that joins now, at the early side; None while too little is known.

    Ahead of it are those of its class with an earlier deadline, of batch work also every interactive one.
    A service is taken at its mean less its mean deviation: what is refused would be late by more than chance.
    """
    stages = [stage for name in route if _known(ledger, stage := ledger.stages[name], now)]
    if not stages:
        return None
    queued, running = _before(ledger, (priority == "batch", deadline))
    waits_s = [_wait_s(stage, queued[stage.name], running[stage.name]) for stage in stages]
    return Finish(max(waits_s), sum(_service_s(stage, queued[stage.name]) for stage in stages))


def _service_s(stage: Stage, queued: int) -> float:
    """Of an answer; or of the micro-batch that the request would be part of, with those that go before it."""
    service_s = stage.service_s
    if not stage.streaming:
        service_s = min(service_s, stage.item_s * min(stage.limit, queued + 1))
    return max(0.0, service_s - stage.spread_s)


def _known(ledger: Ledger, stage: Stage, now: float) -> bool:
    busy = any(ledger.workers[worker].held for worker in stage.workers)
    fresh_s = max(FRESH_S, STEADY * stage.service_s) if busy else FRESH_S
    return stage.services >= ENOUGH and now - stage.served_at <= fresh_s


def _before(ledger: Ledger, place: tuple[bool, float]) -> tuple[Counter[str], Counter[str]]:
    """By stage: requests that go first there, waiting or still on their way to it; and those in work."""
    queued: Counter[str] = Counter()
    running: Counter[str] = Counter()
    for request in ledger.requests.values():
        if request.phase == "leaving":
            continue
        here = request.position
        if request.phase == "running":
            running[request.stage] += ledger.workers[request.worker].remote is None
            here += 1
        if _place(request) <= place:
            queued.update(request.route[here:])
    return queued, running


def _place(request: Request) -> tuple[bool, float]:
    return request.priority == "batch", request.deadline


def _wait_s(stage: Stage, queued: int, running: int) -> float:
    """Until a worker takes it: the batches ahead that it is not part of; or until a sequence is free."""
    workers = max(stage.desired, 1)
    if stage.streaming:
        return max(0, queued + running + 1 - stage.limit * workers) * stage.item_s / workers
    return (queued - queued % stage.limit + running / 2) * stage.item_s / workers
