"""Who works at a stage: starting, stopping and counting workers: pure."""

from __future__ import annotations

from edged.dispatch.events import Command, Kill, Send, Spawn
from edged.dispatch.ledger import Ledger, Stage, Worker
from edged.messages import Stop

STAYING = frozenset({"starting", "ready"})


def kill(worker: Worker, reason: str) -> list[Command]:
    """Have a worker SIGKILLed; its slots stay leased until the kernel says that it is gone."""
    if worker.state == "dying":
        return []
    worker.state, worker.credit, worker.fault = "dying", 0, worker.fault or reason
    if worker.remote is not None:
        return [Send(worker.incarnation, Stop())]
    return [Kill(worker.incarnation, reason)]


def stop(worker: Worker, now: float) -> list[Command]:
    """Have a worker finish what it holds and exit."""
    worker.state, worker.retiring, worker.credit, worker.heard_at = "stopping", False, 0, now
    return [Send(worker.incarnation, Stop())]


def discard(worker: Worker, reason: str) -> list[Command]:
    """Have a worker SIGKILLed that nobody will replace."""
    worker.retiring = True
    return kill(worker, reason)


def workers_of(ledger: Ledger, stage: Stage) -> list[Worker]:
    """The workers of a stage in a fixed order, so that the same events have the same consequences."""
    return [ledger.workers[name] for name in sorted(stage.workers)]


def missing(ledger: Ledger, stage: Stage) -> int:
    """How many workers a stage lacks; below 0: has too many, spawns that were decided on included."""
    if stage.idle:
        return -stage.starting
    staying = [
        worker for worker in workers_of(ledger, stage) if worker.state in STAYING and not worker.retiring
    ]
    return stage.desired - len(staying) - stage.starting


def spawn(stage: Stage, count: int, delay_s: float = 0.0) -> list[Command]:
    """Start so many workers."""
    stage.starting += max(0, count)
    return [Spawn(stage.name, delay_s)] * count


def wanted(ledger: Ledger, stage: Stage) -> bool:
    """Whether a spawn that was decided on is still due.

    One too many (a reload meanwhile) is called off, and one beside workers that a trial wants gone first:
    `trials.vacated` makes up for it.
    """
    leaving = any(worker.state == "stopping" for worker in workers_of(ledger, stage))
    waits = stage.trial is not None and stage.trial.alone and leaving
    if missing(ledger, stage) >= 0 and not waits:
        return True
    stage.starting -= 1
    return False


def start(ledger: Ledger, stage: Stage) -> list[Command]:
    """Start the workers that a stage lacks."""
    return spawn(stage, missing(ledger, stage))
