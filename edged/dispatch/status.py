"""How things stand, out of the ledger and the sensors."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from typing import Literal

import msgspec

from edged import __version__
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.ledger import Ledger, Stage, Worker
from edged.governor.sensors import family_bytes, load_average, resident_bytes
from edged.messages import CacheCounters
from edged.placement.watch import Reading
from edged.report import StageStatus, Status, WorkerStatus


def status(
    dispatcher: Dispatcher,
    *,
    config_path: str,
    started_at: float,
    pipelines: Mapping[str, tuple[str, ...]],
    kinds: Mapping[str, str],
    notes: tuple[str, ...],
) -> Status:
    """Take a picture of the daemon now."""
    ledger, now = dispatcher.ledger, dispatcher.now()
    stages = tuple(
        _stage(dispatcher, stage, kinds.get(stage.name, ""), now) for stage in ledger.stages.values()
    )
    memory = sum(worker.memory_bytes for stage in stages for worker in stage.workers)
    loading = tuple(
        f"stage {stage.name}: a replacement is loading"
        for stage in ledger.stages.values()
        if any(ledger.workers[name].retiring for name in stage.workers)
    )
    troubles = tuple(
        f"stage {stage.name}: {trouble}"
        for stage in ledger.stages.values()
        if (trouble := _trouble(ledger, stage))
    )
    return Status(
        version=__version__,
        pid=os.getpid(),
        state=_state(ledger, stages),
        uptime_s=now - started_at,
        config_path=config_path,
        accepted=ledger.accepted,
        completed=ledger.completed,
        rejected=dict(ledger.rejected),
        outstanding=ledger.outstanding,
        entry_slots=ledger.entry.count,
        entry_slots_used=ledger.entry.used,
        memory_bytes=memory + resident_bytes(os.getpid()),
        load_average=load_average(),
        temperature_c=None,
        temperature_note="",
        stages=stages,
        pipelines=dict(pipelines),
        notes=notes + loading + troubles,
    )


def _state(
    ledger: Ledger, stages: tuple[StageStatus, ...]
) -> Literal["starting", "ready", "degraded", "draining"]:
    if ledger.draining:
        return "draining"
    states = {stage.state for stage in stages}
    if states & {"failed", "degraded"}:
        return "degraded"
    return "starting" if "starting" in states else "ready"


def stage_state(ledger: Ledger, stage: Stage) -> Literal["ready", "starting", "degraded", "failed", "off"]:
    """Whether a stage works: the worst thing that is true of it."""
    if stage.desired == 0:
        return "off"
    if stage.failed:
        return "failed"
    ready = sum(ledger.workers[name].state == "ready" for name in stage.workers)
    if ready >= stage.desired:
        return "ready"
    return "degraded" if ready else "starting"


def stage_reason(ledger: Ledger, stage: Stage) -> str:
    """Why a stage does not work, or what an operator should know although it does; empty: nothing."""
    return stage.failed or "; ".join(filter(None, (_trouble(ledger, stage), _loss(ledger, stage))))


def _trouble(ledger: Ledger, stage: Stage) -> str:
    """What is wrong with a stage that did not give up: its own trouble, else its workers'."""
    workers = (ledger.workers[name].trouble for name in sorted(stage.workers))
    return stage.trouble or "; ".join(dict.fromkeys(filter(None, workers)))


def _loss(ledger: Ledger, stage: Stage) -> str:
    """Why a stage lacks a worker that is started again."""
    if not stage.loss or stage_state(ledger, stage) in {"ready", "off"}:
        return ""
    return f"another worker is started; the last one ended: {stage.loss}"


def _stage(dispatcher: Dispatcher, stage: Stage, kind: str, now: float) -> StageStatus:
    ledger, spec = dispatcher.ledger, dispatcher.serving(stage.name)
    workers = [ledger.workers[name] for name in sorted(stage.workers)]
    newest = next((worker.details for worker in reversed(workers) if worker.details), {})
    return StageStatus(
        name=stage.name,
        kind=kind,
        state=stage_state(ledger, stage),
        reason=stage_reason(ledger, stage),
        model=spec.variant.model if spec else "",
        variant=spec.variant.name if spec else "",
        backend=spec.backend if spec else "",
        device=spec.device if spec else "",
        workers=tuple(_worker(dispatcher, worker, now) for worker in workers),
        queued=len(stage.queue),
        in_flight=sum(len(worker.held) for worker in workers),
        slots=stage.slots.count,
        slots_used=stage.slots.used,
        done=stage.done,
        failed=stage.errors,
        restarts=stage.restarts,
        rate_per_s=stage.rate_per_s(now),
        mean_wait_s=stage.wait_s,
        mean_compute_s=stage.compute_s,
        mean_batch=stage.batch,
        details=newest,
        queued_by_priority=stage.queue.counts(),
        batch_limit=stage.limit,
        batch_reason=stage.control.reason,
        utilisation=stage.usage.share(len(workers), now),
        cores={worker.incarnation: worker.cores for worker in workers if worker.cores is not None},
        caches=all_caches([worker.caches for worker in workers]),
    )


def readings(dispatcher: Dispatcher, *, besides: Container[str] = ()) -> dict[str, Reading]:
    """The counters of every stage that has workers, `besides` aside, for the watch over a plan's rates."""
    now = dispatcher.now()
    return {
        stage.name: Reading(stage.done, stage.usage.busy.area(now), len(stage.workers), len(stage.queue))
        for stage in dispatcher.ledger.stages.values()
        if stage.workers and stage.name not in besides
    }


def all_caches(of_workers: Sequence[Mapping[str, CacheCounters]]) -> dict[str, CacheCounters]:
    """The caches of several workers, those of one name as one."""
    total: dict[str, CacheCounters] = {}
    for name, counters in (pair for caches in of_workers for pair in caches.items()):
        so_far = msgspec.structs.asdict(total[name]) if name in total else {}
        sums = {
            field: count + so_far.get(field, 0) for field, count in msgspec.structs.asdict(counters).items()
        }
        total[name] = CacheCounters(**sums)
    return total


def _worker(dispatcher: Dispatcher, worker: Worker, now: float) -> WorkerStatus:
    pid = dispatcher.processes()[worker.incarnation].pid
    return WorkerStatus(
        incarnation=worker.incarnation,
        pid=pid,
        state="stopping" if worker.state == "dying" else worker.state,
        in_flight=len(worker.held),
        memory_bytes=family_bytes(pid),
        uptime_s=now - worker.started_at,
        load_s=worker.load_s,
        layers=worker.layers,
    )
