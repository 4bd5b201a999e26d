"""What happens next: pure decisions over the ledger.

`decide(ledger, event, now)` changes the ledger and returns commands; `dispatcher.py` carries them out in
order. No clock, no process, no log, no socket here, so every race is a sequence that a test can write.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import assert_never

from edged.dispatch.batching import adapt, dispatch
from edged.dispatch.deaths import bury, idle, replace, retry_failed
from edged.dispatch.endings import abandon, end, refuse, requeue
from edged.dispatch.events import (
    Asked,
    Command,
    Deliver,
    Died,
    Event,
    GiveUpAsked,
    IdleAsked,
    Joined,
    Left,
    ReplaceAsked,
    Returned,
    ScaleAsked,
    Send,
    SkippingAsked,
    Spoke,
    Stream,
    Ticked,
    TrialAsked,
    Waited,
)
from edged.dispatch.ledger import Ledger, Request, Stage, Worker
from edged.dispatch.offload import recalls
from edged.dispatch.peer import PEER, Remote
from edged.dispatch.requests import StageTiming
from edged.dispatch.skipping import change, join, note
from edged.dispatch.staffing import kill, stop
from edged.dispatch.trials import call_off, scale, try_out
from edged.errors import (
    BY_CODE,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    EdgedError,
    ModelError,
    from_code,
)
from edged.messages import (
    Caches,
    Done,
    Failed,
    Fault,
    FromWorker,
    Gone,
    Layers,
    Ping,
    Pong,
    Ready,
    SlotRef,
    Tokens,
    Trouble,
)

PING_INTERVAL_S = 5.0


def decide(ledger: Ledger, event: Event, now: float) -> list[Command]:
    """Apply an event and return what to do about it, in order."""
    return decide_all(ledger, (event,), now)


def decide_all(ledger: Ledger, events: Collection[Event], now: float) -> list[Command]:
    """Apply events that came together; what they made room for is handed out once, behind them all."""
    commands = [command for event in events for command in _consequences(ledger, event, now)]
    return commands if _makes_no_room(ledger, events) else commands + dispatch(ledger, now)


def _makes_no_room(ledger: Ledger, events: Collection[Event]) -> bool:
    """Whether nothing but tokens came, nothing waits, and no lease ends by the clock: every step ends so."""
    return (
        all(isinstance(event, Spoke) and isinstance(event.message, Tokens) for event in events)
        and not any(stage.queue for stage in ledger.stages.values())
        and ledger.leases.mode not in {"turns", "single"}
        and ledger.duty.share >= 1.0
    )


def _consequences(ledger: Ledger, event: Event, now: float) -> list[Command]:  # noqa: PLR0911 (an event)
    match event:
        case Spoke(worker, message):
            return _heard(ledger, worker, message, now)
        case Died():
            return bury(ledger, event, now)
        case Joined():
            return _joined(ledger, event, now)
        case Returned():
            return _returned(ledger, event, now)
        case Left(request):
            return abandon(ledger, request, Cancelled("the client left"), told=True)
        case Ticked(memory):
            if memory is not None:
                adapt(ledger, memory, now)
            return [
                *_overdue(ledger, now),
                *_silent(ledger, now),
                *retry_failed(ledger, now),
                *recalls(ledger),
            ]
        case Waited():
            return []
        case _:
            return _asked(ledger, event, now)


def _joined(ledger: Ledger, event: Joined, now: float) -> list[Command]:
    worker = Worker(event.worker, event.stage, now, now, state="ready", loaded=True, credit=event.credit)
    worker.device, worker.variant, worker.remote = PEER + event.peer, event.variant, Remote(event.peer)
    ledger.workers[event.worker] = worker
    ledger.stages[event.stage].remotes.add(event.worker)
    return []


def _asked(ledger: Ledger, event: Asked, now: float) -> list[Command]:
    """What an operator, a plan or a reload wants of a stage."""
    match event:
        case ReplaceAsked(stage):
            return replace(ledger, ledger.stages[stage])
        case IdleAsked():
            return idle(ledger, event, now)
        case TrialAsked():
            return try_out(ledger, event, now)
        case ScaleAsked():
            return scale(ledger, event, now)
        case GiveUpAsked(stage, reason):
            return call_off(ledger, ledger.stages[stage], reason)
        case SkippingAsked():
            return change(ledger, event, now)
        case _:
            assert_never(event)


def _noted(worker: Worker, message: Caches | Layers | Trouble) -> list[Command]:
    match message:
        case Caches(counters):
            worker.caches = counters
        case Layers(report):
            worker.layers = report
        case Trouble(reason):
            worker.trouble = reason
    return []


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
            return _failed(ledger, worker, message, now)
        case Tokens():
            return _tokens(ledger, worker, message)
        case Gone():
            return _gone(ledger, worker, message, now)
        case Fault(code, text):
            worker.fault_code = code
            worker.hopeless = issubclass(BY_CODE.get(code, EdgedError), ConfigError | ModelError)
            return kill(worker, text)
        case Pong():
            worker.pinged_at = 0.0
            return []
        case Caches() | Layers() | Trouble():
            return _noted(worker, message)
        case _:
            assert_never(message)


def _ready(ledger: Ledger, worker: Worker, message: Ready, now: float) -> list[Command]:
    if worker.state != "starting":
        return []
    worker.state, worker.loaded, worker.credit = "ready", True, message.credit
    worker.load_s, worker.details, worker.lanes = message.load_s, message.details, message.lanes
    stage = ledger.stages[worker.stage]
    stage.failed = stage.trouble = stage.loss = ""
    stage.trial = None
    if stage.changed:
        stage.forget_costs()
    retired = [
        w for name in sorted(stage.workers) if (w := ledger.workers[name]).retiring and w.state == "ready"
    ]
    serving = sum(ledger.workers[name].state == "ready" for name in stage.workers)
    count = max(1, serving - stage.desired)  # more than one where fewer are wanted than before
    return [command for old in retired[:count] for command in stop(old, now)]


def _take_back(ledger: Ledger, worker: Worker, message: Done | Failed | Gone, now: float) -> Request | None:
    """End a worker's hold on a request, if that is what the lease says; else count a stale word."""
    held = ledger.requests.get(message.request)
    if held is None or held.worker != worker.incarnation or worker.held.get(held.id) != message.attempt:
        ledger.stale += 1
        return None
    if isinstance(message, Done):
        if held.target is None or _lease(held.target) != _lease(message.target):
            ledger.stale += 1
            return None
        worker.batch_items += 1
        worker.batch_s += message.compute_s
    ledger.let_go(worker, held.id, now)
    if worker.remote is not None:
        worker.remote.balance += 1
    if worker.state == "ready":
        worker.credit += message.credit
    return held


