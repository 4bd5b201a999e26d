"""What this node offers to one peer now, out of the ledger: pure."""

from __future__ import annotations

from collections.abc import Mapping

from edged.dispatch.ledger import Ledger, Stage
from edged.dispatch.peer import Offer


def offers_of(
    ledger: Ledger, identities: Mapping[str, str], *, grant: int, held: int, most_bytes: int, hot: bool
) -> tuple[Offer, ...]:
    """One offer for each stage with an identity, to a peer that holds `held` answers of its `grant`."""
    return tuple(
        _offer(ledger, ledger.stages[name], identity, (grant, held), most_bytes, hot=hot)
        for name, identity in sorted(identities.items())
        if identity
    )


def _offer(
    ledger: Ledger, stage: Stage, identity: str, quota: tuple[int, int], most_bytes: int, *, hot: bool
) -> Offer:
    grant, held = quota
    closed = hot or ledger.draining or bool(stage.failed)
    idle = idle_sequences(ledger, stage)
    queued = len(stage.queue)
    free = 0 if closed else max(0, min(idle - queued, grant - held))
    return Offer(
        identity=identity,
        grant=grant,
        free=free,
        wait_s=0.0 if idle > queued else (queued - idle + 1) * stage.item_s / max(stage.desired, 1),
        service_s=stage.service_s,
        tokens_per_s=stage.tokens_per_s,
        most_bytes=most_bytes,
        hot=closed,
    )


def idle_sequences(ledger: Ledger, stage: Stage) -> int:
    """How many answers its own workers would begin at once."""
    workers = (ledger.workers[name] for name in stage.workers)
    return sum(
        max(0, min(worker.credit, stage.limit - len(worker.held)))
        for worker in workers
        if worker.state == "ready"
    )
