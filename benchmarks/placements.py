"""Placements as daemons: what the planner chooses among, measured one by one, and what it knows of them."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import msgspec

from benchmarks import rag
from benchmarks.load import Result
from benchmarks.measurement import say
from benchmarks.setting import NONE_BUILT_IN, STATE, RagLibrary, generators, rag_library
from benchmarks.throughput import BATCH
from edged.config import Config
from edged.config import load as load_config
from edged.dispatch.leases import Mode
from edged.placement import survey
from edged.placement.aim import Aim
from edged.placement.calibrate import Calibration, Limits
from edged.placement.forms import Candidate
from edged.placement.limits import MODES, Wishes
from edged.placement.limits import Limits as PlanLimits
from edged.placement.plan import Planner
from edged.placement.table import Choice, Form, Plan, Point, Table
from edged.report import Status
from edged.testing.daemon import RunningDaemon, running

GENERATORS = (("openvino", "q4_1", False), ("openvino", "q4_0", False), ("llama_cpp", "q4_0", True))
"""Backend, variant, `exact`."""
ALL_RUN: tuple[Mode, ...] = ("split", "together", "turns")
"""Ways to share cores with a worker a stage."""
BUDGET_S = 240.0
DRIFT_BUDGET_S = 25.0
MEMORY_BYTES = 1 << 40


class Shape(msgspec.Struct, frozen=True):
    """How generator and reranker are laid over the cores, and who decides which of them runs."""

    generator_threads: int
    reranker_threads: int
    generators: int
    rerankers: int
    mode: Mode


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the pipeline, and the configuration that does it."""

    name: str
    config: str
    id: str = ""
    """Of the plan that says the same; empty where no plan can say it."""


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is measured, what the planner chose of it, and what rules of thumb choose."""

    placements: tuple[Placement, ...]
    chosen: Placement
    rules: Mapping[str, str]
    """Name of the rule: name of the placement."""
    plan: Plan
    table: Table


def configured(text: str) -> Config:
    """A configuration as the daemon would read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edged.toml"
        path.write_text(text)
        path.chmod(0o600)
        return load_config(path)


def calibrated(config: Config, wanted: Callable[[Form], bool], budget_s: float) -> Table:
    """Run the calibrator over some of the forms of a configuration."""
    store = survey.open_store(config, {})
    stages = survey.stages_of(config, ())
    found, _ = survey.runtimes(stages)
    candidates: list[Candidate] = [
        c for c in survey.all_candidates(stages, config, store, found) if wanted(c.form)
    ]
    workload = survey.workload(config)
    table, _ = survey.starting_table(None, candidates, workload)
    run = Calibration(
        candidates, workload, table, Limits(budget_s), lambda _: None, lambda stand: say(stand.what)
    )
    return run.run()


def plan_of(table: Table, wishes: Mapping[str, Wishes], cores: int) -> Plan:
    """The planner's choice for throughput."""
    limits = PlanLimits(cores=cores, memory_bytes=MEMORY_BYTES, modes=MODES)
    return Planner(table, wishes, limits).plan(Aim())


def stage_toml(name: str, choice: Choice, more: str = "") -> str:
    """The table of a stage that runs as a plan says."""
    form = choice.form
    threads = (("threads", form.threads),) if form.threads else ()
    written = ", ".join(f"{key} = {str(value).lower()}" for key, value in (*threads, *form.options))
    return (
        f"[stages.{name}]\nvariant = '{form.variant}'\nbackend = '{form.backend}'\n"
        f"device = '{form.device}'\nworkers = {choice.workers}\nmax_batch = {choice.batch}\n"
        f"options = {{ {written} }}\n{more}"
    )


# ------------------------------------------------------------- the real pipeline


@cache
def collection() -> RagLibrary:
    """HotpotQA as a library, and its questions."""
    return rag_library(quick=False)


def base(mode: str) -> str:
    """The built-in pipeline over HotpotQA, its cores shared in one way."""
    return (
        f"[daemon]\nstate_dir = '{STATE}'\n[library]\ndir = '{collection().folder}'\n"
        f"[placement]\nleases = '{mode}'\n"
    )


def real_toml(plan: Plan) -> str:
    """The configuration that a plan stands for."""
    return base(plan.lease_mode) + "".join(stage_toml(name, c) for name, c in plan.choices.items())


