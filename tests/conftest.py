"""Fixtures that every kind of test uses."""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest

from edged.backend import Variant
from edged.catalogue import Catalogue
from edged.models import ModelStore

MODELS = Path(__file__).parents[1] / ".edged" / "models"

hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")  # `--hypothesis-profile default` looks further: `make explore`


def pytest_configure() -> None:
    """A job in the background inherits SIGINT ignored, and so would every program that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Random histories can be told again: `pytest tests/faults --seed 7`."""
    parser.addoption("--seed", type=int, default=None, help="seed of the random fault histories")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Seed of a random history; printed, so that a failure shows it."""
    chosen: int | None = request.config.getoption("--seed")
    drawn = secrets.randbelow(1 << 32) if chosen is None else chosen
    print(f"replay with --seed {drawn}")
    return drawn


@pytest.fixture(scope="session")
def variant() -> Callable[[str, str], Variant]:
    """Give a variant with real weights, pulled when needed: `variant("bge-small-en-v1.5", "int8")`."""
    store = ModelStore(MODELS, Catalogue.discover())

    def find(model: str, name: str) -> Variant:
        return store.resolve(model, name) if store.present(model, name) else store.pull(model, name)

    return find


# ------------------------------------------------------------------ nothing is left behind

PATIENCE_S = 2.0


def _children() -> set[str]:
    """Processes that this one started and has not reaped."""
    found: set[str] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread has ended since
            found |= {f"child process {pid}" for pid in path.read_text().split()}
    return found


def _shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {f"shared memory {path.name}" for path in folder.iterdir()} if folder.is_dir() else set()


def _threads() -> set[str]:
    """Threads of ours, and those of anybody that keep the interpreter from ending."""
    ours = [t for t in threading.enumerate() if t.name.startswith(("edged", "log")) or not t.daemon]
    return {f"thread {thread.name} {thread.ident}" for thread in ours}


def _possessions() -> set[str]:
    return _children() | _shared_memory() | _threads()


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Every test gives back what it took; what wider fixtures hold was there before it."""
    before = _possessions()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while (left := _possessions() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"the test leaves behind: {sorted(left)}"


@pytest.fixture(autouse=True, scope="session")
def _no_process_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No process outlives the session that has a runtime folder of a test in its environment."""
    yield
    marker = f"EDGED_DAEMON__RUNTIME_DIR={tmp_path_factory.getbasetemp()}/".encode()
    left = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker in (path / "environ").read_bytes():
                left.append(f"{path.name} {(path / 'cmdline').read_bytes()!r}")
    assert not left, f"the session leaves behind: {left}"
