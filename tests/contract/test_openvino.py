"""The adapter to OpenVINO keeps the contract of tensors; fixed shapes give the numbers of free ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edged_backends.openvino import OpenvinoBackend
from edged_backends.openvino_devices import describe, hidden_accelerators, translated

from edged.backend import Array, Backend, Variant
from edged.errors import BackendError, DeviceLost
from edged.testing.tensor_contract import TensorContract
from edged.testing.tiny_models import affine_model, encoder_model, external_model


class TestAffine(TensorContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return OpenvinoBackend()

    @pytest.fixture
    def variant(self, tmp_path: Path) -> Variant:
        return affine_model(tmp_path)

    @pytest.fixture
    def feeds(self) -> dict[str, Array]:
        return {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"threads": 1, "precision": "f32"}


class TestEncoder(TestAffine):
    @pytest.fixture
    def variant(self, tmp_path: Path) -> Variant:
        return encoder_model(tmp_path)

    @pytest.fixture
    def feeds(self, token_feeds: dict[str, Array]) -> dict[str, Array]:
        return token_feeds


class TestEncoderWithStaticShapes(TestEncoder):
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"threads": 1, "static_shapes": True, "sequence_lengths": [8, 16], "static_batch": 3}


class TestRealEncoder(TestAffine):
    @pytest.fixture
    def variant(self, variant: Callable[[str, str], Variant]) -> Variant:
        return variant("all-minilm-l6-v2", "fp32")

    @pytest.fixture
    def feeds(self, encoder_feeds: dict[str, Array]) -> dict[str, Array]:
        return encoder_feeds


def open_cpu(variant: Variant, **options: object) -> Any:
    return OpenvinoBackend().open(variant, OpenvinoBackend().devices()[0], options)


@pytest.mark.parametrize("batch", [1, 4])
def test_static_shapes_give_the_same_numbers(
    variant: Callable[[str, str], Variant], encoder_feeds: dict[str, Array], batch: int
) -> None:
    encoder = variant("all-minilm-l6-v2", "fp32")
    free = open_cpu(encoder, precision="f32").run(encoder_feeds)
    fixed = open_cpu(
        encoder, static_shapes=True, sequence_lengths=[16], static_batch=batch, precision="f32"
    ).run(encoder_feeds)
    real = encoder_feeds["attention_mask"].astype(bool)
    for name in free:
        np.testing.assert_allclose(fixed[name][real], free[name][real], atol=1e-3)


def test_an_input_longer_than_the_longest_shape_is_refused(tmp_path: Path) -> None:
    session = open_cpu(encoder_model(tmp_path), static_shapes=True, sequence_lengths=[8])
    with pytest.raises(BackendError, match="9 tokens"):
        session.run({name: np.ones((1, 9), np.int64) for name in session.inputs})


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="external data"):
        open_cpu(external_model(tmp_path, "../weights.bin"))


def test_a_compiled_model_is_kept(tmp_path: Path) -> None:
    open_cpu(affine_model(tmp_path), cache_dir=str(tmp_path / "blobs"))
    assert list((tmp_path / "blobs").glob("*.blob"))


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The device nodes of a machine with an Intel GPU, an AMD GPU and an NPU."""
    vendors = {"drm/renderD128": "0x8086", "drm/renderD129": "0x1002", "accel/accel0": "0x8086"}
    for name, vendor in vendors.items():
        folder = tmp_path / "sys/class" / name / "device"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
    for node in ("dev/dri/renderD128", "dev/dri/renderD129", "dev/accel/accel0"):
        (tmp_path / node).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / node).touch()
    return tmp_path


def test_an_accelerator_without_permission_names_the_group(machine: Path) -> None:
    devices = hidden_accelerators(machine, lambda _: False)
    assert [device.id for device in devices] == ["igpu", "npu"]
    assert all("render" in device.unusable for device in devices)
    assert "renderD128" in devices[0].unusable


def test_an_accelerator_without_driver_names_the_driver(machine: Path) -> None:
    devices = hidden_accelerators(machine, lambda _: True)
    assert "intel-opencl-icd" in devices[0].unusable
    assert "NPU" in devices[1].unusable


def test_a_machine_without_accelerators_lists_none(tmp_path: Path) -> None:
    assert hidden_accelerators(tmp_path, lambda _: True) == []


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("GPU.0", "Type.INTEGRATED", "igpu"),
        ("GPU.1", "Type.DISCRETE", "gpu:1"),
        ("NPU", "", "npu"),
        ("CPU", "", "cpu"),
    ],
)
def test_devices_are_named_by_kind(name: str, kind: str, expected: str) -> None:
    device = describe(name, {"DEVICE_TYPE": kind, "OPTIMIZATION_CAPABILITIES": ["FP16"]}.get)
    assert device.id == expected
    assert device.capabilities.static_shapes == (expected == "npu")
    assert device.capabilities.dtypes == ("f16",)


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("[GPU] clFlush, error code: -5 CL_OUT_OF_RESOURCES", True),
        ("[GPU] clFlush, error code: -5", True),
        ("[GPU] clWaitForEvents, error code: -14 CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST", True),
        ("[GPU] clWaitForEvents, error code: -14", True),
        ("[GPU] clEnqueueNDRangeKernel, error code: -54 CL_INVALID_WORK_GROUP_SIZE", False),
        ("[GPU] clEnqueueNDRangeKernel, error code: -54", False),
        (
            "L0 zeFenceHostSynchronize result: ZE_RESULT_ERROR_DEVICE_LOST, code 0x70000001 - device hung",
            True,
        ),
        ("L0 zeFenceHostSynchronize result: ZE_RESULT_ERROR_UNKNOWN, code 0x7ffffffe", False),
        ("Check 'shape.is_static()' failed", False),
    ],
)
def test_a_lost_device_is_known_by_what_the_plugin_says(said: str, lost: bool) -> None:
    error = translated(
        RuntimeError(f"Exception from src/inference/src/cpp/infer_request.cpp:224:\n{said}"), "x"
    )
    assert isinstance(error, DeviceLost) == lost


def test_the_runtime_is_loaded_without_its_telemetry():
    """In a process of its own: this one may have imported the runtime by another door."""
    script = (
        "import sys, threading; import edged_backends.openvino;"
        "print(sys.modules['openvino_telemetry'], [thread.name for thread in threading.enumerate()])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert answer.stdout == "None ['MainThread']\n"
