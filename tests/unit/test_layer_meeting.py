"""The folder in which the processes of a layer pipeline meet goes with its maker."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edged.layers.links.meeting import PREFIX, Meeting, sweep

MAKE = (
    "from edged.layers.links.meeting import Meeting\n"
    "made = Meeting()\nprint(made.folder, flush=True)\ninput()"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_private_folder_that_goes(folder: Path) -> None:
    meeting = Meeting()
    assert Path(meeting.folder).parent == folder
    assert Path(meeting.folder).stat().st_mode & 0o777 == 0o700
    meeting.close()
    meeting.close()
    assert not list(folder.iterdir())


def test_a_sweep_takes_what_the_dead_left_and_nothing_else(folder: Path) -> None:
    mine, stranger = Meeting(), folder / "else"
    stranger.mkdir()
    (folder / f"{PREFIX}link").symlink_to(stranger)
    with subprocess.Popen(
        [sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout is not None
        theirs = Path(maker.stdout.readline().strip())
        (theirs / "0").touch()
        sweep()
        assert theirs.exists()
        maker.send_signal(signal.SIGKILL)
        maker.wait()
    sweep()
    assert not theirs.exists()
    assert Path(mine.folder).exists()
    assert stranger.exists()
    mine.close()


def test_the_next_one_sweeps(folder: Path) -> None:
    left = folder / f"{PREFIX}left"
    left.mkdir()
    with_nobody = Meeting()
    assert not left.exists()
    with_nobody.close()
