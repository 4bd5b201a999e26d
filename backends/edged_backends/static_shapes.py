"""Run a model on a device that takes fixed shapes only: pad to one of a few, run, cut back.

An NPU compiles a model for one shape. The wrapper holds one compiled model per sequence length (a
bucket), pads each group of items to the smallest bucket that holds it, and runs at most `max_batch` items
at a time. Nothing here knows a runtime, so the CPU exercises it in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edged.backend import Array, TensorSession
from edged.errors import BackendError
from edged_backends.lanes import Lanes

Axes = Mapping[str, bool]
"""For each input or output: whether its second axis is the sequence."""
Compile = Callable[[int, int], TensorSession]
"""Give a session of the shape (batch, sequence length)."""

DEFAULT_LENGTHS = (64, 128, 256, 512)


def buckets(longest: int, lengths: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the sequence lengths to compile, ascending; the longest text must fit the last.

    >>> buckets(300)
    (64, 128, 256, 300)
    >>> buckets(512, [32, 512])
    (32, 512)
    """
    if lengths:
        return tuple(sorted(set(lengths)))
    return (*(length for length in DEFAULT_LENGTHS if length < longest), longest)


def bucket_for(length: int, lengths: Sequence[int]) -> int:
    """Return the smallest bucket that holds `length` tokens; `BackendError` when none does."""
    for bucket in lengths:
        if length <= bucket:
            return bucket
    raise BackendError(f"an input of {length} tokens does not fit the longest compiled shape, {lengths[-1]}")


def pad(array: Array, batch: int, length: int | None) -> Array:
    """Pad to `batch` rows by repeating the last one, and to `length` columns with zeros.

    A repeated row is always valid input; a zero one is fully masked, which some graphs turn to NaN.
    """
    columns = 0 if length is None else length - array.shape[1]
    widths = [(0, 0), (0, columns), *[(0, 0)] * (array.ndim - 2)]
    wide = np.pad(array, widths) if columns else array
    return np.concatenate([wide, np.repeat(wide[-1:], batch - len(wide), axis=0)])


class StaticShapeSession:
    """A `TensorSession` made of one compiled model per bucket."""

    lanes = 1

    def __init__(
        self, compile_shape: Compile, lengths: Sequence[int], max_batch: int, inputs: Axes, outputs: Axes
    ) -> None:
        self._sessions = {length: compile_shape(max_batch, length) for length in lengths}
        self._lengths = tuple(lengths)
        self._max_batch = max_batch
        self.lone_rows = max_batch == 1
        self._lanes = Lanes(1)
        self._input_axes = inputs
        self._output_axes = outputs
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]:
        """Run one batch, a few items at a time; see `TensorSession.run`."""
        length = self._check(feeds)
        batch = len(next(iter(feeds.values())))
        parts = [
            self._run_part(
                {name: array[first : first + self._max_batch] for name, array in feeds.items()}, length
            )
            for first in range(0, batch, self._max_batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def run_each(self, runs: Sequence[Mapping[str, Array]], /) -> list[dict[str, Array]]:
        """Do independent runs one after the other; see `TensorSession.run_each`."""
        return self._lanes.each(self.run, runs)

    def attend(self, look: Callable[[], None], /) -> None:
        """See `TensorSession.attend`."""
        self._lanes.attend(look)

    def set_threads(self, count: int, /) -> bool:
        """Pass it on to every compiled shape; see `TensorSession.set_threads`."""
        heeded = [session.set_threads(count) for session in self._sessions.values()]
        return all(heeded)

    def close(self) -> None:
        """Close every compiled shape; idempotent."""
        for session in self._sessions.values():
            session.close()

    def _check(self, feeds: Mapping[str, Array]) -> int:
        """Return the sequence length that the inputs share (0 for a model without a sequence axis)."""
        if set(feeds) != set(self.inputs):
            given = ", ".join(feeds) or "none"
            raise BackendError(f"the model takes the inputs {', '.join(self.inputs)}; given: {given}")
        if any(array.ndim < 1 + self._input_axes[name] for name, array in feeds.items()):
            raise BackendError("an input has fewer axes than the model takes")
        lengths = {feeds[name].shape[1] for name, sequence in self._input_axes.items() if sequence}
        if len(lengths) > 1 or len({len(array) for array in feeds.values()}) != 1:
            raise BackendError("the inputs differ in batch size or in sequence length")
        return lengths.pop() if lengths else 0

    def _run_part(self, feeds: Mapping[str, Array], length: int) -> dict[str, Array]:
        bucket = bucket_for(length, self._lengths)
        count = len(next(iter(feeds.values())))
        padded = {
            name: pad(array, self._max_batch, bucket if self._input_axes[name] else None)
            for name, array in feeds.items()
        }
        results = self._sessions[bucket].run(padded)
        return {
            name: results[name][:count, :length] if sequence else results[name][:count]
            for name, sequence in self._output_axes.items()
        }
