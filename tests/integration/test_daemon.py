"""The daemon as its users meet it: real processes, simulated models, one fault or change at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edged.client import Client
from edged.errors import EdgedError
from edged.replies import Delta, Final
from edged.testing.daemon import RunningDaemon

from .conftest import simulated

Start = Callable[..., RunningDaemon]
STREAM = "options = { decode_ms = 10, max_tokens = 60 }\ntimeout_s = 1.5"


def ask(client: Client, text: str = "hello", **fields: object) -> Final:
    *_, final = client.chat([{"role": "user", "content": text}], model="generator", **fields)
    assert isinstance(final, Final)
    return final


def code_of(client: Client, text: str = "hello", **fields: object) -> str:
    """The answer's finish, or the code of the error that it ended in."""
    try:
        return ask(client, text, **fields).finish
    except EdgedError as error:
        return error.code


class Streaming(threading.Thread):
    """A client in mid-answer: `begun` is set by its first token."""

    def __init__(self, client: Client, text: str = "hello") -> None:
        super().__init__(daemon=True)
        self.client, self.text = client, text
        self.begun = threading.Event()
        self.pieces: list[str] = []
        self.final: Final | None = None
        self.error: EdgedError | None = None
        self.start()

    def run(self) -> None:
        try:
            for event in self.client.chat([{"role": "user", "content": self.text}], model="generator"):
                if isinstance(event, Delta):
                    self.pieces.append(event.text)
                    self.begun.set()
                else:
                    self.final = event
        except EdgedError as error:
            self.error = error
        self.begun.set()

    def result(self) -> Final:
        self.join(60)
        assert self.error is None, self.error
        assert self.final is not None
        assert "".join(self.pieces) == self.final.text
        return self.final


def pid_of(daemon: RunningDaemon, stage: str = "generator") -> int:
    return daemon.stage(stage).workers[0].pid


def fault(path: Path, **faults: object) -> None:
    """Replace the fault file atomically, as its reader expects."""
    path.with_suffix(".new").write_text(json.dumps(faults))
    path.with_suffix(".new").rename(path)


def test_a_second_daemon_refuses_and_the_first_serves_on(daemon: Start) -> None:
    first = daemon(simulated(generator=STREAM))
    second = subprocess.run(
        [sys.executable, "-m", "edged", "--config", str(first.config_path)],
        env=first.environment,
        capture_output=True,
        check=False,
    )
    assert second.returncode == 75
    assert b"[already_running]" in second.stderr
    assert ask(first.client).finish == "length"


def test_sigterm_finishes_what_was_accepted_refuses_the_rest_and_exits_0(daemon: Start) -> None:
    running = daemon(simulated(generator=STREAM))
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    running.process.send_signal(signal.SIGTERM)
    running.wait_for(lambda status: status.state == "draining", "draining")
    assert code_of(running.client) == "draining"
    assert len(stream.result().text) == 60
    assert running.process.wait(30) == 0


def test_an_answer_that_outlasts_the_drain_ends_in_an_error_of_its_own(daemon: Start) -> None:
    slow = "options = { decode_ms = 50, max_tokens = 2000 }"
    running = daemon("[daemon]\ndrain_s = 0.3\n" + simulated(generator=slow))
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    assert running.stop() == 0
    stream.join(30)
    assert stream.error is not None
    assert stream.error.code == "draining"


def test_a_killed_daemon_takes_its_workers_along_and_the_next_one_starts(
    daemon: Start, tmp_path: Path
) -> None:
    running = daemon(simulated(generator=STREAM))
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    running.kill()
    stream.join(30)
    assert stream.error is not None
    assert stream.error.code == "connection_lost"
    again = RunningDaemon(running.folder, running.config_path.read_text())
    try:
        again.wait_ready()
        assert ask(again.client).finish == "length"
    finally:
        assert again.stop() == 0
    assert again.leftovers() == []


def test_a_generator_killed_in_mid_answer_is_continued_token_for_token(daemon: Start) -> None:
    running = daemon(simulated(generator=STREAM))
    undisturbed = ask(running.client).text
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    os.kill(pid_of(running), signal.SIGKILL)
    final = stream.result()
    assert final.text == undisturbed
    assert final.resumed == 1
    assert running.stage("generator").restarts == 1


def test_a_hung_generator_is_replaced_and_its_answer_goes_on(daemon: Start) -> None:
    running = daemon(simulated(generator=STREAM))
    undisturbed = ask(running.client).text
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    os.kill(pid_of(running), signal.SIGSTOP)
    assert stream.result().text == undisturbed
    assert "silent for" in running.log