def _lease(ref: SlotRef) -> tuple[int, int, int]:
    return ref.arena, ref.slot, ref.generation


def _done(ledger: Ledger, worker: Worker, message: Done, now: float) -> list[Command]:
    request = _take_back(ledger, worker, message, now)
    if request is None:
        return []
    worker.fruitful = True
    if request.phase == "leaving":
        end(ledger, request)
        return []
    stage = ledger.stages[worker.stage]
    wait_s = request.sent_at - request.queued_at
    _learn(stage, worker, request, message, now)
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
    note(ledger, request, worker.variant, message.judgement)
    return _advance(ledger, request, message.target, now)


def _learn(stage: Stage, worker: Worker, request: Request, message: Done, now: float) -> None:
    """What an answer says about the costs of whoever made it."""
    if worker.remote is not None:
        stage.done += 1
        worker.remote.served(now - request.sent_at)
        return
    stage.finish_item(request.sent_at - request.queued_at, message.compute_s, message.batch, now)
    if stage.streaming:
        stage.finish_service(worker.company_of(request, now), message.compute_s, now)
        stage.finish_tokens(len(request.tokens) - request.tokens_at_dispatch, message.compute_s)


def _advance(ledger: Ledger, request: Request, result: SlotRef, now: float) -> list[Command]:
    """Move on to the next stage with the result as input, or deliver it."""
    if request.position + 1 < len(request.route):
        ledger.release(request.source)
        request.source, request.target, request.worker = result, None, ""
        request.position += 1
        request.phase = "queued"
        request.suspicion = request.attempts_here = 0
        join(ledger, request, now)
        return []
    ledger.completed += 1
    timings, skipped = tuple(request.timings), request.grounds.skipped
    node = ledger.node
    if timings and timings[-1].device.startswith(PEER):
        node = timings[-1].device.removeprefix(PEER)
    deliver = Deliver(request.id, result, timings, request.resumed, skipped, node)
    end(ledger, request)
    return [deliver]


def _failed(ledger: Ledger, worker: Worker, message: Failed, now: float) -> list[Command]:
    request = _take_back(ledger, worker, message, now)
    if request is None:
        return []
    worker.fruitful = True
    ledger.stages[worker.stage].errors += 1
    return refuse(ledger, request, from_code(message.code, message.message, message.param))


def _gone(ledger: Ledger, worker: Worker, message: Gone, now: float) -> list[Command]:
    if request := _take_back(ledger, worker, message, now):
        _let_go(ledger, request, now)
    return []


def _let_go(ledger: Ledger, request: Request, now: float) -> None:
    """No worker holds it: it goes on while its client waits, whether somebody asked for it back or not."""
    if request.phase == "running":
        requeue(ledger, request, now)
    else:
        end(ledger, request)


def _returned(ledger: Ledger, event: Returned, now: float) -> list[Command]:
    """As `Gone`, but for the request, which goes on; and the peer's offer was not worth anything."""
    worker = ledger.workers.get(event.worker)
    if worker is None:
        return []
    if request := _take_back(ledger, worker, Gone(event.request, event.attempt), now):
        _let_go(ledger, request, now)
    if worker.remote is not None:
        worker.remote.balance = -worker.remote.offer.free
    return []


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
    node = worker.remote.peer if worker.remote else ledger.node
    return [Stream(request.id, message.text, len(message.tokens), message.tokens, node)]


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
        if worker.remote is not None:
            continue
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
