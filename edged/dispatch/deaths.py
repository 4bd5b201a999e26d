"""What follows from the death of a worker: its work goes on elsewhere, a replacement comes: pure."""

from __future__ import annotations

from math import inf

from edged.dispatch.endings import abandon, end, refuse
from edged.dispatch.events import Command, Died, IdleAsked, Kill, Send, Spawn
from edged.dispatch.ledger import Ledger, Stage, Worker
from edged.errors import Poisoned, StageUnavailable
from edged.messages import Stop

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
STAYING = frozenset({"starting", "ready"})


def kill(worker: Worker, reason: str) -> list[Command]:
    """Have a worker SIGKILLed; its slots stay leased until the kernel says that it is gone."""
    if worker.state == "dying":
        return []
    worker.state, worker.credit, worker.fault = "dying", 0, worker.fault or reason
    return [Kill(worker.incarnation, reason)]


def stop(worker: Worker, now: float) -> list[Command]:
    """Have a worker finish what it holds and exit."""
    worker.state, worker.retiring, worker.credit, worker.heard_at = "stopping", False, 0, now
    return [Send(worker.incarnation, Stop())]


def bury(ledger: Ledger, event: Died, now: float) -> list[Command]:
    """Take back what a dead worker held, and see to a replacement."""
    worker = ledger.workers.get(event.worker)
    if worker is None:
        return []
    ledger.lose(worker, now)
    stage = ledger.stages[worker.stage]
    weight = KILLED_WEIGHT if event.killed and worker.state != "dying" else CRASH_WEIGHT
    commands = _take_up_again(ledger, stage, worker, weight, now)
    if worker.state == "stopping" or worker.retiring or (ledger.draining and not ledger.requests):
        return commands
    stage.restarts += 1
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
        if request.target is not None:
            ledger.release(request.target)
        request.target, request.worker, request.phase = None, "", "queued"
        request.deaths += 1
        request.queued_at = now
        if len(request.tokens) == request.tokens_at_dispatch:
            request.suspicion += weight
        if request.suspicion >= POISON_LIMIT or request.deaths >= MAX_DEATHS:
            commands += refuse(ledger, request, _poisoned(stage, worker))
        else:
            stage.queue.put(request)
    return commands


def _poisoned(stage: Stage, worker: Worker) -> Poisoned:
    cause = f" ({worker.fault})" if worker.fault else ""
    return Poisoned(
        f"stage {stage.name!r} died each time it worked on this request{cause}; it is not tried again"
    )


def _respawn(ledger: Ledger, stage: Stage, reason: str, now: float) -> list[Command]:
    """Start a replacement, later and later while nothing works; give up for a while in a crash loop."""
    if _missing(ledger, stage) <= 0:
        return []
    while stage.misfortunes and stage.misfortunes[0][0] < now - LOOP_WINDOW_S:
        stage.misfortunes.popleft()
    points = sum(weight for _, weight in stage.misfortunes)
    if points > LOOP_LIMIT:
        return _give_up(ledger, stage, reason, now)
    delay_s = 0.0 if points <= CRASH_WEIGHT else min(MAX_BACKOFF_S, 0.1 * 2 ** (points / CRASH_WEIGHT))
    return _spawn(stage, 1, delay_s)


def _missing(ledger: Ledger, stage: Stage) -> int:
    if stage.idle:
        return -stage.starting
    staying = [
        worker
        for name in stage.workers
        if (worker := ledger.workers[name]).state in STAYING and not worker.retiring
    ]
    return stage.desired - len(staying) - stage.starting


def _spawn(stage: Stage, count: int, delay_s: float = 0.0) -> list[Command]:
    stage.starting += max(0, count)
    return [Spawn(stage.name, delay_s)] * count


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
            missing = _missing(ledger, stage)
            stage.retry_at = now + RETRY_FAILED_S if missing > 0 else 0.0
            commands += _spawn(stage, missing)
    return commands


def replace(ledger: Ledger, stage: Stage) -> list[Command]:
    """Load beside, switch, drain, stop: the old workers serve until the new ones are ready."""
    stage.misfortunes.clear()
    stage.failed = stage.trouble = ""
    commands: list[Command] = []
    for name in sorted(stage.workers):
        worker = ledger.workers[name]
        if worker.state == "starting":
            worker.retiring = True
            commands += kill(worker, "replaced before it was ready")
        elif worker.state == "ready":
            worker.retiring = True
    return commands + _spawn(stage, _missing(ledger, stage))


def idle(ledger: Ledger, event: IdleAsked, now: float) -> list[Command]:
    """Leave a stage without workers: those that serve finish what they hold, what waits is refused."""
    stage = ledger.stages[event.stage]
    stage.misfortunes.clear()
    stage.failed, stage.trouble, stage.retry_at, stage.desired = event.reason, "", inf, event.wanted
    commands: list[Command] = []
    for worker in map(ledger.workers.__getitem__, sorted(stage.workers)):
        if worker.state == "ready":
            commands += stop(worker, now)
        elif worker.state != "stopping":
            worker.retiring = True
            commands += kill(worker, "its stage has nothing to run any more")
    return commands + _refuse_waiting(ledger, stage, None)


def _refuse_waiting(ledger: Ledger, stage: Stage, again_s: float | None) -> list[Command]:
    error = StageUnavailable(f"stage {stage.name!r} is down: {stage.failed}", retry_after_s=again_s)
    return [command for number in list(stage.queue) for command in abandon(ledger, number, error)]


def wanted(ledger: Ledger, stage: Stage) -> bool:
    """Whether a spawn that was decided on is still due; one too many (a reload meanwhile) is called off."""
    if _missing(ledger, stage) >= 0:
        return True
    stage.starting -= 1
    return False


def start(ledger: Ledger, stage: Stage) -> list[Command]:
    """Start the workers that a stage lacks."""
    return _spawn(stage, _missing(ledger, stage))
