"""The copies of GPUs, without one: doubles of what torch has for streams."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from edged.errors import BackendError
from edged.layers import runners
from edged.layers.offload.shelf import DiskShelf, Layout, MemoryShelf
from edged.layers.offload.streams import CudaStreams

from .layer_jobs import (
    COMBINATIONS,
    broken_after,
    built,
    jobs,
    resident_answers,
    spec,
    told,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class FakeEvent:
    """A double of `torch.cuda.Event`: a moment."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.at_s = -1.0

    def record(self, stream: FakeStream) -> None:
        self.at_s = stream.at_s = stream.at_s + 1

    def query(self) -> bool:
        return self.at_s >= 0

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.timed
        assert end.timed
        return (end.at_s - self.at_s) * 1000


class FakeStream:
    """A double of `torch.cuda.Stream`: what is issued is done at once."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.at_s = 0.0
        self.waited = 0

    def wait_event(self, event: FakeEvent) -> None:
        assert event.query()
        self.waited += 1

    def record_event(self) -> FakeEvent:
        event = FakeEvent()
        event.record(self)
        return event

    def synchronize(self) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeStream:
    """Doubles in place of torch's: they show that the calls fit together, not what a GPU makes of them."""
    for double, real in ((FakeEvent, torch.cuda.Event), (FakeStream, torch.cuda.Stream)):
        assert all(hasattr(real, name) for name in vars(double) if not name.startswith("__"))
        monkeypatch.setattr(torch.cuda, real.__name__, double)
    compute = FakeStream()
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: compute)
    empty = Layout.empty
    monkeypatch.setattr(Layout, "empty", lambda layout, device=None, *, pinned=False: empty(layout, device))
    monkeypatch.setattr(runners, "streams_for", CudaStreams)
    monkeypatch.setattr(
        runners,
        "shelf_for",
        lambda of, _device: (
            DiskShelf(str(tmp_path), staged=True) if of.overlap_from == "disk" else MemoryShelf(pinned=True)
        ),
    )
    return compute


@pytest.mark.parametrize("source", ["memory", "disk"])
@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_the_code_for_gpus_keeps_the_answers(gpu: FakeStream, overlap: str, block: int, source: str):
    changes = {"overlap": overlap, "block": block, "overlap_from": source, "offload_cache": True}
    runner, _ = built(spec(5, **changes))
    try:
        assert told(runner) == resident_answers(5)
        assert runner.copy_s == gpu.waited  # the doubles' clock ticks once for each pair of events
    finally:
        runner.close()


def test_what_fails_on_the_thread_that_reads_fails_the_job(gpu: FakeStream, monkeypatch):
    runner, _ = built(spec(overlap="single", overlap_from="disk"))
    with monkeypatch.context() as patch:
        patch.setattr("os.preadv", broken_after(2))
        with pytest.raises(BackendError, match="layer 2 could not be read"):
            jobs(runner, 1)
    with suppress(BackendError):  # the load that was under way
        jobs(runner, 1)
    assert told(runner) == resident_answers(5)
    runner.close()
