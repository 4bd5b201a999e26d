"""The llama.cpp adapter splits layers as told, proves it by the runtime's log, or fails aloud.

On a machine with a CPU only, llama.cpp gets copies of its CPU device under names of their own: it lays layers
on them, and computes with them, as on any devices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from edged_backends import llama_cpp_devices as devices
from edged_backends import llama_cpp_layout as layout
from edged_backends import llama_cpp_runtime as runtime
from edged_backends.llama_cpp import LlamaCppBackend
from edged_backends.llama_cpp_runtime import Accelerator, overheard
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.backend import Detailed, Device, TokenSession, Variant
from edged.errors import BackendError, ConfigError
from edged.layers.planning.llama_split import BY_LAYER, CPU, LlamaSplit, assigned, read_back
from edged.stages.generator import Generator
from edged.testing.token_contract import generate

OPTIONS = {"max_sequences": 1, "context_tokens": 256, "threads": 1, "prefix_cache_mib": 0}
GPUS = [Device(id=f"cuda:{number}", kind="cuda", name="", backend="llama_cpp") for number in range(4)]


@pytest.fixture(scope="module")
def weights(variant: Callable[[str, str], Variant]) -> Variant:
    return variant("smollm2-135m-instruct", "q4_1")


@pytest.fixture(scope="module")
def backend() -> LlamaCppBackend:
    return LlamaCppBackend()


@pytest.fixture
def opened(backend: LlamaCppBackend, weights: Variant) -> Iterator[Callable[..., TokenSession]]:
    sessions: list[TokenSession] = []

    def open_it(device: Device, **options: Any) -> TokenSession:
        sessions.append(backend.open(weights, device, {**OPTIONS, **options}))
        return sessions[-1]

    yield open_it
    for session in sessions:
        session.close()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[Accelerator]:
    """Two GPUs in the registry whose handles are the CPU's: what llama.cpp is told is not what it does."""
    ggml = runtime._ggml()
    handle = ggml.ggml_backend_dev_get(ctypes.c_size_t(0))
    found = [Accelerator(handle, f"CUDA{number}", "a card", 8 << 30, integrated=False) for number in range(2)]
    for module in (devices, layout):
        monkeypatch.setattr(module, "accelerators", lambda: found)
    return found


class Twins:
    """Copies of ggml's CPU device under other names (`ggml_backend_device` of ggml-backend-impl.h)."""

    WORDS = 24
    """Read of the structure: more than it has, so that all of it is there."""

    def __init__(self, count: int) -> None:
        self._kept: list[object] = []
        self.all = tuple(self._twin(f"CUDA{number}") for number in range(count))

    def _twin(self, name: str) -> Accelerator:
        """The structure begins with the function that returns the name."""
        ggml = runtime._ggml()
        ggml.ggml_backend_dev_backend_reg.argtypes = [ctypes.c_void_p]
        ggml.ggml_backend_dev_backend_reg.restype = ctypes.c_void_p
        cpu = ggml.ggml_backend_dev_get(ctypes.c_size_t(0))
        words = (ctypes.c_void_p * self.WORDS).from_buffer_copy(ctypes.string_at(cpu, self.WORDS * 8))
        text = ctypes.create_string_buffer(name.encode())
        named = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _device: ctypes.addressof(text))
        words[0] = ctypes.cast(named, ctypes.c_void_p).value
        self._kept.append((words, text, named))
        handle = ctypes.addressof(words)
        assert ggml.ggml_backend_dev_backend_reg(handle) == ggml.ggml_backend_dev_backend_reg(cpu)
        return Accelerator(handle, name, "a CPU", 8 << 30, integrated=False)


@pytest.fixture(scope="module")
def twins() -> Iterator[tuple[Accelerator, ...]]:
    """Four devices that compute."""
    found = Twins(4)
    yield found.all
    del found  # only now: models of this module know their addresses


