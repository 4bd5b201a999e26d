"""The task that feels the machine once a second, and what it says about it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Thread
from typing import Any

import msgspec

from edged.config import Config
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.leases import core_set
from edged.governor.readings import Readings, Senses
from edged.governor.senses import NO_SENSOR, Sensing, hottest, remarks
from edged.governor.sensors import Sampler
from edged.governor.trust import Change

logger = logging.getLogger("edged.governor")

SILENT_S = 1.5
"""Drivers that take longer than this, and than a sample, are told to the operator."""
SENSED_AS = {"cuda": "gpu"}
"""Devices of stages whose sensors have another name."""


class MachineWatch:
    """Samples, judges, logs; construct, then `await run()`. Drivers may block: they are read in a thread."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        config: Callable[[], Config],
        felt: Callable[[Sensing, Senses], None] = lambda _sensing, _senses: None,
    ) -> None:
        """`felt` is told every sample, and, while the sensors do not answer, that nothing is known."""
        self._felt = felt
        self._dispatcher = dispatcher
        self._config = config
        self._sampler = Sampler()
        self._sensing = Sensing()
        self._busy: dict[str, float] = {}
        self._busy_at_s = 0.0
        self.senses: Senses | None = None
        """The newest; None before the first sample."""

    async def run(self) -> None:
        """Sample until cancelled."""
        logged_absence = False
        while True:
            began_s = self._dispatcher.now()
            await self._sample(began_s)
            if not logged_absence and self.senses is not None and not self.senses.devices:
                logger.info(NO_SENSOR)
                logged_absence = True
            spent_s = self._dispatcher.now() - began_s
            await asyncio.sleep(max(0.0, self._config().governor.sample_s - spent_s))

    def status(self) -> dict[str, Any]:
        """The fields of `Status` that are about the machine's heat."""
        senses = self.senses
        if senses is None:
            return {"temperature_note": "the sensors have not been read yet"}
        if senses.problem:
            return {"senses": senses, "temperature_note": senses.problem}
        return {"senses": senses, "temperature_c": hottest(senses), "temperature_note": remarks(senses)}

    def predict(self, device: str, horizon_s: float, load: float) -> float | None:
        """See `Sensing.predict`."""
        return self._sensing.predict(device, horizon_s, load)

    async def _sample(self, now: float) -> None:
        core_sets = _core_sets(self._config())
        reading = _in_thread(lambda: self._sampler.sample(now, core_sets))
        patience_s = max(SILENT_S, self._config().governor.sample_s)
        await asyncio.wait({reading}, timeout=patience_s)
        if not reading.done():
            silent = f"the sensors do not answer: a driver has not returned for {patience_s:g} s"
            while not reading.done():
                self._blind(silent)
                await asyncio.wait({reading}, timeout=patience_s)
        found = reading.result()
        if isinstance(found, str):
            self._blind(f"the machine cannot be read: {found}")
            return
        load = found.load | self._accelerators(now)
        self._learn(msgspec.structs.replace(found, load=load))

    def _learn(self, readings: Readings) -> None:
        if self.senses is not None and self.senses.problem:
            logger.info("the sensors answer again")
        self.senses, changes = self._sensing.take(readings)
        for change in changes:
            self._log(change, self.senses)
        self._felt(self._sensing, self.senses)

    def _blind(self, why: str) -> None:
        """The devices stay in view, without a temperature: what was is not what is."""
        before = self.senses
        if before is None:
            before = Senses(readings=Readings(at_s=self._dispatcher.now()))
        if before.problem != why:
            logger.warning("no sample of the machine", extra={"why": why})
        unknown = tuple(
            msgspec.structs.replace(heat, celsius=None, filtered_c=None, why=why, predicted_c={})
            for heat in before.devices
        )
        self.senses = msgspec.structs.replace(before, problem=why, devices=unknown)
        now = Readings(at_s=self._dispatcher.now())
        self._felt(self._sensing, msgspec.structs.replace(self.senses, readings=now))

    def _log(self, change: Change, senses: Senses) -> None:
        readings = {
            each.sensor: each.celsius for each in senses.readings.temperatures if each.device == change.device
        }
        believed_c = next(heat.celsius for heat in senses.devices if heat.device == change.device)
        details = {
            "sensor": change.sensor,
            "device": change.device,
            "reason": change.reason or "good",
            "why": change.why,
            "believed_c": believed_c,
            "readings": readings,
            "load": senses.readings.load,
        }
        if change.reason is None:
            logger.info("sensor believed again", extra=details)
        else:
            logger.warning("sensor ignored", extra=details)

    def _accelerators(self, now: float) -> dict[str, float]:
        """Share of the time since the sample before in which stages kept each accelerator busy."""
        before, before_s = self._busy, self._busy_at_s
        self._busy, self._busy_at_s = _busy_s(self._dispatcher, now), now
        if now <= before_s:
            return {}
        return {
            device: min(1.0, max(0.0, (busy_s - before.get(device, busy_s)) / (now - before_s)))
            for device, busy_s in self._busy.items()
        }


def _busy_s(dispatcher: Dispatcher, now: float) -> dict[str, float]:
    """Seconds for which stages have held work on each accelerator, all their workers together."""
    busy: dict[str, float] = {}
    for name, stage in dispatcher.ledger.stages.items():
        spec = dispatcher.serving(name)
        kind = spec.device.partition(":")[0] if spec else "cpu"
        if kind != "cpu":
            device = SENSED_AS.get(kind, kind)
            busy[device] = busy.get(device, 0.0) + stage.usage.busy.area(now)
    return busy


def _core_sets(config: Config) -> Mapping[str, frozenset[int]]:
    """`cpu`, all that we may use, and each core set that a stage has to itself."""
    machine = frozenset(os.sched_getaffinity(0))
    devices = {"cpu", *(stage.device for stage in config.stages.values())}
    return {device: cores for device in sorted(devices) if (cores := core_set(device, machine))}


def _in_thread(read: Callable[[], Readings]) -> asyncio.Future[Readings | str]:
    """Run it in a thread of its own, which holds up nothing if a driver never returns; str: why it failed."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Readings | str] = loop.create_future()

    def work() -> None:
        try:
            found: Readings | str = read()
        except (OSError, ValueError) as error:
            found = str(error)
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(_give, answer, found)

    Thread(target=work, name="sensors", daemon=True).start()
    return answer


def _give(answer: asyncio.Future[Readings | str], found: Readings | str) -> None:
    if not answer.done():
        answer.set_result(found)
