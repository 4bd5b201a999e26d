"""A plan with several workers a stage: applied under load, cleared, and against what the operator wrote."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edged.placement.table import Plan
from edged.testing.daemon import RunningDaemon
from tests.faults.crowd import CLIENTS, Crowd, ask

from .test_plan import CONFIG, Box, changed, notes, settled

MORE = 3


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def with_workers(plan: Plan, count: int, lease_mode: str) -> Plan:
    more = changed(plan, "generator", lambda choice: msgspec.structs.replace(choice, workers=count))
    return msgspec.structs.replace(more, id=f"{lease_mode}{count}", lease_mode=lease_mode)


def ready(daemon: RunningDaemon) -> dict[str, int]:
    return {
        stage.name: sum(worker.state == "ready" for worker in stage.workers)
        for stage in daemon.client.status().stages
        if stage.state != "off"
    }


def test_workers_come_and_go_with_a_plan_and_no_request_fails(box):
    with box.start() as daemon:
        plan = box.plan()
        answer = ask(daemon.client, "hello", "generator").text
        with Crowd([lambda _: ask(daemon.client, "hello", "generator")] * CLIENTS, 7) as crowd:
            for count, mode, before in ((MORE, "single", "split"), (1, "together", "single")):
                finished = daemon.client.status().completed
                told = daemon.admin.apply_plan(with_workers(plan, count, mode))
                assert f"cores are shared {mode} instead of {before}" in told
                assert settled(daemon).problem == ""
                assert ready(daemon) == {"generator": count, "second": 1}
                daemon.wait_for(lambda status, n=finished: status.completed > n + CLIENTS, "work by them")
        crowd.judge({"hello": answer})
        daemon.admin.apply_plan(with_workers(plan, MORE, "single"))
        assert settled(daemon).problem == ""
    with box.start() as daemon:
        assert ready(daemon) == {"generator": MORE, "second": 1}, "a restart keeps them"
        assert "workers" in box.ctl("--clear", "--json").stdout
        assert ready(daemon) == {"generator": 1, "second": 1}


def test_workers_and_leases_that_the_operator_wrote_win(box):
    config = CONFIG.replace('"sim:cpu"', '"sim:cpu"\nworkers = 2') + "[placement]\nleases = 'turns'\n"
    with box.start() as daemon:
        daemon.admin.apply_plan(with_workers(box.plan(), MORE, "single"))
        assert settled(daemon).problem == ""
        box.write(config)
        daemon.admin.reload()
        daemon.wait_for(lambda _: ready(daemon)["generator"] == 2, "the operator's number")
        assert "stage generator is not quite as planned: the configuration says workers = 2" in notes(daemon)
        assert "cores are not shared single as planned: the configuration says leases = turns" in notes(
            daemon
        )
