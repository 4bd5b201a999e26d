"""`edgectl plan` and a real daemon of simulated stages: show, explain, apply under load, restart, clear."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edged.errors import AlreadyRunning, BadRequest, EdgedError, NotFound
from edged.placement import storage
from edged.placement.fingerprint import take
from edged.placement.table import Choice, Form, Plan, Point, Table, Weight
from edged.report import PlanReport, Status
from edged.testing.daemon import RunningDaemon, running
from tests.faults.crowd import CLIENTS, Crowd, ask

from .conftest import NO_BUILT_IN

FAST, SLOW = 1, 4
"""Milliseconds of a step: what the two forms of a stage differ in."""
STAGES = ("generator", "second")
CONFIG = (
    NO_BUILT_IN
    + """
[stages.generator]
backend = "simulated"
device = "sim:cpu"
options = { context_tokens = 8192, max_tokens = 24 }
[stages.second]
kind = "generator"
model = "smollm2-135m-instruct"
backend = "simulated"
device = "sim:npu"
options = { context_tokens = 8192 }
"""
)


def form(stage: str, decode_ms: int, **options: int) -> Form:
    fixed = tuple(sorted({"decode_ms": decode_ms, **options}.items()))
    model, device = "smollm2-135m-instruct", "sim:cpu" if stage == "generator" else "sim:npu"
    return Form(
        stage=stage, model=model, variant="none", backend="simulated", device=device, threads=0, options=fixed
    )


def points(of: Form) -> list[Point]:
    alone_s = 0.03 * float(dict(of.options)["decode_ms"])
    walls = [(batch, alone_s * batch**0.5) for batch in (1, 4)]
    return [
        Point(form=of, batch=batch, length=10, wall_s=wall_s, cpu_s=0.001, rounds=3, spread=0.0)
        for batch, wall_s in walls
    ]


def table(**changes: object) -> Table:
    forms = [form(stage, decode_ms) for stage in STAGES for decode_ms in (FAST, SLOW)]
    measured = Table(
        fingerprint=take({}),
        measured_at="2026-01-01T00:00:00Z",
        points=tuple(point for each in forms for point in points(each)),
        weights=tuple(Weight(form=each, memory_bytes=1 << 20, load_s=0.1) for each in forms),
        finished=STAGES,
        finished_pairs=(STAGES,),
    )
    return msgspec.structs.replace(measured, **changes)


class Box:
    """A folder with a configuration and a calibration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir()
        self.write(CONFIG)
        storage.save(table(), self.state / storage.FILE)

    def write(self, config: str) -> None:
        (self.folder / "edged.toml").write_text(config)

    def start(self, config: str = CONFIG):
        return running(self.folder, config)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        sockets = ("--config", self.folder / "edged.toml", "--socket", self.folder / "run" / "edged.sock")
        settings = ("--set", f"daemon.state_dir={self.state}")
        command = [sys.executable, "-m", "edged.cli", *sockets, *settings, "plan", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def plan(self, *arguments: str) -> Plan:
        done = self.ctl("--json", *arguments)
        assert done.returncode == 0, done.stderr
        return msgspec.convert(json.loads(done.stdout)["plan"], Plan)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def changed(plan: Plan, stage: str, choose: Callable[[Choice], Choice]) -> Plan:
    choices = plan.choices | {stage: choose(plan.choices[stage])}
    return msgspec.structs.replace(plan, choices=choices)


def batches(status: Status) -> dict[str, int]:
    return {stage.name: stage.batch_limit for stage in status.stages if stage.state != "off"}


def notes(daemon: RunningDaemon) -> str:
    return "\n".join(daemon.client.status().notes)


def settled(daemon: RunningDaemon):
    """Wait until no plan is on its way; say how that ended."""
    daemon.wait_for(lambda _: not daemon.admin.plan().under_way, "a plan in force")
    return daemon.admin.plan()


def test_without_a_daemon_it_says_what_to_run_and_why(box):
    plan = box.plan()
    assert {name: dict(choice.form.options) for name, choice in plan.choices.items()} == {
        name: {"decode_ms": FAST} for name in STAGES
    }
    shown = box.ctl().stdout
    assert "bounded by" in shown
    assert "runner-up simulated sim:cpu none, decode_ms = 4: 75 % fewer requests per second" in shown
    assert "would change" not in shown


def test_the_explanation_names_every_loser_and_its_reason(box):
    out = box.ctl("--explain", "second").stdout
    losers = [line for line in out.splitlines() if "decode_ms = 4" in line]
    assert len(losers) == 2
    assert all("fewer requests per second" in line for line in losers)
    ruled_out = box.ctl("--explain", "second", "--bound", "latency=0.1s", "--json")
    fates = {
        (dict(verdict["form"]["options"])["decode_ms"], verdict["batch"]): verdict["fate"]
        for verdict in json.loads(ruled_out.stdout)["candidates"]
    }
    assert fates[SLOW, 4] == "ruled out"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--explain", "nobody"), "[not_found]: there is no stage 'nobody'; there are: generator, second"),
        (("--bound", "latency=1 moment"), "is not a duration"),
        (("--bound", "latency=0.001"), "no placement keeps latency_s 0.001"),
        (("--without", "sim:cpu"), "device sim:cpu is excluded"),
        (("--apply",), "[unreachable]"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(box, arguments, why):
    done = box.ctl(*arguments)
    assert done.returncode != 0
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_calibration_that_no_longer_holds_is_refused_unless_asked_for(box):
    other = msgspec.structs.replace(table().fingerprint, cores=1000)
    storage.save(table(fingerprint=other), box.state / storage.FILE)
    refused = box.ctl()
    assert refused.returncode == 1
    assert "no longer holds here (cores: 1000 -> " in refused.stderr
    assert "edgectl calibrate" in refused.stderr
    assert "made from figures that no longer hold (cores: 1000" in box.plan("--stale").notes[0]


def test_a_plan_of_another_machine_is_refused_when_applied_as_it_would_be_at_the_next_start(box):
    other = msgspec.structs.replace(table().fingerprint, accelerators=("nvidia0 0x10de:0x2684",))
    storage.save(table(fingerprint=other), box.state / storage.FILE)
    with box.start() as daemon:
        before = {worker.pid for worker in daemon.workers()}
        assert "refused [bad_request]: the plan was made on other hardware" in box.ctl("--stale").stdout
        refused = box.ctl("--stale", "--apply")
        assert refused.returncode == 1
        assert "made on other hardware (accelerators: nvidia0 0x10de:0x2684 -> " in refused.stderr
        assert daemon.admin.plan() == PlanReport(plan=None)
        assert {worker.pid for worker in daemon.workers()} == before


def test_applied_under_load_no_request_fails_and_a_restart_keeps_it(box):
    with box.start() as daemon:
        before = {worker.pid for worker in daemon.workers()}
        answer = ask(daemon.client, "hello", "generator").text
        with Crowd([lambda _: ask(daemon.client, "hello", "generator")] * CLIENTS, 7) as crowd:
            daemon.wait_for(lambda status: status.completed > CLIENTS, "load")
            foreseen = box.ctl().stdout
            applied = box.ctl("--apply")
            assert applied.returncode == 0, applied.stderr
            finished = daemon.client.status().completed
            daemon.wait_for(lambda status: status.completed > finished + CLIENTS, "load on the new workers")
        crowd.judge({"hello": answer})
        assert "stage generator: max_batch 8 -> 4, decode_ms default -> 1" in foreseen
        assert not before & {worker.pid for worker in daemon.workers()}
        status = daemon.client.status()
        plan = daemon.admin.plan().plan
        assert status.plan is not None
        assert (status.plan.id, status.plan.stale) == (plan.id, "")
        assert "runs like that already" in box.ctl().stdout
    with box.start() as daemon:
        assert daemon.admin.plan().plan == plan
        assert batches(daemon.client.status()) == dict.fromkeys(STAGES, 4)
        assert box.ctl("--clear").returncode == 0
        assert batches(daemon.client.status()) == dict.fromkeys(STAGES, 8)
        assert daemon.client.status().plan is None
        assert "no plan is applied" in notes(daemon)
    assert not (box.state / storage.PLAN).exists()


def test_a_plan_whose_worker_does_not_come_up_is_taken_back(box):
    def broken(choice: Choice) -> Choice:
        return msgspec.structs.replace(choice, form=form("second", FAST, no_such_option=1))

    with box.start() as daemon:
        good = box.plan("--apply")
        with Crowd([lambda _: ask(daemon.client, "hello", "second")] * 2, 7) as crowd:
            daemon.admin.apply_plan(
                changed(
                    changed(good, "generator", lambda c: msgspec.structs.replace(c, batch=2)),
                    "second",
                    broken,
                )
            )
            with pytest.raises(AlreadyRunning):
                daemon.admin.apply_plan(good)
            report = settled(daemon)
        crowd.judge({})
        assert report.plan == good
        assert "stage second" in report.problem
        assert "no_such_option" in report.problem
        assert "taken back" in notes(daemon)
        daemon.wait_for(lambda status: batches(status) == dict.fromkeys(STAGES, 4), "as before")
        assert storage.load_plan(box.state / storage.PLAN) == good
        assert box.ctl("--apply").returncode == 0
        assert "taken back" not in notes(daemon)


@pytest.mark.parametrize("how", ["in order", "killed"])
def test_a_daemon_that_ends_while_a_plan_is_on_its_way_forgets_it(box, how):
    def slow(choice: Choice) -> Choice:
        return msgspec.structs.replace(choice, form=form("second", FAST, load_ms=60_000))

    with box.start() as daemon:
        daemon.admin.apply_plan(changed(box.plan(), "second", slow))
        daemon.wait_for(lambda _: daemon.admin.plan().waiting == ("second",), "half of it done")
        if how == "killed":
            daemon.kill()
        else:
            assert daemon.stop() == 0
        assert "Traceback" not in daemon.log
        with box.start() as again:
            assert again.admin.plan() == PlanReport(plan=None)
            assert batches(again.client.status()) == dict.fromkeys(STAGES, 8)


def test_what_the_configuration_says_wins_over_the_plan(box):
    with box.start() as daemon:
        plan = box.plan("--apply")
        box.write(CONFIG.replace('"sim:npu"', '"sim:gpu"').replace('"sim:cpu"', '"sim:cpu"\nmax_batch = 3'))
        daemon.admin.reload()
        daemon.wait_for(lambda status: batches(status) == {"generator": 3, "second": 8}, "the new settings")
        assert "stage second is not as planned: the configuration says device = sim:gpu" in notes(daemon)
        assert "stage generator is not quite as planned: the configuration says max_batch = 3" in notes(
            daemon
        )
        with pytest.raises(BadRequest, match="goes against the configuration"):
            daemon.admin.apply_plan(plan)
        stranger = msgspec.structs.replace(plan, choices={"third": plan.choices["second"]})
        with pytest.raises(NotFound, match="'third'"):
            daemon.admin.apply_plan(stranger, dry_run=True)


def test_a_refused_reload_leaves_what_is_said_about_the_plan(box):
    """The new configuration would let the plan choose, which fails here, and so does the default."""
    nowhere = msgspec.structs.replace(form("second", FAST), backend="nonesuch")
    plan = changed(box.plan(), "second", lambda choice: msgspec.structs.replace(choice, form=nowhere))
    storage.keep_plan(plan, box.state / storage.PLAN)
    with box.start() as daemon:
        before = notes(daemon)
        assert "stage second is not as planned: the configuration says backend = simulated" in before
        box.write(CONFIG.replace('backend = "simulated"\ndevice = "sim:npu"\n', 'device = "sim:npu"\n'))
        with pytest.raises(EdgedError, match="models pull"):
            daemon.admin.reload()
        assert notes(daemon) == before


@pytest.mark.parametrize("kind", ["garbage", "other hardware", "other kernel"])
def test_a_stored_plan_that_does_not_fit_never_stops_the_daemon(box, kind):
    plan = box.plan()
    other = {"cpu": "something else"} if kind == "other hardware" else {"kernel": "0.1"}
    fingerprint = msgspec.structs.replace(plan.fingerprint, **other)
    storage.keep_plan(msgspec.structs.replace(plan, fingerprint=fingerprint), box.state / storage.PLAN)
    if kind == "garbage":
        (box.state / storage.PLAN).write_text('{"id": 7')
    with box.start() as daemon:
        assert daemon.wait_ready().state == "ready"
        told = {
            "garbage": "cannot be read",
            "other hardware": "was made on other hardware",
            "other kernel": "rests on figures that no longer hold (kernel: 0.1 -> ",
        }[kind]
        assert told in notes(daemon)
        assert (daemon.admin.plan().plan is None) == (kind != "other kernel")


def test_rates_that_leave_the_prediction_for_long_are_told_and_nothing_else_happens(box):
    optimistic = [
        msgspec.structs.replace(point, wall_s=point.wall_s / (10 if point.form.stage == "generator" else 100))
        for point in table().points
    ]
    storage.save(table(points=tuple(optimistic)), box.state / storage.FILE)
    with box.start(CONFIG + "[placement]\ndrift_s = 3\n") as daemon:
        box.plan("--apply")
        workers = {worker.pid for worker in daemon.workers()}
        with Crowd([lambda _: ask(daemon.client, "hello", "generator")] * 2 * CLIENTS, 7) as crowd:
            plan = daemon.wait_for(lambda status: status.plan and status.plan.stale, "a complaint").plan
        crowd.judge({})
        assert plan is not None
        assert "generator finishes" in plan.stale
        assert plan.paces["generator"] < 0.75
        assert plan.observed_rate_per_s < 0.75 * plan.predicted_rate_per_s
        assert "the plan no longer tells what happens" in notes(daemon)
        assert "edged_plan_stale 1.0" in daemon.client.metrics()
        assert {worker.pid for worker in daemon.workers()} == workers
        box.write(CONFIG.replace('"sim:cpu"', '"sim:cpu"\nmax_batch = 3'))
        daemon.admin.reload()
        plan = daemon.wait_for(
            lambda status: status.plan and not status.plan.stale, "no judgement of what is not planned"
        ).plan
        assert plan is not None
        assert (plan.observed_rate_per_s, plan.paces.get("generator")) == (None, None)
        assert "stage generator is not quite as planned" in notes(daemon)
