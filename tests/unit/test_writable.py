"""What cannot be written is said before the work for it is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edged.writable import obstacle

NOBODY = 65534


def test_every_obstacle_is_named_and_nothing_is_left_behind(tmp_path: Path):
    old = tmp_path / "old.json"
    old.write_text("{}")
    assert obstacle(tmp_path / "new.json") == obstacle(old) == ""
    assert obstacle(tmp_path / "absent" / "new.json") == "no such folder"
    assert obstacle(old / "new.json") == "no such folder"
    assert obstacle(tmp_path) == "it is a folder"
    assert list(tmp_path.iterdir()) == [old]


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Root may write everywhere, so it is nobody for as long as this lasts."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if before == 0:
            os.seteuid(before)


def test_what_the_user_may_not_write_is_refused():
    with TemporaryDirectory() as name:
        folder = Path(name)
        old = folder / "old.json"
        old.touch(mode=0o444)
        folder.chmod(0o555)
        with as_an_ordinary_user():
            found = obstacle(old), obstacle(folder / "new.json")
        folder.chmod(0o700)
    assert found == ("permission denied", "permission denied")


def test_a_folder_that_the_user_may_not_enter_is_refused_without_a_traceback():
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inner").mkdir()
        folder.chmod(0o600)
        with as_an_ordinary_user():
            found = obstacle(folder / "new.json"), obstacle(folder / "inner" / "new.json")
        folder.chmod(0o700)
    assert found == ("permission denied", "permission denied")
