"""What happens next: pure decisions over the ledger.

`decide(ledger, event, now)` changes the ledger and returns commands; `dispatcher.py` carries them out in
order. No clock, no process, no log, no socket here, so every race is a sequence that a test can write.
"""

from __future__ import annotations

from math import inf
from typing import assert_never

from edged.dispatch.batching import dispatch
from edged.dispatch.deaths import RETRY_FAILED_S, bury, kill, replace, retry_failed
from edged.dispatch.endings import abandon, end, refuse
from edged.dispatch.events import (
    Command,
    Deliver,
    Died,
    Event,
    Left,
    ReplaceAsked,
    Send,
    Spoke,
    Stream,
    Ticked,
)
from edged.dispatch.ledger import Ledger, Request, Worker
from edged.dispatch.requests import StageTiming
from edged.errors import (
    BY_CODE,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    Draining,
    EdgedError,
    ModelError,
    Overloaded,
    StageUnavailable,
    from_code,
)
from edged.messages import (
    Caches,
    Done,
    Failed,
    Fault,
    FromWorker,
    Gone,
    Ping,
    Pong,
    Ready,
    SlotRef,
    Stop,
    Tokens,
)

PING_INTERVAL_S = 5.0
MINIMUM_WAIT_S = 1.0
"""The shortest wait that a refused client is told; before anything was measured, the only one."""


def decide(ledger: Ledger, event: Event, now: float) -> list[Command]:
    """Apply an event and return what to do about it, in order."""
    commands: list[Command]
    match event:
        case Spoke(worker, message):
            commands = _heard(ledger, worker, message, now)
        case Died():
            commands = bury(ledger, event, now)
        case Left(request):
            commands = abandon(ledger, request, Cancelled("the client left"), told=True)
        case Ticked():
            commands = [*_overdue(ledger, now), *_silent(ledger, now), *retry_failed(ledger, now)]
        case ReplaceAsked(stage):
            commands = replace(ledger, ledger.stages[stage])
        case _:
            assert_never(event)
    return commands + dispatch(ledger, now)


# --------------------------------------------------------------------- admission


def admit(ledger: Ledger, route: tuple[str, ...], operation: str, deadline: float, now: float) -> Request:
    """Accept a request under a leased entry slot, or raise what the client is told at once."""
    try:
        source = _entry_slot(ledger, route)
    except EdgedError as error:
        ledger.count_rejection(error.code)
        raise
    ledger.last_request += 1
    ledger.accepted += 1
    request = Request(ledger.last_request, route, operation, source, deadline, accepted_at=now, queued_at=now)
    ledger.requests[request.id] = request
    return request


def _entry_slot(ledger: Ledger, route: tuple[str, ...]) -> SlotRef:
    if ledger.draining:
        raise Draining("the daemon is stopping; try again when it is back", retry_after_s=5)
    for stage in map(ledger.stages.__getitem__, route):
        if stage.failed:
            again_s = None if stage.retry_at == inf else RETRY_FAILED_S
            raise StageUnavailable(f"stage {stage.name!r} is down: {stage.failed}", retry_after_s=again_s)
    slot = ledger.entry.lease()
    if slot is None:
        wait_s = max(MINIMUM_WAIT_S, ledger.predicted_wait_s(route))
        raise Overloaded(
            f"all {ledger.entry.count} entry slots are taken; try again in {wait_s:.1f} s",
            retry_after_s=wait_s,
        )
    return slot


def enqueue(ledger: Ledger, request: Request, source: SlotRef, now: float) -> list[Command]:
    """Queue an admitted request whose payload now lies in its entry slot."""
    request.source = source
    ledger.stages[request.stage].queue.append(request.id)
    return dispatch(ledger, now)


def _heard(ledger: Ledger, name: str, message: FromWorker, now: float) -> list[Command]:  # noqa: PLR0911 (one return a message)
    worker = ledger.workers.get(name)
    if worker is None:
        ledger.stale += 1
        return []
    worker.heard_at = now
    match message:
        case Ready():
            return _ready(ledger, worker, message, now)
        case Done():
            return _done(ledger, worker, message, now)
        case Failed():
            return _failed(ledger, worker, message)
        case Tokens():
            return _tokens(ledger, worker, message)
        case Gone(request, attempt, credit):
            if held := _take_back(ledger, worker, request, attempt, credit):
                end(ledger, held)
            return []
        case Fault(code, text):
            worker.hopeless = issubclass(BY_CODE.get(code, EdgedError), ConfigError | ModelError)
            return kill(worker, text)
        case Pong():
            worker.pinged_at = 0.0
            return []
        case Caches(counters):
            worker.caches = counters
            return []
        case _:
            assert_never(message)


