"""From the ledger to the claims of the workers that share cores, and from the grants to messages: pure."""

from __future__ import annotations

from collections.abc import Iterator

from edged.dispatch.events import Command, Send
from edged.dispatch.leases import Claim, Turn, assign, core_set, free_cores, groups
from edged.dispatch.ledger import Ledger, Stage, Worker
from edged.messages import Cores


def settle(ledger: Ledger, now: float) -> list[Command]:
    """Fit the leases to who has work now; a worker without work keeps the lease that it has."""
    leases = ledger.leases
    if ledger.duty.resting:
        return list(_rest(ledger))
    commands = list(_wake(ledger))
    if not leases.cores:
        return commands
    sets = {
        name: core_set(worker.device, leases.cores)
        for name, worker in ledger.workers.items()
        if worker.state in {"ready", "stopping"}
    }
    if not any(sets.values()):
        return commands
    claims = {claim.worker: claim for stage in ledger.stages.values() for claim in _claims(ledger, stage)}
    turns: dict[str, Turn] = {}
    leases.idle = {name for name, cores in sets.items() if cores and name not in claims}
    for names, cores in groups(sets):
        present = [claims[name] for name in names if name in claims]
        free = free_cores(cores, leases)
        grant = assign(present, free, leases.mode, leases.turns.get(names[0], Turn()), now)
        turns[names[0]] = grant.turn
        for name, count in grant.cores.items():
            commands += _lend(ledger.workers[name], min(count, len(sets[name])), len(sets[name]))
    leases.turns = turns
    return commands


def _rest(ledger: Ledger) -> Iterator[Command]:
    """Pause whoever works or could: a batch in hand is finished all the same."""
    for stage in ledger.stages.values():
        for claim in _claims(ledger, stage):
            worker = ledger.workers[claim.worker]
            if not core_set(worker.device, ledger.leases.cores):
                ledger.duty.paused.add(worker.incarnation)
            yield from _lend(worker, 0, 1)


def _wake(ledger: Ledger) -> Iterator[Command]:
    """End the rest of those to whom no cores are lent; the others get theirs with the next lease."""
    paused = [worker for name in ledger.duty.paused if (worker := ledger.workers.get(name))]
    ledger.duty.paused.clear()
    for worker in paused:
        worker.cores = None
        yield Send(worker.incarnation, Cores(max(1, len(ledger.leases.cores))))


def _lend(worker: Worker, count: int, everything: int) -> list[Command]:
    """Tell a worker its lease if it is another than the one it has: everything, at first."""
    if count == (everything if worker.cores is None else worker.cores):
        return []
    worker.cores = count
    return [Send(worker.incarnation, Cores(count))]


def _claims(ledger: Ledger, stage: Stage) -> Iterator[Claim]:
    """Workers of a stage that compute, and as many of the others as could take what waits."""
    waiting = len(stage.queue) if stage.turn() is not None else 0
    for worker in sorted((ledger.workers[name] for name in stage.workers), key=by_room):
        takes = waiting > 0 and worker.credit > 0 and (stage.streaming or not worker.held)
        if worker.held or takes:
            waiting -= takes
            yield _claim(ledger, stage, worker, takes=takes)


def by_room(worker: Worker) -> tuple[int, str]:
    """Order in which workers are given work, and so cores for it: most credit first."""
    return -worker.credit, worker.incarnation


def _claim(ledger: Ledger, stage: Stage, worker: Worker, *, takes: bool) -> Claim:
    held = [ledger.requests[number] for number in worker.held]
    size = len(held) or min(len(stage.queue), stage.limit)
    urgent = stage.queue.counts()["interactive"] > 0
    return Claim(
        worker=worker.incarnation,
        streaming=stage.streaming,
        holding=bool(held),
        urgent=urgent or any(request.priority == "interactive" for request in held),
        awaited=stage.streaming and (takes or any(not request.tokens for request in held)),
        predicted_s=size * stage.item_s,
        waits_since=min([stage.queue.oldest(), *(request.queued_at for request in held)]),
    )
