"""Configuration files for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged.config import places as config_places

HOME = {
    "XDG_RUNTIME_DIR": "/run/user/7",
    "XDG_STATE_HOME": "/home/x/state",
    "XDG_CONFIG_HOME": "/home/x/config",
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration file."""

    def file(text: str | bytes, name: str = "edged.toml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return file


@pytest.fixture
def no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the configuration and the daemon of this machine."""
    monkeypatch.setattr(config_places, "SYSTEM_FILE", tmp_path / "etc" / "edged.toml")
    monkeypatch.setattr(config_places, "SYSTEM_RUNTIME", tmp_path / "run")


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Let torch compute with one thread: with tensors of tests a second one only gets in the way."""
    import torch  # only where it is used: most tests do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
