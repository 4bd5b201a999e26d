"""Which answer is made by which peer: pure.

Work stays at home unless the home is hot (`Pressure`) or full, and the answer is predicted to be complete
earlier elsewhere. What came from a peer is never handed on; what was handed over `MOST_TRIPS` times stays; a
peer that is hot itself gets nothing. So no answer goes back and forth, however hot everybody is.
"""

from __future__ import annotations

from collections.abc import Iterator

from edged.dispatch.events import Command, Send
from edged.dispatch.forecast import ENOUGH
from edged.dispatch.ledger import Ledger, Request, Stage, Worker
from edged.dispatch.peer import Remote
from edged.messages import Cancel, Priority

MOST_TRIPS = 2
"""How often an answer may be handed to a peer: the second time only because the first ended badly."""
GAIN = 0.9
"""An answer leaves a cool home only if it takes at most this share of the time elsewhere."""
KEPT_FROM_BATCH = 4
"""One in so many of a peer's sequences is left to interactive work."""


def outgoing(ledger: Ledger, stage: Stage, now: float, *, room: bool) -> tuple[Request, Worker] | None:
    """Which waiting request goes to which peer now; `room`: whether it could begin at home at once."""
    if not stage.remotes or (room and not ledger.pressure.away):
        return None
    for place, request in enumerate(_waiting(ledger, stage)):
        worker = _best(ledger, stage, request)
        if worker is None or worker.remote is None:
            continue
        there_s = finish_there_s(stage, worker.remote)
        if ledger.pressure.away or worthwhile(finish_here_s(stage, place), there_s, request.deadline - now):
            return request, worker
    return None


def worthwhile(here_s: float | None, there_s: float, left_s: float) -> bool:
    """Whether an answer that waits at home is better made elsewhere; `here_s` None: nobody knows how long.

    >>> worthwhile(4.0, 3.0, 60.0), worthwhile(4.0, 3.9, 60.0), worthwhile(None, 3.0, 60.0)
    (True, False, True)
    """
    if here_s is None:
        return True
    return there_s <= GAIN * here_s and (there_s < left_s or here_s >= left_s)


def finish_here_s(stage: Stage, place: int) -> float | None:
    """Seconds until the answer at this place of the queue is complete; None: nobody knows, or never."""
    if stage.services < ENOUGH or stage.failed:
        return None
    return (place + 1) * stage.item_s / max(stage.desired, 1) + stage.service_s


def finish_there_s(stage: Stage, remote: Remote) -> float:
    """The same at a peer: by what it took before, else by its pace against ours, else by its own mean."""
    offer = remote.offer
    service_s = remote.service_s
    if not service_s and offer.tokens_per_s and stage.tokens_per_s:
        service_s = stage.service_s * stage.tokens_per_s / offer.tokens_per_s
    return (
        remote.rtt_s + offer.wait_s * (remote.free <= 0) + (service_s or offer.service_s or stage.service_s)
    )


def rescued(ledger: Ledger, stage: Stage) -> bool:
    """Whether a peer does the work of a stage that is down at home."""
    remotes = (ledger.workers[name] for name in stage.remotes)
    return any(worker.state == "ready" and worker.remote and worker.remote.free for worker in remotes)


def recalls(ledger: Ledger) -> list[Command]:
    """Take answers that have begun from the workers of a home that is too hot: peers go on with them."""
    if not ledger.pressure.urgent:
        return []
    return [command for stage in ledger.stages.values() for command in _recalls(ledger, stage)]


def _recalls(ledger: Ledger, stage: Stage) -> Iterator[Command]:
    begun = [
        request
        for name in sorted(stage.workers)
        for held in sorted(ledger.workers[name].held)
        if (request := ledger.requests[held]).phase == "running"
    ]
    coming = sum(request.recalled for request in begun) + len(stage.queue)
    begun.sort(key=lambda request: (request.priority == "batch", request.deadline, request.id))
    for request in begun:
        room = sum(w.remote.free for w in _peers(ledger, stage, request) if w.remote) - coming
        if request.recalled or room <= 0:
            continue
        request.recalled = True
        coming += 1
        yield Send(request.worker, Cancel(request.id, request.attempt))


def _waiting(ledger: Ledger, stage: Stage) -> Iterator[Request]:
    batch = stage.slots.room("batch") > 0
    if stage.slots.room("interactive") > 0:
        for number in stage.queue:
            request = ledger.requests[number]
            if batch or request.priority == "interactive":
                yield request


def _best(ledger: Ledger, stage: Stage, request: Request) -> Worker | None:
    def rank(worker: Worker) -> tuple[float, str]:
        remote = worker.remote
        return finish_there_s(stage, remote) if remote else 0.0, worker.incarnation

    return min(_peers(ledger, stage, request), key=rank, default=None)


def _peers(ledger: Ledger, stage: Stage, request: Request) -> Iterator[Worker]:
    """Peers that would begin this request at once."""
    if request.hops or request.trips >= MOST_TRIPS or request.suspicion:
        return
    for name in sorted(stage.remotes):
        worker = ledger.workers[name]
        remote = worker.remote
        if worker.state == "ready" and worker.credit > 0 and remote and _fits(remote, request):
            yield worker


def _fits(remote: Remote, request: Request) -> bool:
    if request.tokens and not remote.same:
        return False
    return request.source.length <= remote.offer.most_bytes and remote.free > reserve(
        remote, request.priority
    )


def reserve(remote: Remote, priority: Priority) -> int:
    """Sequences of a peer that work of this class leaves alone."""
    return remote.offer.grant // KEPT_FROM_BATCH if priority == "batch" else 0
