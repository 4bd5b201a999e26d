"""The dispatcher's effects: it turns commands into messages, processes and answers.

Everything runs on the daemon's event loop thread; what should happen is decided in `decide.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import assert_never

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.arenas import Arenas
from edged.dispatch.channel import Channel
from edged.dispatch.deaths import device_lost
from edged.dispatch.decide import decide, decide_all
from edged.dispatch.endings import abandon_all
from edged.dispatch.events import (
    Asked,
    CalledOff,
    Command,
    Deliver,
    Died,
    Event,
    GiveUpAsked,
    IdleAsked,
    Kill,
    Left,
    Refuse,
    ReplaceAsked,
    ScaleAsked,
    Send,
    Spawn,
    Spoke,
    Stream,
    Ticked,
    TrialAsked,
    Waited,
    Wake,
)
from edged.dispatch.health import self_test
from edged.dispatch.leases import Mode
from edged.dispatch.ledger import ENTRY, Ledger, Slots, Stage, Worker
from edged.dispatch.remotes import Remotes
from edged.dispatch.requests import Completed, Delta, Rejected, Submission
from edged.dispatch.specs import Specs
from edged.dispatch.staffing import start, wanted
from edged.dispatch.surroundings import Surroundings
from edged.dispatch.trials import proof_of
from edged.errors import EdgedError, NotFound, StageUnavailable, TooLarge
from edged.messages import ClearCaches
from edged.transport.links import Router
from edged.transport.slots import Geometry
from edged.workers.births import Births, LogFormat
from edged.workers.process import Process, kill_all
from edged.workers.spec import StageSpec

logger = logging.getLogger("edged.dispatcher")

BUSY_TICK_S = 0.1
IDLE_TICK_S = 1.0
SPAWN_AGAIN_S = 1.0


class Dispatcher:
    """Owns the ledger, every slot, every worker. Construct, `start`, `submit`, `stop`."""

    def __init__(self, runtime_dir: Path, geometry: Geometry, log_level: str, log_format: LogFormat) -> None:
        self.arenas = Arenas(geometry)
        self._births = Births(runtime_dir / "workers.sock", log_level, log_format)
        self.elsewhere: Callable[[Worker, StageSpec, str], StageSpec | None] = lambda *_: None
        """Asked when a worker's device is lost: what its stage is to run from now on; None: as before."""
        self.ledger = Ledger(Slots(ENTRY, geometry.slots))
        self.remotes = Remotes(self.ledger, self.arenas, self._on)
        self._surroundings = Surroundings()
        self._specs = Specs(self.ledger)
        self.specs, self.serving = self._specs.wanted, self._specs.serving
        self._processes: dict[str, Process] = {}
        self._channels: dict[int, Channel] = {}
        self._pending_spawns: set[asyncio.TimerHandle] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._dispatch_due = False
        self._stopping = False
        self._heard_at = 0.0
        self._drained = asyncio.Event()

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Make the entry arena, bind the worker socket, begin to tick. Call on the running loop."""
        self._loop = asyncio.get_running_loop()
        self.ledger.leases.cores = frozenset(os.sched_getaffinity(0))
        self.arenas.make(ENTRY, "entry", writable=True)
        self._births.endpoint.unlink(missing_ok=True)  # left by a SIGKILL; the caller holds the instance lock
        self._router = Router(self._births.endpoint)
        self._loop.add_reader(self._router.fileno, self._listen)
        self._ticker = self._loop.create_task(self._tick(), name="dispatcher tick")

    def add_stage(self, spec: StageSpec, workers: int, timeout_s: float, load_timeout_s: float) -> None:
        """Open a queue behind a stage and start its workers."""
        stage = self._open(spec.name, spec.max_batch, streaming=spec.kind == "generator")
        stage.desired, stage.timeout_s, stage.load_timeout_s = workers, timeout_s, load_timeout_s
        self.specs[spec.name] = spec

    def add_idle_stage(self, name: str, *, streaming: bool, wanted: int, reason: str) -> None:
        """Keep a stage that cannot run in view: requests for it are refused with the reason."""
        self._open(name, 1, streaming=streaming)
        self.idle_stage(name, wanted=wanted, reason=reason)

    def _open(self, name: str, max_batch: int, *, streaming: bool) -> Stage:
        slots = Slots(1 + len(self.ledger.stages), self.arenas.geometry.slots)
        self.arenas.make(slots.arena, name, writable=False)
        return self.ledger.stages.setdefault(name, Stage(name, slots, max_batch, streaming=streaming))

    def idle_stage(self, name: str, *, wanted: int, reason: str) -> None:
        """Have a stage run nothing, as one that was added idle."""
        self._specs.forget(name)
        self.ledger.stages[name].max_batch = 1
        self._on(IdleAsked(name, reason, wanted))

    def start_workers(self) -> None:
        """Start what every stage wants; after the last `add_stage`, so that all arenas are inherited."""
        for name in self.specs:
            self._apply(start(self.ledger, self.ledger.stages[name]))

    def change_stage(self, spec: StageSpec, workers: int, timeout_s: float, load_timeout_s: float) -> None:
        """Replace the workers of a stage by ones that do it the new way."""
        stage = self.ledger.stages[spec.name]
        stage.desired, stage.max_batch = workers, spec.max_batch
        stage.timeout_s, stage.load_timeout_s = timeout_s, load_timeout_s
        stage.changed = True
        self.specs[spec.name] = spec
        self.restart_stage(spec.name)

    def try_out(self, spec: StageSpec, asked: TrialAsked | ScaleAsked) -> None:
        """Have a stage work in another way, and as before if its first new worker does not become ready."""
        self._specs.try_out(spec)
        self._on(asked)

    def call_off(self, name: str, reason: str) -> None:
        """End a trial that takes too long."""
        self._on(GiveUpAsked(name, reason))

    def ask(self, event: Asked) -> None:
        """Do what somebody wants of a stage."""
        self._on(event)

    def share_cores(self, mode: Mode, most: int) -> None:
        """Lend cores in this mode from now on, at most so many (0: all)."""
        self.ledger.leases.mode, self.ledger.leases.most = mode, most

    def form_batches(self, name: str, max_wait_ms: float, target_ms: float) -> None:
        """Keep workers of a stage waiting for fuller batches so long; bound its latency so; 0: do not."""
        stage = self.ledger.stages[name]
        stage.max_wait_s, stage.target_s = max_wait_ms / 1000, target_ms / 1000

    def restart_stage(self, name: str) -> None:
        """Load new workers beside the old and switch; nothing is dropped. `NotFound` for a stranger."""
        if name not in self.ledger.stages:
            known = ", ".join(self.ledger.stages)
            raise NotFound(f"there is no stage {name!r}; there are: {known}", param="stage")
        if name not in self.specs:
            raise StageUnavailable(f"stage {name!r} cannot start: {self.ledger.stages[name].failed}")
        self._on(ReplaceAsked(name))

    def clear_caches(self, names: tuple[str, ...]) -> None:
        """Have every loaded worker empty its caches of these names, or all of them, before its next batch."""
        loaded = (worker for worker in self.ledger.workers.values() if worker.state != "starting")
        self._apply([Send(worker.incarnation, ClearCaches(names)) for worker in loaded])

    def begin_drain(self) -> None:
        """Refuse new work from now on."""
        self.ledger.draining = True

    async def drained(self) -> None:
        """Return when no accepted request is left."""
        self._check_drained()
        await self._drained.wait()

    def _check_drained(self) -> None:
        if self.ledger.draining and not self.ledger.requests:
            self._drained.set()

    def abandon_all(self, error: EdgedError) -> None:
        """End every request that is left: the drain ran out of time."""
        self._apply(abandon_all(self.ledger, error))

    async def stop(self) -> None:
        """Kill and reap every worker, close everything: nothing stays behind."""
        self._stopping = True
        self._ticker.cancel()
        for timer in (*self._pending_spawns, *filter(None, (self._wake,))):
            timer.cancel()
        for process in self._processes.values():
            self._loop.remove_reader(process.pidfd)
        kill_all(list(self._processes.values()))
        self._processes.clear()
        self._loop.remove_reader(self._router.fileno)
        self._router.close()
        self.arenas.close()

    # ------------------------------------------------------------- requests

    def submit(self, submission: Submission) -> Channel:
        """Accept a request or raise at once; see `FrontDoor.submit`."""
        try:
            self.arenas.check_room(len(submission.payload))
        except TooLarge as error:
            self.ledger.count_rejection(error.code)
            raise
        now = self._loop.time()
        request = admit(self.ledger, submission, now)
        channel = Channel(request.id, self._client_left)
        self._channels[request.id] = channel
        enqueue(self.ledger, request, self.arenas.write(request.source, submission.payload), now)
        self._dispatch_soon()
        return channel

    def _dispatch_soon(self) -> None:
        """Hand out work once for all requests of this turn of the loop: fuller batches, fewer bells."""
        if not self._dispatch_due:
            self._dispatch_due = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        if self._dispatch_due and not self._stopping:
            self._on(Waited())

    def _client_left(self, request: int) -> None:
        self._channels.pop(request, None)
        self._on(Left(request))

    def now(self) -> float:
        """The clock of every deadline: monotonic seconds."""
        return self._loop.time()

    def processes(self) -> Mapping[str, Process]:
        """Live worker processes by incarnation."""
        return self._processes

    def self_test(self) -> bool:
        """Whether time passes and slots can be turned over: see `health.self_test`."""
        silence_s = self._loop.time() - self._heard_at
        return not self._ticker.done() and self_test(self.ledger, self.arenas, silence_s)

    # --------------------------------------------------------------- events

    def _on(self, event: Event) -> None:
        self._dispatch_due = False
        self._apply(decide(self.ledger, event, self._loop.time()))

    def _listen(self) -> None:
        received = () if self._stopping else self._router.receive()
        if not (heard := [Spoke(worker, message) for worker, message in received]):
            return
        self._heard_at = self._loop.time()
        self._specs.heard(heard)
        self._dispatch_due = False
        self._apply(decide_all(self.ledger, heard, self._heard_at))

    async def _tick(self) -> None:
        while True:
            busy = self.ledger.requests or any(w.state != "ready" for w in self.ledger.workers.values())
            await asyncio.sleep(BUSY_TICK_S if busy else IDLE_TICK_S)
            self._listen()  # for what the edge-triggered descriptor did not tell of
            memory = self._surroundings.look(
                self._processes, busy=bool(self.ledger.requests), now=self._loop.time()
            )
            self.ledger.leases.taken = self._surroundings.taken
            self._on(Ticked(memory))

    def _gone(self, incarnation: str) -> None:
        process = self._processes.pop(incarnation)
        self._loop.remove_reader(process.pidfd)
        self._listen()  # what it said before it died still counts
        reason = process.reap()
        starved = self._surroundings.starved()
        if starved:
            reason += " while the machine was out of memory"
        worker = self.ledger.workers.get(incarnation)
        level = logging.INFO if worker is not None and worker.state == "stopping" else logging.WARNING
        logger.log(level, "worker gone", extra={"worker": incarnation, "why": reason})
        excused, moved = self._lost(worker, reason) if worker is not None else (False, False)
        killed = process.killed_from_outside and not starved
        self._on(Died(incarnation, reason, killed, excused=excused, moved=moved))
        self._specs.died(incarnation)

    def _lost(self, worker: Worker, reason: str) -> tuple[bool, bool]:
        """Whether a death is its device's, and others have the work; whether its stage moves elsewhere."""
        if not device_lost(worker, reason):
            return False, False
        spec = self.elsewhere(worker, self._specs.of(worker.incarnation), worker.fault or reason)
        if spec is not None:
            self._specs.move(spec)
        return spec is not None or worker.retiring or worker.state == "stopping", spec is not None

    # ------------------------------------------------------------- commands

    def _apply(self, commands: Iterable[Command]) -> None:
        rang = False
        for command in commands:
            rang |= isinstance(command, Send)
            self._carry_out(command)
        self._check_drained()
        if rang and not self._stopping and self._router.pending():
            self._loop.call_soon(self._listen)

    def _carry_out(self, command: Command) -> None:  # noqa: C901 (one case a command)
        match command:
            case Send(worker, message):
                if not self.remotes.take(worker, message):
                    self._router.send(worker, message)
            case Stream(request, text, tokens, ids, node):
                if channel := self._channels.get(request):
                    channel.put(Delta(text, tokens, ids, node))
            case Deliver():
                self._deliver(command)
            case Refuse(request, error):
                self._finish(request, Rejected(error))
            case Kill(worker, reason):
                logger.warning("killing worker", extra={"worker": worker, "why": reason})
                if process := self._processes.get(worker):  # else its last word came behind its death
                    process.kill()
            case CalledOff(stage):
                self._specs.call_off(stage)
            case Wake(at):
                self._wake_at(at)
            case Spawn(stage, delay_s):
                self._schedule_spawn(stage, delay_s)
            case _:
                assert_never(command)

    def _wake_at(self, at: float) -> None:
        """Look again exactly then; an earlier look finds out for itself what is due later."""
        if self._wake is not None:
            if self._wake.when() <= at:
                return
            self._wake.cancel()
        self._wake = self._loop.call_at(at, self._woken)

    def _woken(self) -> None:
        self._wake = None
        self._on(Waited())

    def _deliver(self, command: Deliver) -> None:
        try:
            payload = bytes(self.arenas.read(command.result))
        except EdgedError as error:
            self._finish(command.request, Rejected(error))
        else:
            completed = Completed(payload, command.timings, command.resumed, command.skipped, command.node)
            self._finish(command.request, completed)

    def _finish(self, request: int, event: Completed | Rejected) -> None:
        if channel := self._channels.pop(request, None):
            channel.put(event)

    # -------------------------------------------------------------- workers

    def _schedule_spawn(self, stage: str, delay_s: float) -> None:
        if delay_s <= 0:
            self._spawn(stage)
            return

        def due() -> None:
            self._pending_spawns.discard(timer)
            self._spawn(stage)

        timer = self._loop.call_later(delay_s, due)
        self._pending_spawns.add(timer)

    def _spawn(self, name: str) -> None:
        if self._stopping or not wanted(self.ledger, self.ledger.stages[name]):
            return
        now = self._loop.time()
        self.ledger.last_worker += 1
        incarnation = f"{name}-{self.ledger.last_worker}"
        try:
            arenas = tuple(self.arenas.inherited(self.ledger.stages[name].slots.arena))
            proof = proof_of(self.ledger.stages[name])
            process = Process(self._births.spec(incarnation, self.specs[name], arenas, proof))
        except OSError as error:  # no descriptors, memory or process numbers left: not for ever
            logger.warning("worker not started", extra={"worker": incarnation, "why": str(error)})
            self._schedule_spawn(name, SPAWN_AGAIN_S)
            return
        spec = self._specs.born(incarnation, name)
        self.ledger.workers[incarnation] = Worker(
            incarnation, name, now, now, device=spec.device, variant=spec.variant.name
        )
        stage = self.ledger.stages[name]
        stage.workers.add(incarnation)
        stage.starting -= 1
        self._processes[incarnation] = process
        self._loop.add_reader(process.pidfd, self._gone, incarnation)
        logger.info("worker started", extra={"worker": incarnation, "pid": process.pid})
