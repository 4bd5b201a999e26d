"""A stage that is changed while it serves: real processes, simulated models, nothing dropped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.errors import AlreadyRunning, BadRequest, ConfigError, EdgedError, NotFound
from edged.report import SwapReport
from edged.testing.daemon import RunningDaemon
from edged.workers.proof import TEXT

from .conftest import simulated
from .test_daemon import Streaming, ask, code_of, fault, pid_of

Start = Callable[..., RunningDaemon]
STREAM = "decode_ms = 10, max_tokens = 60"


def config(more: str = "", **fields: object) -> str:
    settings = "".join(f"{name} = {value}\n" for name, value in fields.items())
    return simulated(generator=f"{settings}timeout_s = 5\noptions = {{ {STREAM}{more} }}")


def over(daemon: RunningDaemon) -> SwapReport:
    daemon.wait_for(lambda _: not daemon.admin.swap_report().under_way, "the end of the change")
    return daemon.admin.swap_report()


def edgectl(daemon: RunningDaemon, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edged.cli", "--socket", str(daemon.client.socket), "stage", *command],
        env=daemon.environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_answers_end_where_they_began_and_new_work_goes_to_the_new_worker(daemon: Start) -> None:
    running = daemon(config())
    undisturbed = ask(running.client).text
    streams = [Streaming(running.client) for _ in range(4)]
    assert all(stream.begun.wait(30) for stream in streams)
    told = running.admin.swap_stage("generator", variant="light", device="sim:gpu")
    assert told == ["stage generator: variant none -> light, device sim:cpu -> sim:gpu"]
    report = over(running)
    assert (report.problem, report.one_copy) == ("", False)
    results = [stream.result() for stream in streams]
    assert {result.text for result in results} == {undisturbed}
    assert {(r.timings[0].variant, r.timings[0].device, r.resumed) for r in results} == {
        ("none", "sim:cpu", 0)
    }
    (after,) = ask(running.client).timings
    assert (after.variant, after.device) == ("light", "sim:gpu")
    assert len(running.stage("generator").workers) == 1


@pytest.mark.parametrize("at_load", [True, False])
def test_one_that_cannot_be_loaded_or_crashes_while_warming_leaves_the_old_one(
    daemon: Start, tmp_path: Path, at_load: bool
) -> None:
    file = tmp_path / "faults.json"
    running = daemon(config(f', faults = "{file}"'))
    old = pid_of(running)
    fault(file, crash="segv", on_text="" if at_load else TEXT, at_load=at_load)
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    running.admin.swap_stage("generator", variant="broken")
    report = over(running)
    assert "killed by SIGSEGV" in report.problem
    assert stream.result().finish == "length"
    status = running.client.status()
    assert status.state == "ready"
    assert report.problem in status.notes
    assert (pid_of(running), running.stage("generator").variant) == (old, "none")
    assert running.stage("generator").restarts == 0
    file.unlink()
    running.admin.swap_stage("generator", variant="sound")
    assert over(running).problem == ""
    assert running.stage("generator").override == "variant none -> sound"


def test_one_copy_at_a_time_work_waits_within_its_deadline(daemon: Start) -> None:
    running = daemon(config(", load_ms = 700"))
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    most: list[int] = []
    running.admin.swap_stage("generator", variant="light", one_copy=True)
    hasty = Streaming(running.client)
    assert code_of(running.client, deadline_ms=300) in {"deadline_exceeded", "deadline_unmeetable"}

    def ended(_: object) -> bool:
        most.append(len(running.stage("generator").workers))
        return not running.admin.swap_report().under_way

    running.wait_for(ended, "the end of the change")
    assert max(most) == 1
    assert running.admin.swap_report().one_copy
    assert stream.result().timings[0].variant == "none"
    assert hasty.result().timings[0].variant == "light"


def test_one_copy_that_fails_has_the_old_one_loaded_again_and_nobody_is_refused(
    daemon: Start, tmp_path: Path
) -> None:
    file = tmp_path / "faults.json"
    running = daemon(config(f', faults = "{file}"'))
    fault(file, **{"raise": "backend", "at_load": True, "once": True})
    old = pid_of(running)
    running.admin.swap_stage("generator", variant="broken", one_copy=True)
    assert ask(running.client).timings[0].variant == "none"
    report = over(running)
    assert report.code == "backend"
    assert pid_of(running) != old
    assert running.client.status().rejected == {}


def test_nothing_else_changes_stages_meanwhile(daemon: Start) -> None:
    running = daemon(config(", load_ms = 1000"))
    admin = running.admin
    admin.swap_stage("generator", variant="light")
    refused: tuple[Callable[[], object], ...] = (
        lambda: admin.swap_stage("generator", variant="other"),
        lambda: admin.revert_stage("generator"),
        lambda: admin.scale_stage("generator", 2),
        admin.reload,
        lambda: admin.apply_plan(None),
        lambda: admin.restart_stage("generator"),
    )
    for call in refused:
        with pytest.raises(AlreadyRunning, match="stage generator is being changed"):
            call()
    running.process.send_signal(signal.SIGHUP)  # nobody can be told: it waits
    running.wait_for(lambda s: s.state == "ready" and "reloaded" in running.log, "the reload")
    assert running.log.index("stage changed") < running.log.index("reloaded")
    running.wait_for(lambda _: running.stage("generator").variant == "none", "the configured variant")


def test_what_was_changed_survives_a_crash_and_ends_with_reload_and_restart(daemon: Start) -> None:
    running = daemon(config())
    running.admin.swap_stage("generator", variant="light")
    over(running)
    old = pid_of(running)
    os.kill(old, signal.SIGKILL)
    status = running.wait_for(
        lambda s: s.state == "ready" and {w.pid for w in s.stages[-1].workers}.isdisjoint({old}), "a new one"
    )
    assert status.stages[-1].variant == "light"
    assert status.stages[-1].reason == "not as configured: variant none -> light"
    assert any("edgectl stage swap generator --revert" in note for note in status.notes)
    assert "stage generator is as configured again" in running.admin.reload()
    running.wait_for(lambda _: running.stage("generator").variant == "none", "the configured variant")
    assert running.stage("generator").override == ""


def test_back_to_what_is_configured(daemon: Start) -> None:
    running = daemon(config())
    running.admin.swap_stage("generator", variant="light")
    over(running)
    assert running.admin.revert_stage("generator") == ["stage generator: variant light -> none"]
    assert over(running).overrides == {}
    assert running.admin.revert_stage("generator") == []


def test_more_and_fewer_workers(daemon: Start) -> None:
    running = daemon(config())
    old = pid_of(running)
    running.admin.scale_stage("generator", 3)
    report = over(running)
    assert report.overrides == {"generator": "workers 1 -> 3"}
    pids = {worker.pid for worker in running.stage("generator").workers}
    assert (len(pids), old in pids) == (3, True)
    streams = [Streaming(running.client) for _ in range(6)]
    assert all(stream.begun.wait(30) for stream in streams)
    running.admin.scale_stage("generator", 1)
    assert {stream.result().resumed for stream in streams} == {0}
    assert over(running).overrides == {}
    assert len(running.stage("generator").workers) == 1


def test_more_workers_that_cannot_be_loaded_leave_as_many_as_before(daemon: Start, tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    running = daemon(config(f', faults = "{file}"'))
    fault(file, crash="exit", at_load=True)
    running.admin.scale_stage("generator", 2)
    assert "exit status 3" in over(running).problem
    status = running.client.status()
    assert (status.state, len(status.stages[-1].workers)) == ("ready", 1)


def test_what_cannot_be_is_refused_by_name(daemon: Start) -> None:
    running = daemon(config())
    admin = running.admin
    with pytest.raises(NotFound, match="there are: retriever, reranker, generator"):
        admin.swap_stage("generatr", variant="x")
    with pytest.raises(ConfigError, match=r"unknown backend 'tpu'; installed: .*simulated"):
        admin.swap_stage("generator", backend="tpu")
    with pytest.raises(BadRequest, match="switched off"):
        admin.swap_stage("reranker", variant="int8")
    with pytest.raises(BadRequest, match=r"1\.\.64"):
        admin.scale_stage("generator", 0)
    with pytest.raises(BadRequest, match="name a variant"):
        admin.swap_stage("generator")
    with pytest.raises(EdgedError, match="the body is not what this path takes"):
        admin._ask(dict, "POST", "/admin/v1/stages/generator/swap", {"variant": 3})
    assert running.client.status().state == "ready"


def test_the_command_waits_and_says_how_it_ended(daemon: Start) -> None:
    running = daemon(config())
    done = edgectl(running, "swap", "generator", "--variant", "light")
    assert done.returncode == 0
    assert "is changed after" in done.stdout
    assert "edgectl stage swap generator --revert" in done.stdout
    same = edgectl(running, "swap", "generator", "--variant", "light")
    assert "runs so already" in same.stdout
    wrong = edgectl(running, "swap", "generator", "--device", "sim:nonsuch")
    assert wrong.returncode == 78
    assert wrong.stderr.splitlines()[-1].startswith("error [device_absent]: stage generator runs as before")
    assert "it sees: sim:cpu, sim:npu, sim:gpu" in wrong.stderr
    assert (
        edgectl(running, "swap", "generator", "--device", "sim:cpu").returncode == 0
    )  # as it runs: no change
    unscaled = edgectl(running, "scale", "generator", "1")
    assert "runs so already" in unscaled.stdout
    assert "anew" not in unscaled.stderr
    scaled = json.loads(edgectl(running, "scale", "generator", "2", "--json").stdout)
    assert scaled["overrides"]["generator"].endswith("workers 1 -> 2")
    assert edgectl(running, "swap", "generator").returncode == 2
    assert edgectl(running, "swap", "generator", "--revert").returncode == 0
    assert running.stage("generator").override == ""
