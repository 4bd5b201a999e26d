"""The contract of a `TensorSession`, as a pytest base class that every adapter inherits.

A subclass gives the fixtures `backend`, `variant` and `feeds`, and may override `device` and `options`.
A new adapter is done when its subclass is green.
"""
# ruff: noqa: D102 - assertions are what a contract consists of; the names of its tests say what they hold

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edged.backend import Array, Backend, Device, TensorSession, Variant
from edged.errors import BackendError, ConfigError

Feeds = Mapping[str, Array]


def rows(feeds: Feeds, order: list[int]) -> dict[str, Array]:
    """Take some items of a batch, in the order given."""
    return {name: np.ascontiguousarray(array[order]) for name, array in feeds.items()}


def count(feeds: Feeds) -> int:
    """Return the number of items in a batch."""
    return len(next(iter(feeds.values())))


def allowed_core(device: Device) -> int:
    """Return a core that the device may run on."""
    return device.cores[0] if device.cores else 0


class TensorContract:
    """What every session that maps arrays to arrays must do, whatever it runs on."""

    tolerance = 1e-3
    """Largest difference between an item alone and in a batch; dynamic int8 graphs need more."""

    @pytest.fixture
    def device(self, backend: Backend) -> Device:
        """The device under test: the first usable one unless the subclass chooses."""
        return next(device for device in backend.devices() if not device.unusable)

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """Options of the adapter."""
        return {"threads": 1}

    @pytest.fixture
    def session(
        self, backend: Backend, variant: Variant, device: Device, options: Mapping[str, Any]
    ) -> Iterator[TensorSession]:
        """A session on the device under test."""
        session: Any = backend.open(variant, device, options)
        yield session
        session.close()

    def _close_to(self, left: Feeds, right: Feeds) -> None:
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_allclose(left[name], right[name], atol=self.tolerance, rtol=self.tolerance)

    def test_inputs_and_outputs_have_the_names_of_the_model(
        self, session: TensorSession, feeds: Feeds
    ) -> None:
        assert set(session.inputs) == set(feeds)
        assert set(session.run(feeds)) == set(session.outputs)

    def test_answers_come_in_order(self, session: TensorSession, feeds: Feeds) -> None:
        backwards = list(range(count(feeds)))[::-1]
        straight = session.run(feeds)
        self._close_to(session.run(rows(feeds, backwards)), rows(straight, backwards))

    def test_a_batch_of_one_equals_a_batch_of_many(self, session: TensorSession, feeds: Feeds) -> None:
        together = session.run(feeds)
        for item in range(count(feeds)):
            self._close_to(session.run(rows(feeds, [item])), rows(together, [item]))

    def test_items_differ(self, session: TensorSession, feeds: Feeds) -> None:
        for array in session.run(feeds).values():
            assert not np.allclose(array[0], array[-1], atol=self.tolerance)

    def test_the_result_belongs_to_the_caller(self, session: TensorSession, feeds: Feeds) -> None:
        first = session.run(feeds)
        kept = {name: array.copy() for name, array in first.items()}
        for array in first.values():
            array[...] += 1
        self._close_to(session.run(feeds), kept)
        for name, array in first.items():
            assert not np.allclose(array, kept[name]), "the runtime took the caller's array back"

    def test_independent_runs_come_in_order_and_equal_single_ones(
        self, backend: Backend, variant: Variant, device: Device, options: Mapping[str, Any], feeds: Feeds
    ) -> None:
        """Several at once, where the session can, to the bit what one alone gives."""
        session: Any = backend.open(variant, device, {**options, "threads": 2})
        runs = [rows(feeds, [row]) for row in range(count(feeds))] * 4
        singly = [session.run(each) for each in runs]
        for cores in (2, 1):
            session.set_threads(cores)
            for together, alone in zip(session.run_each(runs), singly, strict=True):
                for name in alone:
                    np.testing.assert_array_equal(together[name], alone[name])
        session.close()

    def test_a_lease_counts_between_two_runs(
        self, backend: Backend, variant: Variant, device: Device, options: Mapping[str, Any], feeds: Feeds
    ) -> None:
        session: Any = backend.open(variant, device, {**options, "threads": 2})
        runs = [rows(feeds, [0])] * 4
        looks: list[int] = []

        def look() -> None:
            session.set_threads(1 + len(looks) % 2)
            looks.append(threading.get_ident())

        session.attend(look)
        alone = session.run(runs[0])
        for each in session.run_each(runs):
            for name in alone:
                np.testing.assert_array_equal(each[name], alone[name])
        assert len(looks) >= len(runs) / 2
        assert set(looks) == {threading.get_ident()}
        session.close()

    def test_a_failing_run_among_several_is_raised(self, session: TensorSession, feeds: Feeds) -> None:
        with pytest.raises(BackendError):
            session.run_each([feeds, {}, feeds])

    def test_an_unknown_input_is_refused(self, session: TensorSession, feeds: Feeds) -> None:
        with pytest.raises(BackendError, match="no_such_input"):
            session.run({**feeds, "no_such_input": np.zeros((1, 1), np.float32)})

    def test_a_missing_input_is_refused(self, session: TensorSession, feeds: Feeds) -> None:
        name = session.inputs[0]
        with pytest.raises(BackendError, match=name):
            session.run({key: array for key, array in feeds.items() if key != name})

    def test_a_wrong_rank_is_refused(self, session: TensorSession, feeds: Feeds) -> None:
        name = session.inputs[0]
        with pytest.raises(BackendError):
            session.run({**feeds, name: feeds[name][..., np.newaxis, np.newaxis]})

    def test_a_refused_batch_leaves_the_session_usable(self, session: TensorSession, feeds: Feeds) -> None:
        before = session.run(feeds)
        with pytest.raises(BackendError):
            session.run({})
        self._close_to(session.run(feeds), before)

    def test_a_missing_file_is_a_backend_error(
        self, backend: Backend, variant: Variant, device: Device, tmp_path: Path
    ) -> None:
        missing = msgspec.structs.replace(variant, path=tmp_path / f"absent{variant.path.suffix}")
        with pytest.raises(BackendError, match="absent"):
            backend.open(missing, device, {})

    @pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 16])
    def test_a_corrupt_file_is_a_backend_error(
        self, backend: Backend, variant: Variant, device: Device, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / f"corrupt{variant.path.suffix}"
        path.write_bytes(content)
        with pytest.raises(BackendError, match="corrupt"):
            backend.open(msgspec.structs.replace(variant, path=path), device, {})

    def test_two_sessions_live_together(
        self, backend: Backend, variant: Variant, device: Device, options: Mapping[str, Any], feeds: Feeds
    ) -> None:
        first: Any = backend.open(variant, device, options)
        second: Any = backend.open(variant, device, options)
        expected = first.run(feeds)
        first.close()
        self._close_to(second.run(feeds), expected)
        second.close()

    def test_close_is_idempotent_and_ends_the_session(
        self, backend: Backend, variant: Variant, device: Device, options: Mapping[str, Any], feeds: Feeds
    ) -> None:
        session: Any = backend.open(variant, device, options)
        session.close()
        session.close()
        with pytest.raises(BackendError):
            session.run(feeds)

    def test_device_ids_are_stable_and_unique(self, backend: Backend) -> None:
        ids = [device.id for device in backend.devices()]
        assert ids == [device.id for device in backend.devices()]
        assert len(set(ids)) == len(ids)

    def test_devices_name_their_backend(self, backend: Backend) -> None:
        assert {device.backend for device in backend.devices()} == {backend.name}

    def test_every_usable_device_opens(
        self, backend: Backend, variant: Variant, options: Mapping[str, Any], feeds: Feeds
    ) -> None:
        for device in backend.devices():
            if not device.unusable:
                session: Any = backend.open(variant, device, options)
                assert session.run(feeds).keys() == set(session.outputs)
                session.close()

    def test_an_unusable_device_is_refused_with_its_reason(
        self, backend: Backend, variant: Variant, device: Device
    ) -> None:
        broken = msgspec.structs.replace(device, unusable="the cable is out")
        with pytest.raises(BackendError, match="the cable is out"):
            backend.open(variant, broken, {})

    def test_a_set_of_cores_is_a_device(
        self, backend: Backend, variant: Variant, device: Device, feeds: Feeds
    ) -> None:
        if device.kind != "cpu":
            pytest.skip(f"{device.id} has no cores to choose from")
        core = allowed_core(device)
        one = msgspec.structs.replace(device, id=f"cpu:{core}", cores=(core,))
        session: Any = backend.open(variant, one, {})
        assert session.run(feeds).keys() == set(session.outputs)
        session.close()

    def test_an_unknown_option_is_a_config_error(
        self, backend: Backend, variant: Variant, device: Device
    ) -> None:
        with pytest.raises(ConfigError, match="no_such_option"):
            backend.open(variant, device, {"no_such_option": 1})

    def test_a_format_that_it_does_not_open_is_refused(
        self, backend: Backend, variant: Variant, device: Device
    ) -> None:
        with pytest.raises(BackendError):
            backend.open(msgspec.structs.replace(variant, format="none"), device, {})
