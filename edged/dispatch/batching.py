"""Which waiting work goes to which worker, in what micro-batch: pure."""

from __future__ import annotations

from collections.abc import Iterable

from edged.dispatch.events import Command, Send
from edged.dispatch.ledger import Ledger, Request, Stage, Worker
from edged.dispatch.sharing import settle
from edged.messages import Batch, SlotRef, Work


def dispatch(ledger: Ledger, now: float) -> list[Command]:
    """Give waiting work to workers with room: no free output slot, no dispatch."""
    leases = settle(ledger, now)
    return leases + [
        command for stage in ledger.stages.values() for command in _dispatch_stage(ledger, stage, now)
    ]


def _dispatch_stage(ledger: Ledger, stage: Stage, now: float) -> Iterable[Command]:
    while stage.queue:
        worker = _next_worker(ledger, stage)
        if worker is None:
            return
        batch = _form_batch(ledger, stage, worker, now)
        if not batch:
            return
        yield Send(worker.incarnation, Batch(batch))


def _next_worker(ledger: Ledger, stage: Stage) -> Worker | None:
    """The ready worker with most credit; a batch stage takes its next batch when the last is done."""
    suspect = ledger.requests[stage.queue[0]].suspicion > 0
    free = [
        worker
        for name in stage.workers
        if (worker := ledger.workers[name]).state == "ready"
        and worker.credit > 0
        and (stage.streaming or not (worker.held or worker.cores == 0))
        and not _would_blur(ledger, worker, suspect=suspect)
    ]
    return max(free, key=lambda worker: worker.credit, default=None)


def _would_blur(ledger: Ledger, worker: Worker, *, suspect: bool) -> bool:
    """Whether a death after one more item would leave open who is to blame: a suspect runs alone."""
    return any(
        (suspect or request.suspicion) and len(request.tokens) == request.tokens_at_dispatch
        for held in worker.held
        if (request := ledger.requests[held]).phase == "running"
    )


def _form_batch(ledger: Ledger, stage: Stage, worker: Worker, now: float) -> tuple[Work, ...]:
    """Lease output slots for as many waiting items as fit; a suspect runs alone."""
    limit = 1 if stage.streaming else stage.max_batch
    batch: list[Work] = []
    while stage.queue and worker.credit and len(batch) < limit:
        request = ledger.requests[stage.queue[0]]
        if request.suspicion and batch:
            break
        target = stage.slots.lease()
        if target is None:
            break
        stage.queue.popleft()
        batch.append(_hand_over(request, worker, target, now))
        if request.suspicion:
            break
    return tuple(batch)


def _hand_over(request: Request, worker: Worker, target: SlotRef, now: float) -> Work:
    request.phase = "running"
    request.attempt += 1
    request.attempts_here += 1
    request.worker, request.target, request.sent_at = worker.incarnation, target, now
    request.tokens_at_dispatch = len(request.tokens)
    request.resumed += bool(request.tokens)
    worker.credit -= 1
    worker.held[request.id] = request.attempt
    if len(worker.held) == 1:
        worker.heard_at = now
    return Work(
        request.id,
        request.attempt,
        request.operation,
        request.source,
        target,
        max(0, round((request.deadline - now) * 1000)),
        tuple(request.tokens),
        request.characters,
    )
