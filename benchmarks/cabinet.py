"""The real daemon in a simulated cabinet: its CPU seconds heat a plant, which is all that its sensor feels.

The plant (`edged.governor.plant`, two heat capacities) lives `compression` times as fast as the clock: a die
and a heat sink that are so much smaller. The times of `[governor]` are shortened alike, not the constants
behind trust and filter, which makes the filter slower for the plant than on a real box. Answers take as long
as they take.
"""

from __future__ import annotations

import itertools
import math
import queue
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec.structs import replace

from benchmarks.setting import ALONE
from edged.config import Governor
from edged.errors import EdgedError
from edged.governor.plant import DEVICE, SCENARIOS, STEP_S, Plant, Scenario
from edged.replies import Final
from edged.report import Status
from edged.testing.daemon import RunningDaemon, running
from edged.testing.sysfs import SensorTree

BUILT_IN = Governor()
LIMIT_C = BUILT_IN.temperature[DEVICE].critical_c
TICK_S = 0.1
SMOOTH = 0.3
"""Weight of a tick's CPU seconds, which the kernel counts in hundredths."""
CLIENTS = 48
OTHERS = ("igpu", "npu", "gpu", "board", "nvme")
SAMPLE_S = 0.05


class Cabinet(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario in a hurry."""

    scenario: Scenario
    compression: float
    sink_c: float | None = None
    """How warm the heat sink is at first; None: as warm as an idle box's."""

    @property
    def seconds(self) -> float:
        """By the clock."""
        return self.scenario.duration_s / self.compression


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """What runs in the cabinet, and what it is asked."""

    stages: str
    """TOML."""
    model: str
    questions: tuple[str, ...]
    max_tokens: int
    borrowed: Path | None = None
    """A state folder whose weights it uses."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How often a box is asked, and what it keeps busy when it cannot do more."""

    per_s: float
    full_cores: float


class Lived(msgspec.Struct, kw_only=True):
    """What one governor made of it; seconds are those of the plant."""

    governor: str
    answers: int = 0
    asked: int = 0
    refused: dict[str, int] = {}
    quality: float = 0.0
    above_limit_s: float = 0.0
    above_limit_settled_s: float = 0.0
    """Behind the first quarter."""
    peak_c: float = 0.0
    changes: int = 0
    changes_settled: int = 0
    swaps: int = 0
    hours: float = 0.0
    busy: float = 0.0
    """Mean load, in proportion to the warm-up at saturation."""
    answers_by_rung: dict[str, int] = {}
    decisions: list[str] = []


def cabinet(*, quick: bool) -> Cabinet:
    """45 °C, sun for half of the time, the fan stops after a quarter; quick: 56 °C, a warm box, no fan."""
    whole = next(each for each in SCENARIOS if each.name == "cabinet-45c")
    if not quick:
        return Cabinet(scenario=whole, compression=20.0)
    brief = replace(whole, duration_s=720.0, ambient_c=56.0, fan_fails_s=0.0)
    return Cabinet(scenario=brief, compression=40.0, sink_c=70.0)


def hurried(compression: float) -> str:
    """The built-in governor, with its times shortened."""
    return (
        f"[governor]\nsample_s = {SAMPLE_S}\ndwell_s = {BUILT_IN.dwell_s / compression}\n"
        f"climb_after_s = {BUILT_IN.climb_after_s / compression}\n"
        f"retry_s = {BUILT_IN.retry_s / compression}\n"
        f"horizon_s = {BUILT_IN.horizon_s / compression}\n"
    )


def pausing(compression: float) -> str:
    """A governor that only pauses, 4 °C under the limit, and resumes 15 °C further down, not before 30 s."""
    bands = f"{{ rung = 'pause', enter_c = {LIMIT_C - 4}, leave_c = {LIMIT_C - 19} }}"
    kinds = "".join(f"[governor.temperature.{kind}]\ncritical_c = {LIMIT_C}\nbands = []\n" for kind in OTHERS)
    return (
        f"[governor]\nsample_s = {SAMPLE_S}\ndwell_s = {30 / compression}\n"
        f"climb_after_s = {30 / compression}\n"
        "retry_s = 0.1\nhorizon_s = 0\nload = []\nmemory = []\nstall = []\n"
        "ladder = [{ name = 'full' }, { name = 'pause', busy_share = 0.01 }]\n"
        f"[governor.temperature.{DEVICE}]\ncritical_c = {LIMIT_C}\nbands = [{bands}]\n{kinds}"
    )


class Furnace(threading.Thread):
    """Heats the plant with what the daemon's processes compute, and writes what its sensor says."""

    def __init__(self, lived: Lived, held: Cabinet, tree: SensorTree, sensor: Path, pid: int) -> None:
        super().__init__(daemon=True)
        self._lived, self._held, self._tree, self._sensor = lived, held, tree, sensor
        self._root = psutil.Process(pid)
        self._used: dict[int, float] = {}
        self._busy_cores = 0.0
        self._plant = Plant(held.scenario)
        if held.sink_c is not None:
            self._plant.sink_c = self._plant.die_c = held.sink_c
        self._noise = random.Random(held.scenario.seed)
        self.full_cores = 1.0
        """What the daemon keeps busy at saturation."""
        self.heating = threading.Event()
        self.over = threading.Event()

    def run(self) -> None:
        """Tick until the scenario ends."""
        before_s = time.monotonic()
        while not self.over.wait(TICK_S):
            now_s = time.monotonic()
            self.busy_cores = self._measure(now_s - before_s)
            if self.heating.is_set():
                self._pass((now_s - before_s) * self._held.compression)
            self._show()
            before_s = now_s

    @property
    def busy_cores(self) -> float:
        """Smoothed."""
        return self._busy_cores

    @busy_cores.setter
    def busy_cores(self, cores: float) -> None:
        self._busy_cores += SMOOTH * (cores - self._busy_cores)

    def _measure(self, elapsed_s: float) -> float:
        used: dict[int, float] = {}
        for process in (self._root, *self._root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used[process.pid] = times.user + times.system
        spent_s = sum(seconds - self._used.get(pid, seconds) for pid, seconds in used.items())
        self._used = used
        return spent_s / elapsed_s

    def _pass(self, plant_s: float) -> None:
        busy, lived, held = min(1.0, self._busy_cores / self.full_cores), self._lived, self._held
        for _ in range(max(1, round(plant_s / STEP_S))):
            if self._plant.at_s >= held.scenario.duration_s - STEP_S:
                self.over.set()
                break
            self._plant.run(busy)
            lived.busy += busy * STEP_S / held.scenario.duration_s
            lived.peak_c = max(lived.peak_c, self._plant.die_c)
            if self._plant.die_c > LIMIT_C:
                lived.above_limit_s += STEP_S
                settled = self._plant.at_s > held.scenario.duration_s / 4
                lived.above_limit_settled_s += STEP_S * settled

    def _show(self) -> None:
        noisy_c = self._plant.die_c + self._noise.gauss(0.0, self._held.scenario.noise_c)
        self._tree.write(self._sensor, round(noisy_c))


class Crowd:
    """Requests that come by themselves, at a given rate, some of them of priority batch."""

    def __init__(self, daemon: RunningDaemon, box: Box) -> None:
        self._daemon, self._box = daemon, box
        self._lock = threading.Lock()
        self._next = 0
        self.rungs: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.asked = 0

    def ask(self, *, batch: bool = False) -> None:
        """Ask the next question, and count how that ended."""
        with self._lock:
            self._next += 1
            question = self._box.questions[self._next % len(self._box.questions)]
        fields: dict[str, Any] = {
            "max_tokens": self._box.max_tokens,
            "edged": {"priority": "batch" if batch else "interactive"},
        }
        messages = [{"role": "user", "content": question}]
        try:
            *_, final = self._daemon.client.chat(messages, model=self._box.model, stream=False, **fields)
        except EdgedError as error:
            self.codes[error.code] += 1
        else:
            assert isinstance(final, Final)
            self.rungs[final.rung] += 1

    def saturate(self, seconds: float, clients: int = 8) -> float:
        """Answers per second of clients that ask one question after the other."""
        until_s = time.monotonic() + seconds
        before = self.rungs.total()

        def client() -> None:
            while time.monotonic() < until_s:
                self.ask()

        threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
        began_s = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return (self.rungs.total() - before) / (time.monotonic() - began_s)

    def arrive(self, per_s: float, over: threading.Event, batch_share: float, seed: int) -> None:
        """Let requests come until `over`; where all hands are full, they are asked late, not never."""
        due: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        chance = random.Random(seed)

        def hand() -> None:
            while (batch := due.get()) is not None:
                self.ask(batch=batch)

        hands = [threading.Thread(target=hand, daemon=True) for _ in range(CLIENTS)]
        for each in hands:
            each.start()
        while not over.wait(chance.expovariate(per_s)):
            self.asked += 1
            due.put(chance.random() < batch_share)
        for _ in hands:
            due.put(None)


@contextmanager
def daemon_in(
    folder: Path, config: str, borrowed: Path | None = None
) -> Iterator[tuple[RunningDaemon, SensorTree, Path]]:
    """A daemon whose only sensor is a file, at 45 °C; with the weights of a `borrowed` state folder."""
    state = folder / "daemon" / "state"
    state.mkdir(parents=True)
    if borrowed is not None:
        for name in ("models", "cache"):
            (state / name).symlink_to(borrowed / name)
    tree = SensorTree(folder / "tree")
    (sensor,) = tree.chip(0, "coretemp", ("Package id 0", 45.0))
    with running(folder / "daemon", config, command=tree.command()) as daemon:
        flicker = itertools.cycle((44.0, 45.0))  # a reading that stands still while models load is stuck

        def read(status: Status) -> bool:
            tree.write(sensor, next(flicker))
            return status.temperature_c is not None

        daemon.wait_for(read, "a temperature")
        yield daemon, tree, sensor


def live(
    name: str, held: Cabinet, governor: str, box: Box, *, warm_s: float, load: Load | None = None
) -> tuple[Lived, Load]:
    """Live through the scenario under a governor, asked as before, or as the scenario says."""
    lived = Lived(governor=name, hours=held.scenario.duration_s / 3600)
    with (
        tempfile.TemporaryDirectory() as folder,
        daemon_in(Path(folder), box.stages + governor, box.borrowed) as (daemon, tree, sensor),
    ):
        furnace = Furnace(lived, held, tree, sensor, daemon.process.pid)
        furnace.start()
        crowd = Crowd(daemon, box)
        daemon.admin.pin_rung("full")
        crowd.saturate(1.0)
        load = load or _load(held, furnace, crowd.saturate(warm_s))
        furnace.full_cores = load.full_cores
        daemon.admin.release_rung()
        crowd.rungs.clear()
        crowd.codes.clear()
        began_at = time.time()
        furnace.heating.set()
        crowd.arrive(load.per_s, furnace.over, held.scenario.batch_share, held.scenario.seed)
        answers = dict(crowd.rungs)
        furnace.join(10)
        _sum_up(lived, held, daemon, crowd, answers, began_at)
        daemon.admin.pin_rung("full")  # what is still in hand is soon done
        return lived, load


def _load(held: Cabinet, furnace: Furnace, most_per_s: float) -> Load:
    return Load(per_s=held.scenario.offered * most_per_s, full_cores=max(furnace.busy_cores, 0.5))


def _sum_up(
    lived: Lived, held: Cabinet, daemon: RunningDaemon, crowd: Crowd, answers: dict[str, int], began_at: float
) -> None:
    rows = [
        row
        for row in daemon.admin.decisions(1000)
        if row.what in {"down", "up"} and row.cause != "pinned" and row.at >= began_at
    ]
    lived.asked, lived.answers = crowd.asked, sum(answers.values())
    lived.answers_by_rung, lived.refused = answers, dict(crowd.codes)
    lived.changes = len(rows)
    lived.changes_settled = sum(row.at >= began_at + held.seconds / 4 for row in rows)
    lived.swaps = sum(stage.swaps for stage in daemon.client.status().stages)
    lived.decisions = [
        f"{(row.at - began_at) * held.compression / 60:.0f} min: {row.rung}: {row.why}" for row in rows
    ]


def hover(centre_c: float, start_c: float, compression: float, seconds: float, period_s: float) -> int:
    """Changes while a reading hovers by ±2 °C around a limit, behind a rest beside it."""
    stage = f"{ALONE}[stages.generator]\nbackend = 'simulated'\ndevice = 'sim:cpu'\n"
    with (
        tempfile.TemporaryDirectory() as folder,
        daemon_in(Path(folder), hurried(compression) + stage) as (daemon, tree, sensor),
    ):
        near_c = centre_c + math.copysign(2.5, start_c - centre_c)
        tree.write(sensor, start_c)
        _rest(daemon, seconds / 4)
        tree.write(sensor, near_c)
        _rest(daemon, seconds / 4)
        before = _changes(daemon)
        began_s = time.monotonic()
        while (elapsed_s := time.monotonic() - began_s) < seconds:
            swing = math.sin(2 * math.pi * elapsed_s * compression / period_s)
            tree.write(sensor, centre_c + 2.0 * swing)
            time.sleep(SAMPLE_S)
        return _changes(daemon) - before


def _rest(daemon: RunningDaemon, seconds: float) -> None:
    """Long enough for the filter and for every step that the reading asks for."""
    time.sleep(max(4.0, seconds))
    daemon.client.status()


def _changes(daemon: RunningDaemon) -> int:
    return sum(row.what in {"down", "up"} for row in daemon.admin.decisions(1000))