def _of_space(form: Form) -> bool:
    if form.stage == "generator":
        return (form.backend, form.variant, dict(form.options).get("exact")) in GENERATORS
    return form.backend == "onnx" and form.variant == "int8"


def wishes_of(cores: int) -> dict[str, Wishes]:
    """What the planner may choose: threads, workers and modes as it likes, in batches of eight."""
    free = Wishes(model="", variants=("int8",), max_batch=BATCH)
    return {
        "retriever": msgspec.structs.replace(free, workers=1, options={"threads": cores}),
        "reranker": free,
        "generator": msgspec.structs.replace(free, variants=("q4_1", "q4_0")),
    }


def shapes(cores: int) -> list[Shape]:
    """A worker a stage, on all cores or on one, shared in three ways; a worker of one thread a core.

    The last again with one reranker that spreads its batches over all cores.
    """
    common = [Shape(cores, threads, 1, 1, mode) for threads, mode in product((cores, 1), ALL_RUN)]
    single = [Shape(1, 1, cores, cores, "single"), Shape(1, cores, cores, 1, "single")]
    return [*common, Shape(1, cores, 1, 1, "together"), *single]


@cache
def real_table() -> Table:
    """The forms of the space, calibrated over the collection; generators on one core, too."""
    generators(*{variant for _, variant, _ in GENERATORS})
    began_s = time.monotonic()
    table = calibrated(configured(base("auto")), _of_space, BUDGET_S)
    say(f"P10: {len(table.points)} points, {len(table.pairs)} pairs in {time.monotonic() - began_s:.0f} s")
    return table


def drift(table: Table, plan: Plan) -> float:
    """How much longer the batches of a plan take now than when its table was measured: median ratio."""
    forms = {choice.form for name, choice in plan.choices.items() if name != "retriever"}
    before = {_occasion(point): point.wall_s for point in table.points if point.form in forms}
    now = calibrated(configured(base("auto")), forms.__contains__, DRIFT_BUDGET_S)
    ratios = [p.wall_s / before[_occasion(p)] for p in now.points if _occasion(p) in before]
    return statistics.median(ratios)


def _occasion(point: Point) -> tuple[Form, int, str]:
    return point.form, point.batch, point.work


def slowed(table: Table, factor: float) -> Table:
    """The table of a machine on which everything takes `factor` times as long."""
    points = tuple(
        msgspec.structs.replace(
            each, wall_s=each.wall_s * factor, cpu_s=each.cpu_s * factor, first_s=each.first_s * factor
        )
        for each in table.points
    )
    return msgspec.structs.replace(table, points=points)


@cache
def real_space() -> Space:
    """Three generators in every shape, the planner's choice, and what people do without measuring."""
    table = real_table()
    cores = table.fingerprint.cores
    plan = plan_of(table, wishes_of(cores), cores)
    plans = {each: _forced(table, cores, *each) for each in product(GENERATORS, shapes(cores))}
    placements = {each.id: each for each in map(_placement, (*plans.values(), plan))}
    most = plans[GENERATORS[0], Shape(cores, cores, 1, 1, "together")]
    least = plans[GENERATORS[1], Shape(cores, cores, 1, 1, "split")]
    extra = (
        Placement(name="shipped defaults", config=base("auto")),
        Placement(name="one core each", config=base("together") + _one_core_each(cores)),
    )
    return Space(
        placements=(*placements.values(), *extra),
        chosen=placements[plan.id],
        rules={
            "most threads": placements[most.id].name,
            "smallest quant": placements[least.id].name,
            **{each.name: each.name for each in extra},
        },
        plan=plan,
        table=table,
    )


def _forced(table: Table, cores: int, generator: tuple[str, str, bool], shape: Shape) -> Plan:
    """The plan when generator and shape are given."""
    backend, variant, exact = generator
    wishes = wishes_of(cores)
    wishes["generator"] = msgspec.structs.replace(
        wishes["generator"],
        backend=backend,
        variants=(variant,),
        workers=shape.generators,
        options={"threads": shape.generator_threads, "exact": exact},
    )
    wishes["reranker"] = msgspec.structs.replace(
        wishes["reranker"], workers=shape.rerankers, options={"threads": shape.reranker_threads}
    )
    limits = PlanLimits(cores=cores, memory_bytes=MEMORY_BYTES, modes=(shape.mode,))
    return Planner(table, wishes, limits).plan(Aim())