def _ready(ledger: Ledger, worker: Worker, message: Ready, now: float) -> list[Command]:
    if worker.state != "starting":
        return []
    worker.state, worker.credit = "ready", message.credit
    worker.load_s, worker.details = message.load_s, message.details
    stage = ledger.stages[worker.stage]
    stage.failed = stage.trouble = ""
    retired = [
        w for name in sorted(stage.workers) if (w := ledger.workers[name]).retiring and w.state == "ready"
    ]
    serving = sum(ledger.workers[name].state == "ready" for name in stage.workers)
    count = max(1, serving - stage.desired)  # more than one where fewer are wanted than before
    return [command for old in retired[:count] for command in _stop(old, now)]


def _stop(worker: Worker, now: float) -> list[Command]:
    worker.state, worker.retiring, worker.credit, worker.heard_at = "stopping", False, 0, now
    return [Send(worker.incarnation, Stop())]


def _take_back(
    ledger: Ledger, worker: Worker, request: int, attempt: int, credit: int, target: SlotRef | None = None
) -> Request | None:
    """End a worker's hold on a request, if that is what the lease says; else count a stale word."""
    held = ledger.requests.get(request)
    if held is None or held.worker != worker.incarnation or worker.held.get(request) != attempt:
        ledger.stale += 1
        return None
    if target is not None and (held.target is None or _lease(held.target) != _lease(target)):
        ledger.stale += 1
        return None
    del worker.held[request]
    if worker.state == "ready":
        worker.credit += credit
    return held


def _lease(ref: SlotRef) -> tuple[int, int, int]:
    return ref.arena, ref.slot, ref.generation


def _done(ledger: Ledger, worker: Worker, message: Done, now: float) -> list[Command]:
    request = _take_back(ledger, worker, message.request, message.attempt, message.credit, message.target)
    if request is None:
        return []
    worker.fruitful = True
    if request.phase == "leaving":
        end(ledger, request)
        return []
    stage = ledger.stages[worker.stage]
    wait_s = request.sent_at - request.queued_at
    stage.observe(wait_s, message.compute_s, message.batch, now)
    request.timings.append(
        StageTiming(
            stage=stage.name,
            wait_s=wait_s,
            compute_s=message.compute_s,
            batch=message.batch,
            device=worker.device,
            variant=worker.variant,
            attempts=request.attempts_here,
        )
    )
    return _advance(ledger, request, message.target, now)


def _advance(ledger: Ledger, request: Request, result: SlotRef, now: float) -> list[Command]:
    """Move on to the next stage with the result as input, or deliver it."""
    if request.position + 1 < len(request.route):
        ledger.release(request.source)
        request.source, request.target, request.worker = result, None, ""
        request.position += 1
        request.phase, request.queued_at = "queued", now
        request.suspicion = request.attempts_here = 0
        ledger.stages[request.stage].queue.append(request.id)
        return []
    ledger.completed += 1
    deliver = Deliver(request.id, result, tuple(request.timings), request.resumed)
    end(ledger, request)
    return [deliver]


def _failed(ledger: Ledger, worker: Worker, message: Failed) -> list[Command]:
    request = _take_back(ledger, worker, message.request, message.attempt, message.credit)
    if request is None:
        return []
    worker.fruitful = True
    ledger.stages[worker.stage].errors += 1
    return refuse(ledger, request, from_code(message.code, message.message, message.param))


def _tokens(ledger: Ledger, worker: Worker, message: Tokens) -> list[Command]:
    request = ledger.requests.get(message.request)
    if request is None or worker.held.get(message.request) != message.attempt:
        ledger.stale += 1
        return []
    if request.phase == "leaving":
        return []
    if message.first != len(request.tokens):
        return kill(worker, f"tokens of request {request.id} are not contiguous")
    request.tokens.extend(message.tokens)
    request.characters += len(message.text)
    request.suspicion = 0
    worker.fruitful = True
    return [Stream(request.id, message.text, len(message.tokens))]


def _overdue(ledger: Ledger, now: float) -> list[Command]:
    late = [r.id for r in ledger.requests.values() if r.deadline <= now and r.phase != "leaving"]
    error = DeadlineExceeded("the deadline passed before the answer was ready")
    return [command for number in late for command in abandon(ledger, number, error)]


def _silent(ledger: Ledger, now: float) -> list[Command]:
    """Kill who holds work, loads or was pinged, and has not been heard of for too long."""
    commands: list[Command] = []
    for worker in ledger.workers.values():
        stage = ledger.stages[worker.stage]
        silence_s = now - worker.heard_at
        if worker.state == "starting":
            if now - worker.started_at > stage.load_timeout_s:
                commands += kill(worker, f"not loaded after {stage.load_timeout_s:g} s")
        elif worker.held or worker.pinged_at or worker.state == "stopping":
            if silence_s > stage.timeout_s:
                commands += kill(worker, f"silent for {stage.timeout_s:g} s")
        elif silence_s > PING_INTERVAL_S and worker.state == "ready":
            worker.pinged_at = worker.heard_at = now
            commands.append(Send(worker.incarnation, Ping(0)))
    return commands
