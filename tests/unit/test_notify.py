from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged import notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What a service manager receives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield lambda: receiver.recv(4096).decode().split("\n")


def test_reloading_says_when(manager):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notify.reloading()
    first, second = manager()
    assert first == "RELOADING=1"
    name, _, moment = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(moment) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_lines_travel_together(manager):
    assert notify.notify("READY=1", "X_A=b")
    assert manager() == ["READY=1", "X_A=b"]


def test_an_abstract_address(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"edged-test-{os.getpid()}"
        receiver.bind(f"\0{name}")
        receiver.settimeout(0)
        assert notify.notify("READY=1", environment={"NOTIFY_SOCKET": f"@{name}"})
        assert receiver.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_sent():
    assert not notify.notify("READY=1", environment={})


def test_a_manager_that_went_away_is_no_reason_to_stop(tmp_path: Path):
    assert not notify.notify("READY=1", environment={"NOTIFY_SOCKET": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_pings_are_three_times_as_frequent_as_needed(environment, interval_s):
    assert notify.watchdog_interval_s(environment) == interval_s