@pytest.mark.parametrize("crash", ["segv", "abort", "exit"])
def test_a_poison_request_fails_alone(daemon: Start, tmp_path: Path, crash: str) -> None:
    faults = tmp_path / "faults.json"
    fault(faults, crash=crash, on_text="poison")
    options = f"options = {{ decode_ms = 5, max_tokens = 60, faults = '{faults}' }}"
    running = daemon(simulated(generator=options))
    innocent = [Streaming(running.client, f"innocent {n}") for n in range(3)]
    assert code_of(running.client, "this is poison") == "poisoned"
    assert [stream.result().finish for stream in innocent] == ["length"] * 3
    assert running.stage("generator").restarts == 2


def test_a_stage_that_never_loads_is_failed_and_the_daemon_lives(daemon: Start, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    fault(faults, crash="exit", at_load=True)
    options = f"options = {{ faults = '{faults}' }}"
    running = daemon(simulated(generator=options), wait=False)
    running.wait_for(lambda status: status.stages[-1].state == "failed", "failed", 60)
    assert not running.client.ready()
    assert code_of(running.client) == "stage_unavailable"
    faults.unlink()
    running.admin.restart_stage("generator")
    running.wait_ready()
    assert ask(running.client).finish == "length"


def test_more_requests_than_slots_are_refused_and_memory_of_the_queue_is_bounded(
    daemon: Start, tmp_path: Path
) -> None:
    """Ten times more requests than slots against a generator that stands still."""
    faults = tmp_path / "faults.json"
    options = (
        f"max_batch = 2\noptions = {{ decode_ms = 1, max_tokens = 5, faults = '{faults}' }}\ntimeout_s = 60"
    )
    running = daemon("[queue]\nslots = 4\n" + simulated(generator=options))
    stalled = pid_of(running)
    os.kill(stalled, signal.SIGSTOP)
    with ThreadPoolExecutor(80) as pool:
        futures = [pool.submit(code_of, running.client, f"request {n}") for n in range(40)]
        status = running.wait_for(lambda s: s.rejected.get("overloaded", 0) >= 36, "refusals")
        assert status.outstanding == status.entry_slots_used == 4
        os.kill(stalled, signal.SIGCONT)
        outcomes = [future.result(60) for future in futures]
    assert sorted(set(outcomes)) == ["length", "overloaded"]
    assert outcomes.count("length") == 4
    assert running.client.status().outstanding == 0


def test_a_refusal_says_when_to_come_back(daemon: Start) -> None:
    running = daemon("[queue]\nslots = 1\n" + simulated(generator=STREAM))
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    with pytest.raises(EdgedError) as refused:
        ask(running.client)
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    stream.result()


def test_a_client_that_leaves_frees_its_sequence(daemon: Start) -> None:
    running = daemon(simulated(generator="options = { decode_ms = 10, max_tokens = 5000 }"))
    events = running.client.chat([{"role": "user", "content": "long"}], model="generator")
    assert isinstance(next(events), Delta)
    events.close()
    status = running.wait_for(lambda s: s.outstanding == 0, "the sequence to be cancelled", 5)
    assert status.stages[-1].in_flight == 0
    assert status.rejected == {"cancelled": 1}


def test_a_deadline_ends_an_answer_with_its_own_code(daemon: Start) -> None:
    running = daemon(simulated(generator="options = { decode_ms = 20, max_tokens = 5000 }"))
    assert code_of(running.client, deadline_ms=300) == "deadline_exceeded"
    running.wait_for(lambda s: s.outstanding == 0, "its slots to come back", 5)


def test_a_stage_is_restarted_without_a_dropped_answer(daemon: Start) -> None:
    running = daemon(simulated(generator=STREAM))
    undisturbed = ask(running.client).text
    before = pid_of(running)
    streams = [Streaming(running.client) for _ in range(4)]
    assert all(stream.begun.wait(30) for stream in streams)
    running.admin.restart_stage("generator")
    assert {stream.result().text for stream in streams} == {undisturbed}
    status = running.wait_ready()
    assert [worker.pid for worker in status.stages[-1].workers] != [before]
    assert ask(running.client).text == undisturbed


def test_a_bad_reload_changes_nothing_and_a_good_one_swaps_in_place(daemon: Start) -> None:
    running = daemon(simulated(generator=STREAM))
    stream = Streaming(running.client)
    assert stream.begun.wait(30)
    running.config_path.write_text(simulated(generator="max_bach = 2"))
    with pytest.raises(EdgedError, match="max_bach") as refused:
        running.admin.reload()
    assert refused.value.code == "config"
    running.config_path.write_text("[queue]\nslots = 8\n" + simulated(generator=STREAM))
    with pytest.raises(EdgedError, match="restart"):
        running.admin.reload()
    running.config_path.write_text(simulated(generator="workers = 0"))
    with pytest.raises(EdgedError, match="restart"):
        running.admin.reload()
    running.config_path.write_text(simulated(generator=STREAM.replace("60", "20")))
    running.admin.reload()
    assert len(stream.result().text) == 60
    running.wait_for(lambda s: len(s.stages[-1].workers) == 1, "the old worker to leave")
    assert len(ask(running.client).text) == 20


def test_a_failed_change_is_shown_as_what_it_is_and_replacements_are_what_works(daemon: Start) -> None:
    config = simulated(generator=f"fallback = []\n{STREAM}")
    running = daemon(config)
    running.config_path.write_text(config.replace("sim:cpu", "sim:nonsuch"))
    running.admin.reload()
    status = running.wait_for(lambda s: "serves on" in s.stages[-1].reason, "the change to be given up")
    assert status.stages[-1].device == "sim:cpu"
    assert [timing.device for timing in ask(running.client).timings] == ["sim:cpu"]
    old = pid_of(running)
    os.kill(old, signal.SIGKILL)
    running.wait_for(
        lambda s: s.state == "ready" and {w.pid for w in s.stages[-1].workers}.isdisjoint({old}),
        "the next one",
    )
    assert ask(running.client).finish == "length"


def test_sighup_reloads(daemon: Start) -> None:
    running = daemon(simulated(generator=STREAM))
    running.config_path.write_text(simulated(generator=STREAM.replace("60", "20")))
    old = pid_of(running)
    running.process.send_signal(signal.SIGHUP)
    running.wait_for(
        lambda s: s.state == "ready" and {w.pid for w in s.stages[-1].workers}.isdisjoint({old}), "the swap"
    )
    assert len(ask(running.client).text) == 20


def test_it_speaks_the_notify_protocol(tmp_path: Path) -> None:
    """READY when the stages are loaded, WATCHDOG while the dispatch loop turns over, STOPPING at the end."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        environment = os.environ | {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "300000"}
        environment["JOURNAL_STREAM"] = "0:0"
        running = RunningDaemon(tmp_path, simulated(generator=STREAM), environment)
        try:
            seen = _until(manager, "WATCHDOG=1")
            assert next(line for line in seen if line in {"READY=1", "WATCHDOG=1"}) == "READY=1"
            running.process.send_signal(signal.SIGHUP)
            _until(manager, "RELOADING=1")
            _until(manager, "READY=1")
        finally:
            assert running.stop() == 0
        _until(manager, "STOPPING=1")
    assert all(json.loads(line.lstrip("<0123456789>")) for line in running.log.splitlines())


def _until(manager: socket.socket, wanted: str) -> Sequence[str]:
    seen: list[str] = []
    while wanted not in seen:
        seen += manager.recv(4096).decode().splitlines()
    return seen


def test_a_socket_passed_by_the_service_manager_survives_a_restart(tmp_path: Path) -> None:
    """A client that connects between two daemons waits in the backlog instead of being refused."""
    path = tmp_path / "passed.sock"
    launcher = (
        "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.execv(sys.executable, [sys.executable, '-m', 'edged', '--config', sys.argv[1]])"
    )
    (tmp_path / "edged.toml").write_text(simulated(generator=STREAM))
    environment = os.environ | {
        "EDGED_DAEMON__RUNTIME_DIR": str(tmp_path / "run"),
        "EDGED_DAEMON__STATE_DIR": str(tmp_path / "state"),
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "edged.socket",
    }
    with socket.socket(socket.AF_UNIX) as listener, (tmp_path / "log").open("wb") as log:
        listener.bind(str(path))
        listener.listen(64)

        def launch() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-c", launcher, str(tmp_path / "edged.toml")],
                env=environment,
                stderr=log,
                preexec_fn=lambda: os.dup2(listener.fileno(), 3),  # noqa: PLW1509 - what systemd does
                pass_fds=(3,),
            )

        client = Client(path)
        for _ in range(2):
            process = launch()
            try:
                assert ask(client).finish == "length"
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
    assert path.exists()
