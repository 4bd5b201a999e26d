"""The daemon: take the lock, place the stages, listen, serve, drain, leave nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from socket import socket
from typing import Any

import msgspec

from edged import log, notify
from edged.api.gateway import Gateway
from edged.api.listen import listeners, unlink_own
from edged.api.server import Server, build_admin_app, build_client_app, build_gateway, limits_of
from edged.bypass.bypasses import Bypasses, remodelled
from edged.catalogue import Catalogue
from edged.config import Config, Stage
from edged.dispatch.channel import Channel
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.requests import Submission
from edged.dispatch.status import readings, stage_state, status
from edged.errors import ConfigError, Draining, EdgedError
from edged.fallbacks import Fallbacks
from edged.governor.force import InForce
from edged.governor.governing import Governing
from edged.governor.history import History
from edged.governor.variants import Variants
from edged.governor.watch import MachineWatch
from edged.lock import take_lock
from edged.models.store import ModelStore
from edged.peers.node import Node
from edged.placement.applied import AppliedPlan, Step
from edged.placement.notes import UNUSED, CalibrationNotes
from edged.placement.table import Plan
from edged.report import PlanReport, Status
from edged.rollout import Rollout
from edged.swaps import Swaps
from edged.transport.slots import Geometry, check_memory

logger = logging.getLogger("edged.daemon")

FIXED_TABLES = ("daemon", "api", "queue", "peers")
"""Tables whose changes need a restart: sockets, arenas and folders exist already."""

WATCH_S = 1.0


class Daemon:
    """One daemon. Construct, then `await run()`; it is the `FrontDoor` and the `Operator` of the API."""

    def __init__(self, config: Config, config_path: str, load: Callable[[], tuple[Config, str]]) -> None:
        self.config = config
        self._path = config_path
        self._load = load
        self._stop = asyncio.Event()
        self._store = ModelStore(config.daemon.state_dir / "models", Catalogue.discover())
        self._calibration = CalibrationNotes(config.daemon.state_dir, self._store)
        self._dispatcher = Dispatcher(
            config.daemon.runtime_dir,
            Geometry(config.queue.slots, config.queue.slot_bytes),
            config.daemon.log_level,
            config.daemon.log_format,
        )
        self._gateway: Gateway = build_gateway(self, config, lambda: self.force)
        self._reload: asyncio.Task[None] | None = None
        self._applied = AppliedPlan(config.daemon.state_dir, self._store)
        self._rollout = Rollout(self._dispatcher, self._applied)
        self.swaps = Swaps(self._dispatcher, self._applied, self._rollout, self._store, lambda: self.config)
        self._fallbacks = Fallbacks(
            self._dispatcher, self._applied, self.swaps, self._rollout, self._store, lambda: self.config
        )
        variants = Variants(self.swaps, self._store, lambda: self.config)
        history = History(config.daemon.state_dir)
        self.governing = Governing(lambda: self.config, self._dispatcher, variants, history)
        self.bypasses = Bypasses(
            self._dispatcher, lambda: self.config, lambda: self.force, self.governing.offer
        )
        self._machine = MachineWatch(self._dispatcher, lambda: self.config, self.governing.feel)
        self.peers = Node(self._dispatcher, lambda: self.config, self.governing, self._store, self.submit)
        self._announced = False

    # ------------------------------------------------------------------ life

    async def run(self, environment: Mapping[str, str]) -> None:
        """Serve until told to stop, then drain. `AlreadyRunning` when another daemon has the lock."""
        lock = take_lock(self.config.daemon.runtime_dir)
        try:
            await self._run_locked(environment)
        finally:
            os.close(lock)

    async def _run_locked(self, environment: Mapping[str, str]) -> None:
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)
        with ExitStack() as sockets:
            found, self._bound = listeners(self.config.api, environment, sockets)
            self._applied.read()
            self._share_cores()
            check_memory(self._dispatcher.arenas.geometry, 1 + len(self.config.stages))
            self._dispatcher.start()
            try:
                for name, stage in self.config.stages.items():
                    self._add_stage(name, stage)
                self._dispatcher.start_workers()
                self.peers.begin(environment)
                await self._serve(found)
            finally:
                self.peers.close()
                await self._dispatcher.stop()
                logger.info("stopped")

    async def _serve(self, sockets: list[socket]) -> None:
        loop = asyncio.get_running_loop()
        client, admin = sockets
        limits = limits_of(self.config)
        drain_s = self.config.daemon.drain_s
        servers = [
            Server(build_client_app(self._gateway), [client], limits, drain_s),
            Server(build_admin_app(self._gateway, self), [admin], limits, drain_s),
        ]
        for server in servers:
            await server.start()
        logger.info("listening", extra={"socket": str(self.config.api.socket)})
        supervision = loop.create_task(self._report_to_service_manager(), name="service manager")
        watch = loop.create_task(self._watch_rates(), name="watch over the plan")
        peers = loop.create_task(self.peers.run(), name="peers")
        self.governing.begin()
        self.bypasses.begin()
        self._fallbacks.begin()
        machine = loop.create_task(self._machine.run(), name="watch over the machine")
        await self._stop.wait()
        await self._drain()
        supervision.cancel()
        watch.cancel()
        self.bypasses.close()
        peers.cancel()
        machine.cancel()
        self.governing.close()
        self._fallbacks.close()
        for path, listener in self._bound.items():
            unlink_own(listener, path)
        async with asyncio.TaskGroup() as group:
            for server in servers:
                group.create_task(server.stop())

    async def _drain(self) -> None:
        """Let accepted requests finish; what is left after `drain_s` ends with an explicit error."""
        notify.notify("STOPPING=1", "STATUS=draining")
        self._dispatcher.begin_drain()
        logger.info("draining", extra={"outstanding": self._dispatcher.ledger.outstanding})
        self._stop.clear()
        drained = asyncio.ensure_future(self._dispatcher.drained())
        again = asyncio.ensure_future(self._stop.wait())  # a second SIGTERM means now
        await asyncio.wait(
            (drained, again), timeout=self.config.daemon.drain_s, return_when=asyncio.FIRST_COMPLETED
        )
        self._dispatcher.abandon_all(Draining("the daemon stopped before the answer was finished"))
        drained.cancel()
        again.cancel()

    async def _report_to_service_manager(self) -> None:
        """READY when every stage is settled; then WATCHDOG as long as the dispatch loop passes its test."""
        while not self._settled():
            notify.notify("STATUS=loading models", "EXTEND_TIMEOUT_USEC=30000000")
            await asyncio.sleep(0.2)
        self._announced = True
        notify.notify("READY=1", f"STATUS={self.status().state}")
        logger.info("ready", extra={"state": self.status().state, "after_s": round(self._uptime_s(), 2)})
        interval_s = notify.watchdog_interval_s()
        while interval_s:
            if self._dispatcher.self_test():
                notify.notify("WATCHDOG=1", f"STATUS={self.status().state}")
            await asyncio.sleep(interval_s)

    async def _watch_rates(self) -> None:
        """Compare the plan in force with what stages do; learn who may pass rerankers by."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.bypasses.look()
            found = readings(self._dispatcher, besides={*self.swaps.overrides, *self._fallbacks.away})
            self._applied.compare(found, self.config, self._dispatcher.now())

    def _uptime_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_at

    def _settled(self) -> bool:
        ledger = self._dispatcher.ledger
        return all(stage_state(ledger, stage) != "starting" for stage in ledger.stages.values())

    def _asked_to_stop(self) -> None:
        self._stop.set()

    def _asked_to_reload(self) -> None:
        if self._reload is None or self._reload.done():  # one that waits will read what is there then
            self._reload = asyncio.ensure_future(self._reload_by_signal())

    async def _reload_by_signal(self) -> None:
        """Nobody can be told to try again later, so it waits for a plan or a swap on its way."""
        await self.swaps.ended()
        try:
            await self.reload()
        except EdgedError as error:
            logger.error("reload refused", extra={"code": error.code, "why": error.message})

    # -------------------------------------------------------------- stages

    def _add_stage(self, name: str, stage: Stage) -> None:
        """Place a stage; one that cannot be placed fails alone, and the daemon comes up degraded."""
        try:
            if stage.workers == 0:
                raise ConfigError("it is switched off (workers = 0)", param=f"stages.{name}.workers")
            step, setback = self._applied.step(name, stage, self.config)
        except EdgedError as error:
            logger.warning("stage does not start", extra={"stage": name, "why": error.message})
            streaming = stage.kind == "generator"
            wanted = self._applied.workers(name, stage)
            self._dispatcher.add_idle_stage(name, streaming=streaming, wanted=wanted, reason=error.message)
        else:
            self._dispatcher.add_stage(step.spec, step.workers, stage.timeout_s, stage.load_timeout_s)
            self._dispatcher.form_batches(name, stage.max_wait_ms, stage.target_ms)
            self._applied.note({name: setback})

    # ---------------------------------------------------------- front door

    @property
    def force(self) -> InForce:
        """The rung in force, for all who carry a part of it out."""
        return self.governing.force

    def submit(self, submission: Submission) -> Channel:
        """See `FrontDoor.submit`."""
        self.governing.check(submission)
        return self._dispatcher.submit(submission)

    def status(self) -> Status:
        """See `FrontDoor.status`."""
        taken = status(
            self._dispatcher,
            config_path=self._path,
            started_at=self._started_at,
            pipelines={name: line.stages for name, line in self.config.pipelines.items()},
            kinds={name: stage.kind for name, stage in self.config.stages.items()},
            notes=(*self._calibration.sentences(), *self._plan_notes(), *self.peers.notes()),
        )
        return self.swaps.shown(
            msgspec.structs.replace(
                self._fallbacks.shown(self.bypasses.shown(taken)),
                plan=self._applied.status(),
                governor=self.governing.status(),
                **self._machine.status(),
                peers=self.peers.status(),
            )
        )

    def _plan_notes(self) -> tuple[str, ...]:
        found = [*self._applied.sentences(self.config), self._rollout.problem]
        if self._applied.plan is None and self._calibration.usable and not self._rollout.under_way:
            found.append(UNUSED)
        return tuple(filter(None, found))

    def ready(self) -> bool:
        """See `FrontDoor.ready`."""
        ledger = self._dispatcher.ledger
        return not ledger.draining and all(
            stage_state(ledger, stage) in {"ready", "degraded", "off"} for stage in ledger.stages.values()
        )

    # ------------------------------------------------------------- operator

    async def restart_stage(self, stage: str) -> None:
        """See `Operator.restart_stage`."""
        self.swaps.check_own()
        self._dispatcher.restart_stage(stage)

    async def reload(self) -> list[str]:
        """See `Operator.reload`."""
        self.swaps.check_free()
        if self._announced:
            notify.reloading()
        try:
            changes = self._adopt(*self._load())
        finally:
            if self._announced:
                notify.notify("READY=1")
        self._calibration.forget()
        self._applied.look_again()
        return changes

    def _adopt(self, config: Config, path: str) -> list[str]:
        """Validate everything, then change everything: nothing in between can fail."""
        fixed = [table for table in FIXED_TABLES if getattr(config, table) != getattr(self.config, table)]
        if fixed:
            raise ConfigError(
                f"a change of [{'], ['.join(fixed)}] needs a restart of the daemon", param=fixed[0]
            )
        if set(config.stages) != set(self.config.stages):
            raise ConfigError("adding or removing a stage needs a restart of the daemon", param="stages")
        switched = [
            name
            for name, stage in config.stages.items()
            if (stage.workers == 0) != (self.config.stages[name].workers == 0)
        ]
        if switched:
            raise ConfigError(
                f"switching {', '.join(switched)} on or off needs a restart of the daemon", param="stages"
            )
        found = {
            name: self._applied.step(name, stage, config)
            for name, stage in config.stages.items()
            if stage.workers != 0
        }
        placed = {name: step for name, (step, _) in found.items()}
        self._fallbacks.forget_all()
        changed = [name for name, step in placed.items() if self._differs(name, step, config.stages[name])]
        dropped = self.swaps.forget()
        for name in changed:
            stage, step = config.stages[name], placed[name]
            self._dispatcher.change_stage(step.spec, step.workers, stage.timeout_s, stage.load_timeout_s)
        for name, stage in config.stages.items():
            self._dispatcher.form_batches(name, stage.max_wait_ms, stage.target_ms)
        kept = [name for name in placed if name not in changed]
        reformed = list(remodelled(self.config.stages, config.stages, kept))
        lines = [
            name for name in config.pipelines if config.pipelines[name] != self.config.pipelines.get(name)
        ]
        gone = [name for name in self.config.pipelines if name not in config.pipelines]
        self.config, self._path = config, path
        self._applied.note({name: setback for name, (_, setback) in found.items()})
        self._share_cores()
        self._gateway.adopt(config)
        self.governing.adopt()
        logger.info("reloaded", extra={"stages": changed, "pipelines": lines + gone})
        return (
            [f"stage {name} is being replaced" for name in changed]
            + [f"stage {name} is as configured again" for name in dropped]
            + reformed
            + [f"pipeline {name} changed" for name in lines]
            + [f"pipeline {name} removed" for name in gone]
        )

    def _share_cores(self) -> None:
        mode = self._applied.lease_mode(self.config, self._applied.plan)
        self._dispatcher.share_cores(mode, self.config.placement.cores)

    def _differs(self, name: str, step: Step, stage: Stage) -> bool:
        """Whether its workers must be replaced; how batches are formed can change without that."""
        before = msgspec.structs.replace(
            self.config.stages[name],
            max_wait_ms=stage.max_wait_ms,
            target_ms=stage.target_ms,
            bypass=stage.bypass,
        )
        return before != stage or self.swaps.running(name) != step

    def plan(self) -> PlanReport:
        """See `Operator.plan`."""
        return self._rollout.report

    async def apply_plan(self, plan: Plan | None, *, dry_run: bool) -> list[str]:
        """See `Operator.apply_plan`."""
        if dry_run:
            return self._rollout.changes(self.config, plan)
        self.swaps.check_free()
        return self._rollout.begin(self.config, plan)

    async def clear_caches(self, names: tuple[str, ...]) -> None:
        """See `Operator.clear_caches`."""
        self._dispatcher.clear_caches(names)

    async def drain(self) -> None:
        """See `Operator.drain`."""
        self._asked_to_stop()

    def configuration(self) -> dict[str, object]:
        """See `Operator.configuration`."""
        plain: dict[str, Any] = msgspec.to_builtins(self.config, enc_hook=str)
        return plain

    def recent_logs(self, count: int) -> list[dict[str, object]]:
        """See `Operator.recent_logs`."""
        return log.recent(count)
