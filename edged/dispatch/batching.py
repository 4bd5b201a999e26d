"""Which waiting work goes to which worker, in what micro-batch: pure."""

from __future__ import annotations

from collections.abc import Iterable

from edged.dispatch.controller import Load
from edged.dispatch.events import Command, Memory, Send, Wake
from edged.dispatch.ledger import Ledger, Request, Stage, Worker
from edged.dispatch.offload import outgoing
from edged.dispatch.sharing import by_room, settle
from edged.messages import Batch, SlotRef, Work


def dispatch(ledger: Ledger, now: float) -> list[Command]:
    """Give waiting work to workers with room: no free output slot, no dispatch."""
    if ledger.draining:
        ledger.duty.share = 1.0  # what was accepted is answered in time, however hot it is
    ledger.duty.look(now)
    commands = settle(ledger, now)
    for stage in ledger.stages.values():
        if stage.queue:
            commands += _dispatch_stage(ledger, stage, now)
    return commands + _rests(ledger)


def _rests(ledger: Ledger) -> list[Command]:
    """Note whether anything is worked on, and wake when the next rest begins or ends."""
    duty = ledger.duty
    if duty.share >= 1.0:
        return []
    duty.working = any(
        worker.held
        and worker.remote is None
        and not (worker.cores == 0 and ledger.stages[worker.stage].streaming)
        for worker in ledger.workers.values()
    )
    due_s = duty.due_s()
    return [] if due_s is None or not ledger.requests else [Wake(due_s)]


def _dispatch_stage(ledger: Ledger, stage: Stage, now: float) -> Iterable[Command]:
    while stage.queue:
        worker = _next_worker(ledger, stage)
        if away := _hand_away(ledger, stage, now, room=worker is not None):
            yield away
            continue
        if worker is None:
            return
        if (due := _due(ledger, stage)) > now:
            yield Wake(due)
            return
        batch = _form_batch(ledger, stage, worker, now)
        if not batch:
            return
        stage.given_at = now
        yield Send(worker.incarnation, Batch(batch))


def _hand_away(ledger: Ledger, stage: Stage, now: float, *, room: bool) -> Send | None:
    """Give one item to a peer, if that is better; see `offload`."""
    found = outgoing(ledger, stage, now, room=room)
    target = stage.slots.lease(found[0].priority) if found else None
    if found is None or target is None:
        return None
    request, worker = found
    stage.queue.take(request.id)
    request.trips += 1
    if worker.remote is not None:
        worker.remote.balance -= 1
        worker.remote.handed += 1
    return Send(worker.incarnation, Batch((_hand_over(ledger, request, worker, target, now),)))


def _first(ledger: Ledger, stage: Stage) -> Request | None:
    number = stage.turn()
    return None if number is None else ledger.requests[number]


def _due(ledger: Ledger, stage: Stage) -> float:
    """Until when an idle worker waits for a fuller batch: not for a suspect, nor past a deadline."""
    if not stage.max_wait_s or stage.streaming:
        return 0.0
    first = _first(ledger, stage)
    full = min(stage.limit, stage.slots.room("interactive"))
    if first is None or first.suspicion or len(stage.queue) >= full:
        return 0.0
    return min(stage.queue.oldest() + stage.max_wait_s, first.deadline - stage.service_s)


def _next_worker(ledger: Ledger, stage: Stage) -> Worker | None:
    """Who takes the next batch: whose turn it is, else `by_room` the first; nobody while it is paused.

    In `single`, and in a rest, that is also who has no claim: its lease is from an earlier sharing-out.
    """
    free = [
        worker
        for name in stage.workers
        if (worker := ledger.workers[name]).state == "ready"
        and worker.credit > 0
        and (stage.streaming or not worker.held)
    ]
    if not free or (first := _first(ledger, stage)) is None:
        return None
    if any(worker.held for worker in free):
        suspect, limit = first.suspicion > 0, stage.limit
        free = [
            worker
            for worker in free
            if len(worker.held) < limit and not _would_blur(ledger, worker, suspect=suspect)
        ]
    turns = set() if stage.streaming else {turn.worker for turn in ledger.leases.turns.values()}
    single = ledger.leases.mode == "single"
    claimed_only = single or ledger.duty.resting

    def paused(worker: Worker) -> bool:
        return worker.cores == 0 or (claimed_only and worker.incarnation in ledger.leases.idle)

    def rank(worker: Worker) -> tuple[bool, bool, tuple[int, str]]:
        return single and paused(worker), worker.incarnation not in turns, by_room(worker)

    chosen = min(free, key=rank, default=None)
    return None if chosen is None or (not stage.streaming and paused(chosen)) else chosen


def _would_blur(ledger: Ledger, worker: Worker, *, suspect: bool) -> bool:
    """Whether a death after one more item would leave open who is to blame: a suspect runs alone."""
    return any(
        (suspect or request.suspicion) and len(request.tokens) == request.tokens_at_dispatch
        for held in worker.held
        if (request := ledger.requests[held]).phase == "running"
    )


def _form_batch(ledger: Ledger, stage: Stage, worker: Worker, now: float) -> tuple[Work, ...]:
    """Lease output slots for as many waiting items as fit; a suspect runs alone."""
    limit = 1 if stage.streaming else stage.limit
    batch: list[Work] = []
    while worker.credit and len(batch) < limit and (request := _first(ledger, stage)):
        if request.suspicion and batch:
            break
        target = stage.slots.lease(request.priority)
        if target is None:
            break
        stage.queue.take(request.id)
        batch.append(_hand_over(ledger, request, worker, target, now))
        if request.suspicion:
            break
    return tuple(batch)


def _hand_over(ledger: Ledger, request: Request, worker: Worker, target: SlotRef, now: float) -> Work:
    request.phase = "running"
    request.attempt += 1
    request.attempts_here += 1
    request.worker, request.target, request.sent_at = worker.incarnation, target, now
    request.tokens_at_dispatch = len(request.tokens)
    request.resumed += bool(request.tokens)
    worker.credit -= 1
    request.company_at_dispatch = worker.company.area(now)
    ledger.hold(worker, request, now)
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
        request.grounds.keep,
    )


def adapt(ledger: Ledger, memory: Memory, now: float) -> None:
    """Let the controllers look at the queues and the memory; about once a second."""
    for stage in ledger.stages.values():
        stage.usage.sample(now)
        for name in stage.workers & memory.resident_bytes.keys():
            worker = ledger.workers[name]
            if worker.largest:
                stage.control.observe_memory(worker.largest, memory.resident_bytes[name], stage.max_batch)
        stage.control.decide(
            Load(
                most=stage.max_batch,
                queue=len(stage.queue),
                workers=max(stage.desired, 1),
                target_s=stage.target_s,
                available_bytes=memory.available_bytes,
            ),
            now,
        )
