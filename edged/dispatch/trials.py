"""A stage that is to work in another way, on trial: until the first new worker is ready, nothing is final.

One that dies before that ends the trial, and what served goes on serving: pure.
"""

from __future__ import annotations

from edged.dispatch.events import CalledOff, Command, ScaleAsked, TrialAsked
from edged.dispatch.ledger import Ledger, Proof, Stage, Trial, Worker
from edged.dispatch.staffing import STAYING, discard, missing, spawn, stop, workers_of


def try_out(ledger: Ledger, event: TrialAsked, now: float) -> list[Command]:
    """Load beside what serves, or alone: then the old workers finish what they hold first, and work queues.

    What `event` asks for is noted in the trial as it was before, for `call_off`.
    """
    stage = ledger.stages[event.stage]
    _begin(stage, Trial(stage.desired, stage.max_batch, alone=event.alone, guarded=event.guarded))
    stage.desired, stage.max_batch, stage.changed = event.workers, event.max_batch, True
    commands: list[Command] = []
    for worker in workers_of(ledger, stage):
        if worker.state == "starting":
            commands += discard(worker, "replaced before it was ready")
        elif worker.state == "ready" and event.alone:
            commands += stop(worker, now)
        elif worker.state == "ready":
            worker.retiring = True
    if event.alone and stage.workers:
        return commands
    return commands + spawn(stage, missing(ledger, stage))


def scale(ledger: Ledger, event: ScaleAsked, now: float) -> list[Command]:
    """Have more workers of the same kind, on trial, or fewer: the idlest finish what they hold and go."""
    stage = ledger.stages[event.stage]
    stage.called_off = None
    if event.workers > stage.desired:
        _begin(stage, Trial(stage.desired, stage.max_batch))
    stage.desired = event.workers
    staying = [w for w in workers_of(ledger, stage) if w.state in STAYING and not w.retiring]
    staying.sort(key=lambda worker: (worker.loaded, len(worker.held), -worker.started_at))
    commands: list[Command] = []
    for worker in staying[: max(0, len(staying) - event.workers)]:
        commands += stop(worker, now) if worker.loaded else discard(worker, "it is not wanted any more")
    return commands + spawn(stage, missing(ledger, stage))


def _begin(stage: Stage, trial: Trial) -> None:
    stage.misfortunes.clear()
    trial.failed, trial.retry_at = stage.failed, stage.retry_at
    stage.failed = stage.trouble = stage.loss = ""
    stage.trial, stage.called_off = trial, None


def proof_of(stage: Stage) -> Proof:
    """What a worker that starts now has to show before it is ready; see `WorkerSpec.trial`."""
    if stage.trial is None:
        return ""
    return "guarded" if stage.trial.guarded else "warm"


def on_trial(stage: Stage, worker: Worker) -> bool:
    """Whether the death of this worker says that the new way does not work."""
    return stage.trial is not None and not worker.loaded


def vacated(ledger: Ledger, stage: Stage) -> list[Command]:
    """Start the new workers of a trial that wanted the old ones gone, once they are."""
    if stage.trial is None or not stage.trial.alone or stage.workers:
        return []
    return spawn(stage, max(0, missing(ledger, stage)))


def call_off(ledger: Ledger, stage: Stage, reason: str, code: str = "") -> list[Command]:
    """Have a stage work as before: whoever serves stays, whoever still loads goes."""
    trial = stage.trial
    if trial is None:
        return []
    stage.trial, stage.called_off, stage.changed = None, (reason, code), False
    stage.desired, stage.max_batch = trial.desired, trial.max_batch
    stage.failed, stage.retry_at = trial.failed, trial.retry_at
    commands: list[Command] = [CalledOff(stage.name)]
    for worker in workers_of(ledger, stage):
        if worker.state == "starting":
            commands += discard(worker, "what it was to do is called off")
        worker.retiring = worker.retiring and worker.state != "ready"
    return commands + spawn(stage, max(0, missing(ledger, stage)))
