"""The adapter to onnxruntime keeps the tensor contract, on tiny models and on a real encoder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edged_backends.onnx import OnnxBackend, accelerators, translated

from edged.backend import Array, Backend, Variant
from edged.errors import BackendError, ConfigError, DeviceLost
from edged.testing.tensor_contract import TensorContract
from edged.testing.tiny_models import affine_model, encoder_model, external_model


class TestAffine(TensorContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return OnnxBackend()

    @pytest.fixture
    def variant(self, tmp_path: Path) -> Variant:
        return affine_model(tmp_path)

    @pytest.fixture
    def feeds(self) -> dict[str, Array]:
        return {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}


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


def open_cpu(variant: Variant, **options: object):
    return OnnxBackend().open(variant, OnnxBackend().devices()[0], options)


def test_static_shapes_give_the_same_numbers(
    variant: Callable[[str, str], Variant], encoder_feeds: dict[str, Array]
) -> None:
    encoder = variant("all-minilm-l6-v2", "fp32")
    free = open_cpu(encoder).run(encoder_feeds)
    fixed = open_cpu(encoder, static_shapes=True, sequence_lengths=[16]).run(encoder_feeds)
    real = encoder_feeds["attention_mask"].astype(bool)
    for name in free:
        np.testing.assert_allclose(fixed[name][real], free[name][real], atol=1e-3)


def test_a_wrong_type_of_option_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads"):
        open_cpu(affine_model(tmp_path), threads="many")


@pytest.mark.parametrize(
    "location",
    [
        "../outside.bin",
        "a/../../outside.bin",
        "link.bin",
        "folder/inside.bin",
        "hard.bin",
        "fifo",
        ".",
        "absent",
        "",
    ],
)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    outside = tmp_path / "outside.bin"
    outside.write_bytes(bytes(24))
    (folder / "link.bin").symlink_to(outside)
    (tmp_path / "inside.bin").write_bytes(bytes(24))
    (folder / "folder").symlink_to(tmp_path)
    (folder / "hard.bin").hardlink_to(outside)
    os.mkfifo(folder / "fifo")
    with pytest.raises(BackendError, match="external data"):
        open_cpu(external_model(folder, location))


@pytest.mark.parametrize("location", ["/etc/hostname", "/dev/zero", "/proc/self/environ"])
def test_absolute_external_data_is_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(BackendError, match="external data"):
        open_cpu(external_model(tmp_path, location))


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.full((3, 2), 2, np.float32).tobytes())
    session = open_cpu(external_model(tmp_path, "weights.bin"))
    result = session.run({"x": np.ones((1, 3), np.float32)})["y"]
    np.testing.assert_allclose(result, [[6.5, 5.5]])


def entry(provider: str, hardware: str, **metadata: str) -> SimpleNamespace:
    """What onnxruntime reports for one pair of provider and device."""
    device = SimpleNamespace(type=SimpleNamespace(name=hardware), vendor="V", metadata=metadata)
    return SimpleNamespace(ep_name=provider, device=device)


def test_execution_providers_become_devices(tmp_path: Path) -> None:
    entries = [
        entry("CPUExecutionProvider", "CPU"),
        entry("OpenVINOExecutionProvider", "CPU"),
        entry("OpenVINOExecutionProvider", "NPU"),
        entry("OpenVINOExecutionProvider", "GPU", Discrete="0"),
        entry("WebGpuExecutionProvider", "GPU"),
    ]
    devices = {device.id: device for device in accelerators(entries, [], tmp_path)}
    assert set(devices) == {"npu", "igpu", "webgpu:0"}
    assert devices["npu"].capabilities.static_shapes
    assert devices["npu"].capabilities.max_batch == 1


def test_cuda_without_a_driver_is_unusable_with_the_remedy(tmp_path: Path) -> None:
    (device,) = accelerators([], ["CUDAExecutionProvider"], tmp_path)
    assert "driver" in device.unusable
    (tmp_path / "nvidia0").touch()
    (device,) = accelerators([], ["CUDAExecutionProvider"], tmp_path)
    assert not device.unusable


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure ; GPU=0",
            True,
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered", True),
        ("CUDA failure 100: no CUDA-capable device is detected ; GPU=-1", True),
        ("CUDA failure 2: out of memory ; GPU=0", False),
        ("CUDA failure 712: resource already mapped", False),
        ("Exception(3) tid(5a68) 887A0005 The GPU device instance has been suspended.", True),
        ("NPU crashed. SSR detected. Caused QNN graph execute error. Error code: 1003", True),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x", False),
    ],
)
def test_a_lost_device_is_known_by_what_the_provider_says(said: str, lost: bool) -> None:
    assert isinstance(translated(RuntimeError(said), "x"), DeviceLost) == lost


def test_the_runtime_is_loaded_without_its_telemetry(tmp_path):
    """Its reporter keeps a device id below the home folder as soon as the library is loaded."""
    environment = {
        key: value for key, value in os.environ.items() if key not in {"CI", "ORT_DISABLE_TELEMETRY"}
    }
    subprocess.run(
        [sys.executable, "-c", "import edged.plugins; edged.plugins.load('onnx').devices()"],
        env=environment | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
