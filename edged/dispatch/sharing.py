"""From the ledger to the claims of the workers that share cores, and from the grants to messages: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edged.dispatch.events import Command, Send
from edged.dispatch.leases import Claim, Turn, assign, core_set, free_cores, groups
from edged.dispatch.ledger import Ledger, Request, Stage, Worker
from edged.messages import Cores


def settle(ledger: Ledger, now: float) -> list[Command]:
    """Fit the leases to who has work now; a worker without work keeps the lease that it has."""
    leases = ledger.leases
    leases.idle = set()
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
    for names, cores in groups(sets):
        present = [claims[name] for name in names if name in claims]
        leases.idle.update(name for name in names if present and name not in claims)
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
        claims = list(_claims(ledger, stage))
        ledger.leases.idle |= stage.workers - {claim.worker for claim in claims}
        for claim in claims:
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
        room = len(worker.held) < stage.limit if stage.streaming else not worker.held
        takes = waiting > 0 and worker.credit > 0 and room
        if worker.held or takes:
            waiting -= takes
            yield _claim(ledger, stage, worker, takes=takes)


def by_room(worker: Worker) -> tuple[int, str]:
    """Order in which workers are given work, and so cores for it: most credit first."""
    return -worker.credit, worker.incarnation


def _claim(ledger: Ledger, stage: Stage, worker: Worker, *, takes: bool) -> Claim:
    held = [ledger.requests[number] for number in worker.held]
    size = len(held) or min(len(stage.queue), stage.limit)
    since = min([stage.queue.oldest(), *(request.queued_at for request in held)])
    urgent = stage.queue.counts()["interactive"] > 0
    return Claim(
        worker=worker.incarnation,
        streaming=stage.streaming,
        holding=bool(held),
        lanes=worker.lanes if held or not stage.max_wait_s else 1,  # a batch that is not full may not go yet
        urgent=urgent or any(request.priority == "interactive" for request in held),
        owes_since=_owes_since(ledger, stage, held, takes=takes) if stage.streaming else None,
        predicted_s=size * stage.item_s,
        waits_since=since if stage.streaming else max(since, stage.given_at),
    )


def _owes_since(ledger: Ledger, stage: Stage, held: Sequence[Request], *, takes: bool) -> float | None:
    next_one = stage.turn() if takes else None
    owing = [request for request in held if not request.tokens]
    owing += [] if next_one is None else [ledger.requests[next_one]]
    return min((request.accepted_at for request in owing), default=None)
