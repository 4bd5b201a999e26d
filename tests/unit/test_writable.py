"""What cannot be written is said before the work for it is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.writable import obstacle


def test_every_obstacle_is_named_and_nothing_is_left_behind(tmp_path: Path):
    old = tmp_path / "old.json"
    old.write_text("{}")
    assert obstacle(tmp_path / "new.json") == obstacle(old) == ""
    assert obstacle(tmp_path / "absent" / "new.json") == "no such folder"
    assert obstacle(old / "new.json") == "no such folder"
    assert obstacle(tmp_path) == "it is a folder"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_of_others_is_refused_where_the_folder_is_ours(tmp_path: Path):
    old = tmp_path / "old.json"
    old.touch(mode=0o400)
    assert obstacle(old) == "permission denied"
    tmp_path.chmod(0o500)
    assert obstacle(tmp_path / "new.json") == "permission denied"
    tmp_path.chmod(0o700)
