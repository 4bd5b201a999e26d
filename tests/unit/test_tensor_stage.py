"""The tensor stage: any arrays through one wire format, in batches, each item failing alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edged.backend import Array, Variant
from edged.errors import BackendError, BadRequest, DeviceLost, EdgedError
from edged.stages.contract import Item
from edged.stages.tensor import ALIGNMENT_BYTES, DTYPES, TensorStage, decode_tensors, encode_tensors

VARIANT = Variant(model="twice", name="fp32", task="tensor", format="none", path=Path("none"))

arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


def aligned(buffers: list[bytes | memoryview]) -> memoryview:
    """A payload as it lies in a slot: at an aligned address, read-only."""
    data = b"".join(buffers)
    room = np.zeros(len(data) + ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES
    room[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return room[start : start + len(data)].data.toreadonly()


@given(st.dictionaries(st.text(max_size=8), arrays, max_size=4))
def test_arrays_come_back_as_they_went(tensors):
    payload = aligned(encode_tensors(tensors))
    back = decode_tensors(payload)
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
        assert not back[name].flags.owndata
        assert not back[name].flags.writeable
        assert array.size == 0 or back[name].ctypes.data % ALIGNMENT_BYTES == 0


def test_other_layouts_and_byte_orders_are_carried():
    array = np.arange(12, dtype=">i4").reshape(3, 4).T
    back = decode_tensors(aligned(encode_tensors({"x": array})))["x"]
    np.testing.assert_array_equal(back, array)


def test_contiguous_arrays_are_not_copied():
    array = np.ones((4, 4), np.float32)
    buffer = next(b for b in encode_tensors({"x": array}) if isinstance(b, memoryview))
    assert np.shares_memory(np.asarray(buffer), array)


def test_a_dtype_that_is_not_data_is_not_carried():
    with pytest.raises(BackendError, match="object"):
        encode_tensors({"x": np.array([object()])})


def test_an_empty_tensor_of_absurd_shape_is_refused():
    header = msgspec.msgpack.encode({"x": ("float32", (0, 14_066, 176_035, 931_236_732))})
    payload = len(header).to_bytes(4, "little") + header
    with pytest.raises(BadRequest, match="shape"):
        decode_tensors(memoryview(payload.ljust(-(-len(payload) // 64) * 64, b"\0")))


@given(st.binary(max_size=300))
def test_garbage_is_refused(data):
    with suppress(BadRequest):
        decode_tensors(memoryview(data))


@given(st.integers(0, 400), st.integers(0, 255), st.integers(-3, 3))
def test_a_damaged_payload_is_refused_or_stays_in_bounds(position, byte, growth):
    data = bytearray(b"".join(encode_tensors({"a": np.ones((2, 3), np.float32), "b": np.arange(5)})))
    data[position % len(data)] = byte
    data = data + b"x" * growth if growth > 0 else data[: len(data) + growth]
    with suppress(BadRequest):
        for array in decode_tensors(memoryview(bytes(data))).values():
            assert array.nbytes <= len(data)
            array.tobytes()


headers = st.dictionaries(
    st.text(max_size=3),
    st.tuples(
        st.sampled_from(["float32", "object", "O", "<f4", "int8", "datetime64", "V8"]),
        st.lists(st.integers(-1, 2**63), max_size=9),
    ),
    max_size=3,
)


@given(headers, st.binary(max_size=100))
def test_a_lying_header_is_refused_or_stays_in_bounds(header, rest):
    packed = msgspec.msgpack.encode(header)
    with suppress(BadRequest):
        decode_tensors(memoryview(len(packed).to_bytes(4, "little") + packed + rest))


class Twice:
    """y = 2 x, row by row; refuses a batch that contains 666."""

    inputs = ("x",)
    outputs = ("y",)

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.closed = False
        self.lost = False

    def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]:
        self.batches.append(feeds["x"].shape)
        if self.lost:
            raise DeviceLost("gone")
        if (feeds["x"] == 666).any():
            raise BackendError("666 is not accepted")
        return {"y": feeds["x"] * 2}

    def close(self) -> None:
        self.closed = True


def item(number: int, operation: str = "tensor", **tensors: Array) -> Item:
    return Item(number, operation, memoryview(b"".join(encode_tensors(tensors))))


def result(payload: object) -> Array:
    assert not isinstance(payload, EdgedError), payload
    return decode_tensors(memoryview(b"".join(payload)))["y"]  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=6))
def test_items_of_one_shape_run_together_and_come_back_apart(shapes):
    session = Twice()
    inputs = [np.full(shape, n, np.float32) for n, shape in enumerate(shapes)]
    results = TensorStage(session, VARIANT, {}).run([item(n, x=x) for n, x in enumerate(inputs)])
    for x, payload in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(result(payload), x * 2)
    assert len(session.batches) == len({shape[1] for shape in shapes})


def test_a_bad_item_fails_alone():
    session = Twice()
    good, bad = np.ones((1, 2), np.float32), np.full((1, 2), 666, np.float32)
    items = [
        item(0, x=good),
        item(1, x=bad),
        Item(2, "tensor", memoryview(b"garbage")),
        item(3, z=good),
        item(4, x=np.float32(3)),
        item(5, "chat", x=good),
        item(6, x=good[:0]),
        item(7, x=good),
    ]
    results = TensorStage(session, VARIANT, {}).run(items)
    assert [isinstance(r, EdgedError) for r in results] == [False, True, True, True, True, True, True, False]
    assert isinstance(results[1], BackendError)
    assert all(isinstance(results[n], BadRequest) for n in range(2, 7))
    np.testing.assert_array_equal(result(results[7]), good * 2)


def test_a_lost_device_is_not_an_items_fault():
    session = Twice()
    session.lost = True
    with pytest.raises(DeviceLost):
        TensorStage(session, VARIANT, {}).run([item(0, x=np.ones((1, 2))), item(1, x=np.ones((1, 2)))])


def test_an_output_without_the_batch_axis_is_the_models_fault():
    class Sum(Twice):
        def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]:
            return {"y": feeds["x"].sum()}

    (error,) = TensorStage(Sum(), VARIANT, {}).run([item(0, x=np.ones((2, 2)))])
    assert isinstance(error, BackendError)


def test_the_empty_stage_gives_back_what_it_got():
    stage = TensorStage(None, VARIANT, {"passthrough": True})
    assert stage.run([Item(1, "chat", memoryview(b"anything"))]) == [b"anything"]
    stage.close()


def test_a_stage_without_a_model_is_refused():
    with pytest.raises(BadRequest, match="passthrough"):
        TensorStage(None, VARIANT, {})


def test_close_closes_the_session():
    session = Twice()
    TensorStage(session, VARIANT, {}).close()
    assert session.closed
