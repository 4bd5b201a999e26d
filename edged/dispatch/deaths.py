"""What follows from the death of a worker: its work goes on elsewhere, a replacement comes: pure."""

from __future__ import annotations

from math import inf

from edged.dispatch.endings import abandon, end, refuse, requeue
from edged.dispatch.events import Command, Died, IdleAsked
from edged.dispatch.ledger import Ledger, Stage, Worker
from edged.dispatch.losses import is_accelerator
from edged.dispatch.staffing import STAYING, discard, missing, spawn, stop, workers_of
from edged.dispatch.trials import call_off, on_trial, vacated
from edged.errors import DeviceAbsent, DeviceLost, Poisoned, StageUnavailable

CRASH_WEIGHT = 8
"""A crash, a fault, a hang or an end for lack of memory speaks against what was being worked on."""
KILLED_WEIGHT = 1
"""A SIGKILL from an operator or a test says next to nothing about it."""
POISON_LIMIT = 2 * CRASH_WEIGHT
"""Two crashes on one request without a token of progress: it is the request."""
MAX_DEATHS = 24
"""However much progress it makes, a request that outlives this many workers is given up."""
LOOP_LIMIT = 5 * CRASH_WEIGHT
"""More than five crashes within `LOOP_WINDOW_S` without one finished item: it is the stage (Erlang/OTP's
restart intensity, scaled to processes that load models)."""
LOOP_WINDOW_S = 60.0
RETRY_FAILED_S = 30.0
MAX_BACKOFF_S = 5.0
LOST = frozenset({DeviceLost.code, DeviceAbsent.code})
ABORTED = "killed by SIGABRT"
"""How llama.cpp ends a process whose accelerator reports an error (`ggml_abort`)."""


def device_lost(worker: Worker, reason: str) -> bool:
    """Whether a worker died of its device: it said so, or its runtime gave up on an accelerator."""
    return worker.fault_code in LOST or (reason == ABORTED and is_accelerator(worker.device))


def bury(ledger: Ledger, event: Died, now: float) -> list[Command]:
    """Take back what a dead worker held, and see to a replacement."""
    worker = ledger.workers.get(event.worker)
    if worker is None:
        return []
    ledger.lose(worker, now)
    stage = ledger.stages[worker.stage]
    if worker.remote is not None:
        return _take_up_again(ledger, stage, worker, 0, now)
    weight = KILLED_WEIGHT if event.killed and worker.state != "dying" else CRASH_WEIGHT
    commands = _take_up_again(ledger, stage, worker, 0 if event.excused else weight, now)
    if worker.state == "stopping" or worker.retiring or (ledger.draining and not ledger.requests):
        return commands + vacated(ledger, stage)
    if on_trial(stage, worker):
        return commands + call_off(ledger, stage, worker.fault or event.reason, worker.fault_code)
    stage.restarts += 1
    stage.loss = worker.fault or event.reason
    if event.moved:
        return commands + replace(ledger, stage)
    if not worker.fruitful:
        stage.misfortunes.append((now, LOOP_LIMIT + 1 if worker.hopeless else weight))
    return commands + _respawn(ledger, stage, worker.fault or event.reason, now)


def _take_up_again(ledger: Ledger, stage: Stage, worker: Worker, weight: int, now: float) -> list[Command]:
    """Put what a dead worker held back to its place in the queue; give up on poison."""
    commands: list[Command] = []
    for number in sorted(worker.held):
        request = ledger.requests[number]
        if request.phase == "leaving":
            end(ledger, request)
            continue
        requeue(ledger, request, now)
        request.deaths += weight > 0
        if len(request.tokens) == request.tokens_at_dispatch:
            request.suspicion += weight
        if request.suspicion >= POISON_LIMIT or request.deaths >= MAX_DEATHS:
            stage.queue.remove(number)
            commands += refuse(ledger, request, _poisoned(stage, worker))
    return commands


def _poisoned(stage: Stage, worker: Worker) -> Poisoned:
    cause = f" ({worker.fault})" if worker.fault else ""
    return Poisoned(
        f"stage {stage.name!r} died each time it worked on this request{cause}; it is not tried again"
    )


def _respawn(ledger: Ledger, stage: Stage, reason: str, now: float) -> list[Command]:
    """Start a replacement, later and later while nothing works; give up for a while in a crash loop."""
    if missing(ledger, stage) <= 0:
        return []
    while stage.misfortunes and stage.misfortunes[0][0] < now - LOOP_WINDOW_S:
        stage.misfortunes.popleft()
    points = sum(weight for _, weight in stage.misfortunes)
    if points > LOOP_LIMIT:
        return _give_up(ledger, stage, reason, now)
    delay_s = 0.0 if points <= CRASH_WEIGHT else min(MAX_BACKOFF_S, 0.1 * 2 ** (points / CRASH_WEIGHT))
    return spawn(stage, 1, delay_s)


def _give_up(ledger: Ledger, stage: Stage, reason: str, now: float) -> list[Command]:
    """Stop trying for a while; old workers that wait to be replaced serve on instead."""
    stage.misfortunes.clear()
    stage.retry_at = now + RETRY_FAILED_S
    for name in stage.workers:
        ledger.workers[name].retiring = False
    if any(ledger.workers[name].state in STAYING for name in stage.workers):
        stage.trouble = f"replacement failed, the old worker serves on: {reason}"
        return []
    stage.failed = reason
    return _refuse_waiting(ledger, stage, RETRY_FAILED_S)


def retry_failed(ledger: Ledger, now: float) -> list[Command]:
    """What a stage gave up is tried again now and then: nobody may be there to ask for it.

    What has come to an idle stage all the same is refused.
    """
    commands: list[Command] = []
    for stage in ledger.stages.values():
        if stage.idle:
            commands += _refuse_waiting(ledger, stage, None)
        elif 0 < stage.retry_at <= now and not ledger.draining:
            lacking = missing(ledger, stage)
            stage.retry_at = now + RETRY_FAILED_S if lacking > 0 else 0.0
            commands += spawn(stage, lacking)
    return commands


def replace(ledger: Ledger, stage: Stage) -> list[Command]:
    """Load beside, switch, drain, stop: the old workers serve until the new ones are ready."""
    stage.misfortunes.clear()
    stage.failed = stage.trouble = stage.loss = ""
    stage.trial = None
    commands: list[Command] = []
    for worker in workers_of(ledger, stage):
        if worker.state == "starting":
            commands += discard(worker, "replaced before it was ready")
        elif worker.state == "ready":
            worker.retiring = True
    return commands + spawn(stage, missing(ledger, stage))


def idle(ledger: Ledger, event: IdleAsked, now: float) -> list[Command]:
    """Leave a stage without workers: those that serve finish what they hold, what waits is refused."""
    stage = ledger.stages[event.stage]
    stage.misfortunes.clear()
    stage.trial = None
    stage.failed, stage.trouble, stage.retry_at, stage.desired = event.reason, "", inf, event.wanted
    stage.loss = ""
    commands: list[Command] = []
    for worker in workers_of(ledger, stage):
        if worker.state == "ready":
            commands += stop(worker, now)
        elif worker.state != "stopping":
            commands += discard(worker, "its stage has nothing to run any more")
    return commands + _refuse_waiting(ledger, stage, None)


def _refuse_waiting(ledger: Ledger, stage: Stage, again_s: float | None) -> list[Command]:
    error = StageUnavailable(f"stage {stage.name!r} is down: {stage.failed}", retry_after_s=again_s)
    return [command for number in list(stage.queue) for command in abandon(ledger, number, error)]
