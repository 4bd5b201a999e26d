"""What a plan leaves behind that was taken back, and who has to wait for one that is on its way."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import pytest

from edged.errors import AlreadyRunning
from edged.placement import storage
from edged.placement.table import Choice, Plan
from edged.report import StageStatus
from edged.testing.daemon import RunningDaemon, running
from tests.faults.crowd import ask

from .test_plan import CONFIG, FAST, Box, batches, changed, form, notes, settled

LOAD_MS = 400
UNPLACED = CONFIG.replace('device = "sim:npu"', "target_ms = 1").replace(
    'model = "smollm2-135m-instruct"\nbackend = "simulated"', 'model = "smollm2-135m-instruct"'
)
"""Its second stage has no weights for any backend of its model, so that only a plan can start it."""
THREE = (
    CONFIG.replace("max_tokens = 24 }", f"max_tokens = 24, load_ms = {LOAD_MS} }}").replace(
        'device = "sim:npu"\noptions = { context_tokens = 8192 }',
        f'device = "sim:npu"\noptions = {{ context_tokens = 8192, load_ms = {LOAD_MS} }}',
    )
    + """
[stages.third]
kind = "generator"
model = "smollm2-135m-instruct"
backend = "simulated"
device = "sim:gpu"
options = { context_tokens = 8192 }
"""
)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def with_options(plan: Plan, stage: str, **options: int) -> Plan:
    def choose(choice: Choice) -> Choice:
        return msgspec.structs.replace(choice, form=form(stage, FAST, **options))

    return changed(plan, stage, choose)


def with_third(plan: Plan, **options: int) -> Plan:
    of = msgspec.structs.replace(form("second", FAST, **options), stage="third", device="sim:gpu")
    third = msgspec.structs.replace(plan.choices["second"], form=of)
    return msgspec.structs.replace(plan, choices=plan.choices | {"third": third})


def of_stage(daemon: RunningDaemon, name: str) -> StageStatus:
    return next(stage for stage in daemon.client.status().stages if stage.name == name)


def test_a_stage_that_was_idle_is_idle_again_and_the_same_plan_fails_again(box):
    plan = box.plan()
    broken = with_options(plan, "second", no_such_option=1)
    with running(box.folder, UNPLACED, wait=False) as daemon:
        daemon.wait_for(lambda status: status.state == "degraded", "all but one stage")
        before = of_stage(daemon, "second")
        assert before.state == "failed"
        for _ in range(2):
            assert "stage second: starts" in daemon.admin.apply_plan(broken)
            report = settled(daemon)
            assert "no_such_option" in report.problem
            assert report.plan is None
            daemon.wait_for(lambda _: not of_stage(daemon, "second").workers, "nobody at work there")
            after = of_stage(daemon, "second")
            assert (after.state, after.reason, after.batch_limit) == ("failed", before.reason, 1)
            assert ask(daemon.client, "hello", "second").code == "stage_unavailable"


def test_a_stage_that_is_placed_as_planned_but_down_is_tried_again(box):
    faults = box.folder / "faults.toml"
    config = CONFIG.replace("max_tokens = 24", f'max_tokens = 24, faults = "{faults}"')
    with box.start(config):
        plan = box.plan("--apply")
    faults.write_text("[no fault]")
    with running(box.folder, config, wait=False) as daemon:
        daemon.wait_for(lambda _: of_stage(daemon, "generator").state == "failed", "the fault")
        (change,) = daemon.admin.apply_plan(plan)
        assert change.startswith("stage generator: is tried again (fault file")
        assert "stage generator: fault file" in settled(daemon).problem
        faults.unlink()
        assert len(daemon.admin.apply_plan(plan)) == 1
        assert settled(daemon).problem == ""
        assert daemon.client.status().state == "ready"
        assert daemon.admin.apply_plan(plan) == []


def test_a_stage_that_a_plan_starts_forms_batches_as_configured(box):
    plan = box.plan()
    with running(box.folder, UNPLACED, wait=False) as daemon:
        daemon.wait_for(lambda status: status.state == "degraded", "all but one stage")
        daemon.admin.apply_plan(plan)
        assert settled(daemon).problem == ""
        assert ask(daemon.client, "hello", "second").text
        daemon.wait_for(lambda _: "target_ms = 1" in of_stage(daemon, "second").batch_reason, "its bound")


def test_what_was_changed_goes_back_one_after_another_and_the_rest_is_left_alone(box):
    plan = with_third(box.plan(), no_such_option=1)
    with box.start(THREE) as daemon:
        daemon.admin.apply_plan(plan)
        third = {worker.pid for worker in of_stage(daemon, "third").workers}
        loading: list[int] = []

        def ended(status):
            starting = [any(w.state == "starting" for w in stage.workers) for stage in status.stages]
            loading.append(sum(starting))
            return not daemon.admin.plan().under_way

        daemon.wait_for(ended, "the plan taken back")
        report = daemon.admin.plan()
        assert "stage third" in report.problem
        assert "did not come back" not in report.problem
        assert max(loading) == 1
        status = daemon.client.status()
        assert status.state == "ready"
        assert batches(status) == {"generator": 8, "second": 8, "third": 8}
        assert {worker.pid for worker in of_stage(daemon, "third").workers} == third


def test_a_stage_that_does_not_come_back_is_told(box):
    faults = box.folder / "faults.toml"
    config = CONFIG.replace("context_tokens = 8192", f'context_tokens = 8192, faults = "{faults}"')
    with box.start(config) as daemon:
        daemon.admin.apply_plan(with_options(box.plan(), "second", load_ms=60_000))
        daemon.wait_for(lambda _: daemon.admin.plan().waiting == ("second",), "half of it done")
        faults.write_text("[no fault]")
        status = daemon.wait_for(
            lambda _: any(w.state == "starting" for w in of_stage(daemon, "second").workers), "a new worker"
        )
        (new,) = (w.pid for s in status.stages for w in s.workers if w.state == "starting")
        os.kill(new, signal.SIGKILL)
        problem = settled(daemon).problem
        assert "taken back: stage second: " in problem
        assert "; stage generator did not come back: " in problem
        assert problem in notes(daemon)


def test_a_plan_that_cannot_be_stored_is_in_force_and_said_to_be_lost(box):
    with box.start() as daemon:
        in_the_way = box.state / storage.PLAN / "file"
        in_the_way.parent.mkdir()
        in_the_way.touch()
        applied = box.ctl("--apply")
        assert applied.returncode == 0
        assert "is in force" in applied.stdout
        told = daemon.admin.plan().unstored
        assert f"cannot write the plan {box.state / storage.PLAN}" in told
        assert told in applied.stderr
        assert told in notes(daemon)
        cleared = json.loads(box.ctl("--clear", "--json").stdout)
        assert "takes up the former plan" in cleared["unstored"]
        assert "cannot remove the plan" in cleared["unstored"]
        in_the_way.unlink()
        in_the_way.parent.rmdir()
        assert json.loads(box.ctl("--apply", "--json").stdout)["unstored"] == ""
        assert "next start" not in notes(daemon)
        assert storage.load_plan(box.state / storage.PLAN) == daemon.admin.plan().plan


def test_a_reload_does_not_come_between(box):
    """Who can be told is refused; a signal is heeded when the plan is in force."""
    other = CONFIG.replace("max_tokens = 24", "max_tokens = 12")
    with box.start() as daemon:
        daemon.admin.apply_plan(with_options(box.plan(), "second", load_ms=2 * LOAD_MS))
        daemon.wait_for(lambda _: daemon.admin.plan().waiting == ("second",), "half of it done")
        box.write(other)
        with pytest.raises(AlreadyRunning, match="second to go"):
            daemon.admin.reload()
        for _ in range(2):
            daemon.process.send_signal(signal.SIGHUP)
        assert settled(daemon).problem == ""
        daemon.wait_for(lambda _: len(ask(daemon.client, "hello", "generator").text) == 12, "the reload")
        assert daemon.admin.plan().plan is not None
        assert batches(daemon.client.status()) == {"generator": 4, "second": 4}
        assert daemon.log.index("plan applied") < daemon.log.index("reloaded")