@pytest.fixture
def seen(twins: tuple[Accelerator, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter finds them in the registry."""
    for module in (devices, layout):
        monkeypatch.setattr(module, "accelerators", lambda: twins)


def laid(weights: Variant, used: Sequence[Accelerator], split: LlamaSplit) -> tuple[str, ...]:
    """Where llama.cpp puts the layers."""
    with overheard() as told:
        model = runtime.load_model(bytes(weights.path), used, split)
    runtime.free_model(model)
    return read_back(told)


@settings(max_examples=12, deadline=None)
@given(
    n_gpu_layers=st.integers(-1, 33),
    tensor_split=st.lists(st.floats(0.0625, 64, width=32), min_size=1, max_size=4),
)
def test_the_rule_is_that_of_the_runtime(weights, twins, n_gpu_layers: int, tensor_split: list[float]):
    split = LlamaSplit(n_gpu_layers=n_gpu_layers, tensor_split=tuple(tensor_split), split_mode=BY_LAYER)
    names = {CPU: "CPU", **{place: twin.name for place, twin in enumerate(twins)}}
    expected = tuple(names[place] for place in assigned(30, n_gpu_layers, tensor_split))
    assert laid(weights, twins[: len(tensor_split)], split) == expected


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(
    ("names", "layers", "where"),
    [
        (["cuda:0", "cuda:1"], [18, 12], "layers 0-17 on CUDA0, 18-29 on CUDA1, output on CUDA1"),
        (["cuda:1", "cuda:3"], [], "layers 0-14 on CUDA1, 15-29 on CUDA3, output on CUDA3"),
        (["cpu", "cuda:1"], [29, 1], "layers 0-28 on CPU, 29 on CUDA1, output on CUDA1"),
        (["cuda:2"], [30], "layers 0-29 on CUDA2, output on CUDA2"),
    ],
)
def test_a_split_answers_as_one_device_does(opened, backend, names: list[str], layers: list[int], where: str):
    plain = opened(backend.devices()[0], exact=False)
    prompt = plain.vocabulary.encode("The sea is deep and the sky is", special=False)
    (device,) = (each for each in [*GPUS, backend.devices()[0]] if each.id == names[0])
    split = opened(device, devices=names, layers=layers)
    assert split.details["layers"] == where
    assert generate(split, prompt, 8).tokens == generate(plain, prompt, 8).tokens


def test_the_log_proves_where_every_layer_is(opened, backend):
    session = opened(backend.devices()[0])
    assert isinstance(session, Detailed)
    assert session.details == {"layers": "layers 0-29 on CPU, output on CPU"}


def test_the_cpu_alone_is_a_split_that_can_be_proved(opened, backend, weights):
    session = opened(backend.devices()[0], devices=["cpu"], layers=[30])
    assert session.details["layers"] == "layers 0-29 on CPU, output on CPU"
    stage = Generator(session, weights, {})
    assert stage.details["layers"] == session.details["layers"], "status shows it"
    prompt = session.vocabulary.encode("The sea is deep and the sky is", special=False)
    plain = opened(backend.devices()[0])
    assert generate(session, prompt, 6).tokens == generate(plain, prompt, 6).tokens


def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(opened, backend):
    with pytest.raises(
        BackendError, match=r"split over cpu, cuda:0, .* sees no cuda:0 \(it sees none but"
    ) as loud:
        opened(backend.devices()[0], devices=["cpu", "cuda:0"])
    assert "edgectl devices" in loud.value.message


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("gpu", GPUS[:2])
def test_a_split_that_did_not_happen_is_an_error_with_both_sides(opened, gpu: Device):
    with pytest.raises(BackendError, match="did not split") as loud:
        opened(gpu, devices=["cuda:0", "cuda:1"])
    for expected in (
        "wanted layers 0-14 on CUDA0, 15-29 on CUDA1, output on CUDA1",
        "says layers 0-29 on CPU, output on CPU",
        "edgectl devices",
    ):
        assert expected in loud.value.message


@pytest.mark.usefixtures("pretended")
def test_weights_that_went_astray_are_given_back(opened, monkeypatch):
    freed: list[object] = []
    monkeypatch.setattr("edged_backends.llama_cpp.free_model", freed.append)
    with pytest.raises(BackendError, match="did not split"):
        opened(GPUS[0], devices=["cuda:0", "cuda:1"], layers=[20, 10])
    assert len(freed) == 1
    runtime.free_model(freed[0])


def test_a_log_that_says_nothing_proves_nothing(pretended):
    told = layout.Layout(tuple(pretended), layout.split_for(0, [1, 1]), ("CUDA0", "CUDA1", "CUDA1"))
    with pytest.raises(BackendError, match="says no layer on any device"):
        layout.confirm(told, [], Path("model.gguf"))


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": ["cuda:0", "cpu"]}, "name it first"),
        ({"devices": ["cuda:0", "cuda:0"]}, "name each once"),
        ({"devices": ["cuda:1"]}, "cuda:0 is not among"),
        ({"devices": ["cuda:0", "cuda:1"], "layers": [20, 9]}, "29 layers on 2 devices"),
        (
            {"devices": ["cuda:0", "cuda:1"], "layers": [30]},
            "does not suit devices cuda:0, cuda:1",
        ),
        ({"devices": ["cuda:0", "cuda:1"], "gpu_layers": 4}, "not both"),
        ({"layers": [30]}, "belongs to options.devices"),
    ],
)
def test_options_that_contradict_are_refused(opened, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        opened(GPUS[0], **options)


def test_what_the_runtime_is_told(opened, backend, pretended, monkeypatch):
    """The CPU takes the first ten, then the planned numbers; the last device has the output too."""
    seen: list[tuple[int, list[float], int]] = []
    real = runtime.runtime.llama_model_load_from_file

    def load(path, parameters):
        seen.append((parameters.n_gpu_layers, parameters.tensor_split[:3], parameters.split_mode))
        return real(path, parameters)

    monkeypatch.setattr(runtime.runtime, "llama_model_load_from_file", load)
    with pytest.raises(BackendError, match="wanted layers 0-9 on CPU, 10-21 on CUDA0, 22-29 on CUDA1"):
        opened(backend.devices()[0], devices=["cpu", "cuda:0", "cuda:1"], layers=[10, 12, 8])
    assert seen == [(21, [12.0, 9.0, 0.0], 1)]


def test_nobody_listens_after_loading(opened, backend):
    with overheard() as told:
        opened(backend.devices()[0])
    assert len(told) == 31
    opened(backend.devices()[0])
    assert len(told) == 31


def test_the_reason_of_a_failure_is_the_runtimes_own(backend, weights, tmp_path: Path):
    path = tmp_path / "corrupt.gguf"
    path.write_bytes(b"not a model at all")
    broken = Variant(model="m", name="n", task="generate", format="gguf", path=path)
    with pytest.raises(BackendError, match=r"failed to read magic|invalid magic"):
        backend.open(broken, backend.devices()[0], {})