def _placement(plan: Plan) -> Placement:
    generator, reranker = plan.choices["generator"], plan.choices["reranker"]
    name = (
        f"{generator.form.backend} {generator.form.variant} {_processes(generator)}, "
        f"reranker {_processes(reranker)}, {plan.lease_mode}"
    )
    return Placement(name=name, config=real_toml(plan), id=plan.id)


def _processes(choice: Choice) -> str:
    return f"{choice.workers}x{choice.form.threads}"


def _one_core_each(cores: int) -> str:
    last = f"cpu:{cores - 1}"
    return (
        "[stages.retriever]\ndevice = 'cpu:0'\n[stages.reranker]\ndevice = 'cpu:0'\n"
        f"[stages.generator]\ndevice = '{last}'\noptions = {{ exact = false }}\n"
    )


def drive_real(config: str, asked: rag.Asked, command: Sequence[str] = ()) -> Result:
    """Start a daemon, put a closed loop on it, stop it."""
    return drive_watched(config, asked, command)[0]


def drive_watched(config: str, asked: rag.Asked, command: Sequence[str] = ()) -> tuple[Result, Status]:
    """The same, and how things stood at the end."""
    with tempfile.TemporaryDirectory() as folder:
        if not command:
            with running(Path(folder), config) as daemon:
                return _driven(daemon, asked)
        daemon = RunningDaemon(Path(folder), config, command=command)
        try:
            daemon.wait_ready()
            return _driven(daemon, asked)
        finally:
            daemon.stop()


def _driven(daemon: RunningDaemon, asked: rag.Asked) -> tuple[Result, Status]:
    for _ in daemon.client.chat([{"role": "user", "content": "Is anybody there?"}], max_tokens=2):
        pass
    result = rag.drive(rag.order("edged", str(daemon.client.socket), daemon.process.pid, asked))
    return result, daemon.client.status()


def on_cores(cores: Iterable[int]) -> tuple[str, ...]:
    """The command that starts a daemon which sees these cores only."""
    return ("taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "edged")


# ------------------------------------------------------- the simulated pipeline

COSTS_MS = {"first": ("cpu", 16, 8), "second": ("gpu", 40, 40), "third": ("npu", 24, 16)}
"""Simulated device, milliseconds of a run and of each item in it: long beside what a hop costs."""
ROUTE = "[pipelines.all]\nstages = ['first', 'second', 'third']\n"


def simulated_toml(batches: Sequence[int]) -> str:
    """Three simulated devices with declared costs, which are slept, at these batches."""
    stages = zip(COSTS_MS.items(), batches, strict=True)
    return (
        NONE_BUILT_IN
        + ROUTE
        + "".join(
            f"[stages.{name}]\nkind = 'tensor'\nbackend = 'simulated'\ndevice = 'sim:{device}'\n"
            f"{f'max_batch = {batch}' if batch else ''}\n"
            f"options = {{ fixed_ms = {fixed}, per_item_ms = {item} }}\n"
            for (name, (device, fixed, item)), batch in stages
        )
    )


@cache
def simulated_space() -> Space:
    """Second and third stage at batch one or eight, and everything one at a time."""
    measured = calibrated(configured(simulated_toml((0, 0, 0))), lambda form: form.stage in COSTS_MS, 15.0)
    coarse = tuple(point for point in measured.points if point.batch in {1, BATCH})
    table = msgspec.structs.replace(measured, points=coarse)
    free = Wishes(model="", variants=("none",), workers=1)
    first = msgspec.structs.replace(free, max_batch=BATCH)
    plan = plan_of(table, {"first": first, "second": free, "third": free}, 2)
    sizes = [(BATCH, *rest) for rest in product((1, BATCH), repeat=2)]
    placements = {
        batches: Placement(name=f"batches {batches}", config=simulated_toml(batches))
        for batches in [*sizes, (1, 1, 1)]
    }
    return Space(
        placements=tuple(placements.values()),
        chosen=placements[tuple(choice.batch for choice in plan.choices.values())],
        rules={"one at a time": placements[1, 1, 1].name, "batch in front": placements[BATCH, 1, 1].name},
        plan=plan,
        table=table,
    )
