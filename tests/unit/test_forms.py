"""Which forms a box can run a stage in: enumeration from facts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.backend import Capabilities, Device, Variant
from edged.config.tables import Stage
from edged.placement.forms import Box, Present, Runtime, candidates, thread_counts


def device(backend: str, identity: str = "cpu", kind: str = "cpu", **more: object) -> Device:
    return Device(id=identity, kind=kind, name=identity, backend=backend, **more)


def present(name: str, form: str = "gguf", preferred: tuple[str, ...] = ()) -> Present:
    variant = Variant(model="m", name=name, task="generate", format=form, path=Path("/dev/null"))
    return Present(variant=variant, preferred=preferred)


OPENVINO = Runtime(name="openvino", formats=("onnx", "openvino", "gguf"), devices=(device("openvino"),))
LLAMA = Runtime(name="llama_cpp", formats=("gguf",), devices=(device("llama_cpp"),))
ONNX = Runtime(name="onnx", formats=("onnx",), devices=(device("onnx"),))
SIMULATED = Runtime(
    name="simulated", formats=("none", "gguf"), devices=(device("simulated", "sim:cpu", "simulated"),)
)
RUNTIMES = (LLAMA, ONNX, OPENVINO, SIMULATED)


def box(*runtimes: Runtime, cores: int = 2) -> Box:
    return Box(runtimes=runtimes or RUNTIMES, cores=cores, library=Path("/library"), cache_dir=Path("/cache"))


def stage(**fields: object) -> Stage:
    return Stage(**({"kind": "generator", "model": "m"} | fields))


def test_every_variant_on_every_runtime_that_opens_it():
    found = candidates("generator", stage(), [present("q8_0"), present("q4_0")], box())
    assert len(found) == len({c.form for c in found}) == 2 * 2 * 2 * 2
    assert {(c.form.variant, c.form.backend) for c in found} == {
        ("q8_0", "openvino"),
        ("q8_0", "llama_cpp"),
        ("q4_0", "openvino"),
        ("q4_0", "llama_cpp"),
    }
    assert {dict(c.form.options)["exact"] for c in found} == {True, False}


def test_the_default_comes_first():
    first = present("q8_0", preferred=("openvino", "llama_cpp"))
    form = candidates("generator", stage(), [first, present("q4_0")], box(cores=4))[0].form
    assert (form.variant, form.backend, form.threads) == ("q8_0", "openvino", 4)
    assert dict(form.options) == {"exact": True}


@pytest.mark.parametrize(
    ("fixed", "attribute", "only"),
    [
        ({"backend": "llama_cpp"}, "backend", "llama_cpp"),
        ({"variant": "q4_0"}, "variant", "q4_0"),
        ({"options": {"threads": 1}}, "threads", 1),
        ({"options": {"exact": False}}, "options", (("exact", False),)),
        ({"device": "cpu:0"}, "device", "cpu:0"),
    ],
)
def test_what_the_operator_fixed_is_not_varied(fixed, attribute, only):
    everything = candidates("generator", stage(), [present("q8_0"), present("q4_0")], box())
    found = candidates("generator", stage(**fixed), [present("q8_0"), present("q4_0")], box())
    assert {getattr(c.form, attribute) for c in found} == {only}
    assert 0 < len(found) < len(everything)


def test_a_device_that_nobody_has_gives_no_form():
    assert candidates("generator", stage(device="npu"), [present("q8_0")], box()) == []


def test_a_core_set_bounds_the_threads():
    found = candidates("generator", stage(device="cpu:0-2"), [present("q8_0")], box(OPENVINO, cores=8))
    assert {c.form.threads for c in found} == {3, 2, 1}


def test_unusable_devices_are_left_out_and_accelerators_have_no_threads():
    npu = device("openvino", "npu", "npu", capabilities=Capabilities(max_sequences=1))
    broken = device("openvino", "igpu", "igpu", unusable="no driver")
    runtime = Runtime(name="openvino", formats=("gguf",), devices=(npu, broken))
    found = candidates("generator", stage(), [present("q8_0")], box(runtime))
    assert [(c.form.device, c.form.threads, c.most_batch) for c in found] == [("npu", 0, 1)]
    assert "threads" not in found[0].spec.options


def test_the_simulated_runtime_only_by_name():
    assert "simulated" not in {
        c.form.backend for c in candidates("generator", stage(), [present("q8_0")], box())
    }
    named = candidates("generator", stage(backend="simulated"), [present("none", "none")], box())
    assert [c.form.device for c in named] == ["sim:cpu"]


def test_the_process_is_told_what_the_form_says_and_keeps_other_options():
    kept = stage(options={"max_tokens": 5, "max_sequences": 4})
    for candidate in candidates("generator", kept, [present("q8_0")], box()):
        assert candidate.spec.options["threads"] == candidate.form.threads
        assert candidate.spec.options["max_tokens"] == 5
        assert candidate.spec.options["exact"] == dict(candidate.form.options)["exact"]
        assert ("cache_dir" in candidate.spec.options) == (candidate.form.backend == "openvino")
        assert candidate.most_batch == 4


@given(st.integers(1, 300))
def test_thread_counts_go_from_all_cores_to_one(cores):
    counts = thread_counts(cores)
    assert counts[0] == cores
    assert counts[-1] == 1
    assert list(counts) == sorted(set(counts), reverse=True)
