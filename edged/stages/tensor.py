"""Arrays in, arrays out: any model that is neither a retriever, a reranker nor a generator.

On the wire: a four-byte length, a msgpack header `{name: [dtype, shape]}`, then the arrays in that order,
little endian, row-major, each beginning at a multiple of 64 bytes so that vector code reads it in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from edged.backend import Array, TensorSession, Variant
from edged.errors import BackendError, BadRequest, DeviceLost, EdgedError
from edged.messages import CacheCounters
from edged.stages.contract import Item, Payload

ALIGNMENT_BYTES = 64
MAX_HEADER_BYTES = 64 << 10
MAX_TENSORS = 64
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 40
DTYPES = frozenset(
    (
        "bool",
        "float16",
        "float32",
        "float64",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
)
_LENGTH_BYTES = 4
_Header = dict[str, tuple[str, tuple[int, ...]]]
_decode_header = msgspec.msgpack.Decoder(_Header).decode
Signature = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]


def encode_tensors(arrays: Mapping[str, Array]) -> list[bytes | memoryview]:
    """Give the buffers of a payload; arrays that are contiguous and little endian are not copied."""
    plain = {name: _plain(array) for name, array in arrays.items()}
    header = msgspec.msgpack.encode({name: (a.dtype.name, a.shape) for name, a in plain.items()})
    start = len(header).to_bytes(_LENGTH_BYTES, "little") + header
    buffers: list[bytes | memoryview] = [start, bytes(_padding(len(start)))]
    for array in plain.values():
        buffers += [array.reshape(-1).view(np.uint8).data, bytes(_padding(array.nbytes))]
    return [buffer for buffer in buffers if len(buffer)]


def decode_tensors(payload: memoryview) -> dict[str, Array]:
    """Give views into `payload`, without copying; `BadRequest` for anything malformed."""
    header, offset = _read_header(payload)
    arrays: dict[str, Array] = {}
    for name, (dtype_name, shape) in header.items():
        dtype = _dtype(name, dtype_name, shape)
        size = math.prod(shape) * dtype.itemsize
        if size > len(payload) - offset:
            raise _malformed(f"tensor {name[:80]!r} needs {size} bytes, {len(payload) - offset} are left")
        if math.prod(extent or 1 for extent in shape) > MAX_ELEMENTS:  # numpy refuses it even if it is empty
            raise _malformed(f"tensor {name[:80]!r} has the shape {list(shape)}")
        arrays[name] = np.frombuffer(payload[offset : offset + size], dtype).reshape(shape)
        offset = min(offset + size + _padding(size), len(payload))
    if offset != len(payload):
        raise _malformed(f"{len(payload) - offset} bytes follow the last tensor")
    return arrays


def _read_header(payload: memoryview) -> tuple[_Header, int]:
    size = int.from_bytes(payload[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + size
    if size > MAX_HEADER_BYTES or end > len(payload):
        raise _malformed(f"a header of {size} bytes in a payload of {len(payload)}")
    try:
        header = _decode_header(payload[_LENGTH_BYTES:end])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(f"the header is not understood: {error}") from error
    if len(header) > MAX_TENSORS:
        raise _malformed(f"{len(header)} tensors; the limit is {MAX_TENSORS}")
    return header, min(end + _padding(end), len(payload))


def _dtype(name: str, dtype_name: str, shape: tuple[int, ...]) -> np.dtype[Any]:
    if dtype_name not in DTYPES:
        raise _malformed(
            f"tensor {name[:80]!r} has dtype {dtype_name[:20]!r}; known: {', '.join(sorted(DTYPES))}"
        )
    if len(shape) > MAX_DIMENSIONS or not all(0 <= size < 1 << 40 for size in shape):
        raise _malformed(f"tensor {name[:80]!r} has an impossible shape")
    return np.dtype(dtype_name).newbyteorder("<")


def _plain(array: Array) -> Array:
    if array.dtype.name not in DTYPES:
        raise BackendError(f"the model gives dtype {array.dtype.name}, which edged does not carry")
    contiguous = array if array.flags.c_contiguous else array.copy("C")
    return contiguous.astype(array.dtype.newbyteorder("<"), copy=False)


def _padding(size: int) -> int:
    return -size % ALIGNMENT_BYTES


def _malformed(what: str) -> BadRequest:
    return BadRequest(f"malformed tensors: {what}", param="tensors")


class TensorStage:
    """A batch stage: items that differ only in their number of rows run as one.

    With the option `passthrough` it needs no session and gives back what it got: an empty stage, to
    measure what edged itself costs.
    """

    OPTIONS = frozenset({"passthrough"})

    def __init__(self, session: TensorSession | None, variant: Variant, options: Mapping[str, Any]) -> None:
        self._session = None if options.get("passthrough") else session
        if self._session is None and not options.get("passthrough"):
            raise BadRequest("a tensor stage needs a model, or the option passthrough = true", param="model")
        names = {"inputs": session.inputs, "outputs": session.outputs} if session is not None else {}
        self.details: Mapping[str, Any] = {
            "model": variant.model,
            "passthrough": self._session is None,
            **names,
        }

    def run(self, items: Sequence[Item], /) -> list[Payload | EdgedError]:
        """Run one micro-batch; an item that the model refuses fails alone."""
        if self._session is None:
            return [bytes(item.payload) for item in items]
        results: dict[int, Payload | EdgedError] = {}
        groups: dict[Signature, dict[int, dict[str, Array]]] = {}
        for index, item in enumerate(items):
            try:
                feeds = self._feeds(item)
                groups.setdefault(_signature(feeds), {})[index] = feeds
            except EdgedError as error:
                results[index] = error
        for group in groups.values():
            results |= dict(_run_group(self._session, group))
        return [results[index] for index in range(len(items))]

    def _feeds(self, item: Item) -> dict[str, Array]:
        assert self._session is not None
        if item.operation != "tensor":
            raise BadRequest(f"a tensor stage answers tensor, not {item.operation}", param="operation")
        feeds = decode_tensors(item.payload)
        if feeds.keys() != set(self._session.inputs):
            names = f"{sorted(self._session.inputs)}, not {sorted(feeds)}"
            raise BadRequest(f"the model takes the inputs {names[:500]}", param="tensors")
        rows = {array.shape[:1] for array in feeds.values()}
        if len(rows) != 1 or rows <= {(), (0,)}:
            raise BadRequest("all inputs need the same first axis, the batch, of at least 1", param="tensors")
        return feeds

    @property
    def lanes(self) -> int:
        """See `BatchStage.lanes`: a group of items is one run."""
        return 1

    def attend(self, look: Callable[[], None]) -> None:
        """See `BatchStage.attend`."""

    def set_cores(self, count: int) -> None:
        """See `Housekeeping.set_cores`."""
        if self._session is not None:
            self._session.set_threads(count)

    def cache_counters(self) -> dict[str, CacheCounters]:
        """See `Housekeeping.cache_counters`."""
        return {}

    def clear_caches(self, names: Collection[str]) -> None:
        """See `Housekeeping.clear_caches`."""

    def close(self) -> None:
        """Give memory back; idempotent."""
        if self._session is not None:
            self._session.close()


def _signature(feeds: Mapping[str, Array]) -> Signature:
    return tuple((name, feeds[name].dtype, feeds[name].shape[1:]) for name in sorted(feeds))


def _run_group(
    session: TensorSession, group: dict[int, dict[str, Array]]
) -> Iterator[tuple[int, Payload | EdgedError]]:
    try:
        yield from zip(group, _run_together(session, list(group.values())), strict=True)
    except DeviceLost:
        raise
    except EdgedError as error:
        if len(group) == 1:
            yield next(iter(group)), error
            return
        for index, feeds in group.items():
            yield from _run_group(session, {index: feeds})


def _run_together(session: TensorSession, feeds: Sequence[Mapping[str, Array]]) -> list[Payload]:
    together = {
        name: feeds[0][name] if len(feeds) == 1 else np.concatenate([feed[name] for feed in feeds])
        for name in feeds[0]
    }
    ends = np.cumsum([0] + [len(next(iter(feed.values()))) for feed in feeds]).tolist()
    outputs = session.run(together)
    stray = next((name for name, array in outputs.items() if array.shape[:1] != (ends[-1],)), None)
    if stray is not None:
        raise BackendError(f"output {stray!r} has no batch axis of {ends[-1]} rows")
    return [
        encode_tensors({name: array[start:end] for name, array in outputs.items()})
        for start, end in pairwise(ends)
    ]
