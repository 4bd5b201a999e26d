"""The units, as systemd itself judges them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edged.api.listen import ADMIN_NAME, CLIENT_NAME

UNITS = Path(__file__).parents[2] / "systemd"
NAMES = ["edged.service", "edged.socket", "edged-admin.socket"]

needs_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed"
)

EXPOSED = {
    "SystemCallFilterresources",
    "RootDirectoryOrRootImage",
    "MemoryDenyWriteExecute",
    "RestrictAddressFamiliesAFNETLINK",
    "RestrictAddressFamiliesAFUNIX",
    "ProcSubset",
    "PrivateUsers",
    "DeviceAllow",
}
"""What is open on purpose: the unit says why."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with an executable that exists here."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/edged/bin/edged", sys.executable))
    return tmp_path


def with_drop_in(units: Path, name: str) -> Path:
    folder = units / "edged.service.d"
    folder.mkdir()
    shutil.copy(UNITS / "edged.service.d" / name, folder / name)
    return units


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@needs_analyze
@pytest.mark.parametrize("drop_in", [None, "gpu.conf", "peers.conf"])
def test_verify_has_nothing_to_say(units: Path, drop_in: str | None):
    folder = with_drop_in(units, drop_in) if drop_in else units
    done = analyze(folder, "verify", *(f"./{name}" for name in NAMES))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
@pytest.mark.parametrize(("drop_in", "limit"), [(None, 0.7), ("gpu.conf", 1.7), ("peers.conf", 1.4)])
def test_the_exposure_stays_low(units: Path, drop_in: str | None, limit: float):
    folder = with_drop_in(units, drop_in) if drop_in else units
    threshold = f"--threshold={round(limit * 10)}"
    done = analyze(folder, "security", "--offline=true", threshold, "./edged.service")
    found = re.search(r"exposure level for edged.service: ([0-9.]+)", done.stdout)
    assert done.returncode == 0, found
    assert float(found[1]) <= limit


@needs_analyze
def test_what_is_exposed_is_exposed_on_purpose(units: Path):
    done = analyze(units, "security", "--offline=true", "--json=short", "./edged.service")
    items = {item["json_field"].replace("_", "") for item in json.loads(done.stdout) if item["set"] is False}
    assert items == EXPOSED


def settings(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "["))]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


@pytest.mark.parametrize("path", sorted(UNITS.rglob("*.*")), ids=lambda path: path.name)
def test_no_comment_stands_behind_a_setting(path: Path):
    if path.is_file():
        assert not [value for _, value in settings(path) if "#" in value]


def test_what_breaks_edged_is_not_set():
    names = {name for name, _ in settings(UNITS / "edged.service")}
    assert not names & {"MemoryDenyWriteExecute", "PrivateUsers", "ProcSubset"}
    assert dict(settings(UNITS / "edged.service"))["Type"] == "notify"


@pytest.mark.parametrize(
    ("unit", "name"), [("edged.socket", CLIENT_NAME), ("edged-admin.socket", ADMIN_NAME)]
)
def test_sockets_arrive_under_the_names_that_the_daemon_looks_for(unit: str, name: str):
    assert dict(settings(UNITS / unit)).get("FileDescriptorName", unit) == name


def test_only_the_group_may_ask_and_only_the_owner_may_operate():
    client, admin = (dict(settings(UNITS / name)) for name in NAMES[1:])
    assert (client["SocketMode"], client["SocketGroup"]) == ("0660", "edged-clients")
    assert admin["SocketMode"] == "0600"


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="systemd-sysusers is not installed")
def test_users_and_groups_are_made(tmp_path: Path):
    (tmp_path / "etc").mkdir()
    folder = tmp_path / "usr/lib/sysusers.d"
    shutil.copytree(UNITS / "sysusers.d", folder)
    command = ["systemd-sysusers", f"--root={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert "edged-clients:" in (tmp_path / "etc/group").read_text()
    assert "/var/lib/edged:/usr/sbin/nologin" in (tmp_path / "etc/passwd").read_text()
