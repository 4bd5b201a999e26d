"""Copies beside compute: streams of a GPU ordered by events; on a CPU plain calls, in the order of issue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch

STREAMS = ("weights_load", "cache_load", "cache_store")
Mark: TypeAlias = object
"""A point in a stream that others can wait for; only the streams that made it know what it is."""


class Work(NamedTuple):
    """What is issued or marked, for those that watch the order."""

    matter: Literal["weights", "cache"]
    kind: Literal["load", "compute", "store"]
    layer: int
    part: int
    """Of the job; -1 for weights, which serve all parts."""
    slot: int
    """Which room on the device is written or read; -1 for all."""

    @property
    def stream(self) -> str:
        """Where a load or a store runs: one of `STREAMS`."""
        return f"{self.matter}_{self.kind}"


class Transfer(NamedTuple):
    """One move between host and device, in up to two steps."""

    copy: Callable[[], object]
    """Copies with `non_blocking`; runs with its stream as the current one."""
    read: Callable[[], object] | None = None
    """Brings from disk to where `copy` takes it; blocks. Raises `BackendError`."""


class Streams(Protocol):
    """Where transfers run. Compute has the stream that is current for the caller."""

    @property
    def copy_s(self) -> float:
        """Seconds so far in which compute waited for transfers."""
        ...

    def issue(self, work: Work, transfer: Transfer, after: Sequence[Mark] = ()) -> Mark:
        """Queue a transfer on `work.stream`, behind the marks of others; returns its end."""
        ...

    def wait(self, mark: Mark) -> None:
        """Have compute that is queued from now on wait for a mark. Raises what the transfer raised."""
        ...

    def mark(self, work: Work) -> Mark:
        """Return the end of all compute that is queued so far."""
        ...

    def close(self) -> None:
        """Wait for what is under way; idempotent."""
        ...


class InOrder:
    """Every transfer is done when `issue` returns: for a CPU, where all memory is near."""

    def __init__(self) -> None:
        self._copy_s = 0.0

    @property
    def copy_s(self) -> float:
        """Seconds that transfers took."""
        return self._copy_s

    def issue(self, work: Work, transfer: Transfer, after: Sequence[Mark] = ()) -> Mark:  # noqa: ARG002 # all is past
        """See `Streams`."""
        began_s = time.monotonic()
        if transfer.read is not None:
            transfer.read()
        transfer.copy()
        self._copy_s += time.monotonic() - began_s
        return work

    def wait(self, mark: Mark) -> None:
        """See `Streams`: there is nothing to wait for."""

    def mark(self, work: Work) -> Mark:
        """See `Streams`."""
        return work

    def close(self) -> None:
        """See `Streams`."""


class CudaStreams:
    """Three streams beside that of compute. Nothing here waits for a whole device.

    Marks are events, or futures of events where a thread has to read from disk first. What compute waited
    is told by pairs of timed events around each wait, read when they have happened.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {name: torch.cuda.Stream(device) for name in STREAMS}  # type: ignore[no-untyped-call]
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="edged-layers-disk")
        self._stalls: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._copy_s = 0.0

    @property
    def copy_s(self) -> float:
        """Seconds for which the stream of compute stood still, as far as they are past."""
        while self._stalls and self._stalls[0][1].query():  # type: ignore[no-untyped-call]
            before, behind = self._stalls.popleft()
            self._copy_s += before.elapsed_time(behind) / 1000
        return self._copy_s

    def issue(self, work: Work, transfer: Transfer, after: Sequence[Mark] = ()) -> Mark:
        """See `Streams`."""
        stream = self._streams[work.stream]
        if transfer.read is None:
            return _queued(stream, transfer, after)
        return self._reader.submit(_read_and_queued, stream, transfer, after)

    def wait(self, mark: Mark) -> None:
        """See `Streams`; where a thread still reads, the caller waits for it too."""
        compute = torch.cuda.current_stream(self._device)
        before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        before.record(compute)
        compute.wait_event(_event(mark))
        behind = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        behind.record(compute)
        self._stalls.append((before, behind))

    def mark(self, work: Work) -> Mark:  # noqa: ARG002 # for those that watch
        """See `Streams`."""
        return torch.cuda.current_stream(self._device).record_event()

    def close(self) -> None:
        """See `Streams`: each stream by itself; the allocators may then take the buffers back."""
        self._reader.shutdown()
        for stream in self._streams.values():
            stream.synchronize()


def streams_for(device: torch.device) -> Streams:
    """Return what runs transfers to a device."""
    return CudaStreams(device) if device.type == "cuda" else InOrder()


def _queued(stream: torch.cuda.Stream, transfer: Transfer, after: Sequence[Mark]) -> torch.cuda.Event:
    with torch.cuda.stream(stream), torch.inference_mode():
        for mark in after:
            stream.wait_event(_event(mark))
        transfer.copy()
        end = torch.cuda.Event()  # type: ignore[no-untyped-call]
        end.record(stream)
        return end


def _read_and_queued(
    stream: torch.cuda.Stream, transfer: Transfer, after: Sequence[Mark]
) -> torch.cuda.Event:
    """Read into the one staging buffer when its last copy to the device has ended."""
    stream.synchronize()
    assert transfer.read is not None
    transfer.read()
    return _queued(stream, transfer, after)


def _event(mark: Mark) -> torch.cuda.Event:
    if isinstance(mark, Future):
        mark = mark.result()
    assert isinstance(mark, torch.cuda.Event), "a mark of other streams"
    return mark
