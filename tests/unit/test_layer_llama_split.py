"""llama.cpp's way of laying layers on devices: the rule, its inverse, and what its log says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import BackendError, ConfigError
from edged.layers.planning.costs import UNIT, Sizes
from edged.layers.planning.llama_split import (
    BY_LAYER,
    CPU,
    WHOLE,
    assigned,
    described,
    from_stages,
    ranges,
    read_back,
    split_for,
    wanted,
)
from edged.layers.planning.plan import Candidate, even, plan
from edged.layers.planning.plan import Work as Planned

SPLITS = st.lists(st.integers(1, 24), min_size=1, max_size=16)


@settings(deadline=None)
@given(st.integers(0, 40), SPLITS)
def test_the_parameters_give_the_split_that_was_wanted(cpu_layers: int, per_device: list[int]):
    found = split_for(cpu_layers, per_device)
    layers = cpu_layers + sum(per_device)
    assert assigned(layers, found.n_gpu_layers, found.tensor_split) == wanted(cpu_layers, per_device)
    assert found.split_mode == (BY_LAYER if len(per_device) > 1 else WHOLE)


def test_every_even_split_comes_out_as_planned():
    for layers in range(1, 97):
        for stages in range(1, min(layers, 16) + 1):
            sizes = [share.layers for share in even(layers, stages)]
            found = split_for(0, sizes)
            assert assigned(layers, found.n_gpu_layers, found.tensor_split) == wanted(0, sizes)


@settings(deadline=None)
@given(
    st.integers(2, 80),
    st.lists(st.sampled_from([0.5, 1.0, 2.0, 7.0]), min_size=1, max_size=6),
    st.booleans(),
)
def test_a_weighted_plan_comes_out_as_planned(layers: int, speeds: list[float], cpu_first: bool):
    names = [f"cuda:{number}" for number in range(len(speeds))]
    if cpu_first:
        names[0] = "cpu"
    candidates = [Candidate(id=name, speed=speed) for name, speed in zip(names, speeds, strict=True)]
    made = plan(Sizes(layers=layers), UNIT, candidates, Planned(micro_batches=len(names)))
    devices, counts = from_stages([(stage.device, stage.share) for stage in made.stages])
    on_cpu = counts[0] if devices[0] == "cpu" else 0
    on_devices = counts[len(counts) - sum(device != "cpu" for device in devices) :]
    found = split_for(on_cpu, on_devices)
    laid = assigned(layers, found.n_gpu_layers, found.tensor_split)
    accelerators = [device for device in devices if device != "cpu"]
    by_layer = ["cpu" if place == CPU else accelerators[place] for place in laid[:-1]]
    assert by_layer == [stage.device for stage in made.stages for _ in range(stage.share.layers)]


def in_single_precision(layers: int, n_gpu_layers: int, tensor_split: list[float]) -> list[int]:
    """The rule once more, with numpy's floats of 32 bits."""
    splits = np.cumsum(np.array(tensor_split, np.float32), dtype=np.float32)
    splits /= splits[-1]
    start = max(layers + 1 - n_gpu_layers, 0)
    active = min(n_gpu_layers, layers + 1)
    return [
        CPU
        if layer < start
        else int(np.searchsorted(splits, np.float32(layer - start) / np.float32(active), "right"))
        for layer in range(layers + 1)
    ]


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 100),
    st.integers(0, 120),
    st.lists(st.floats(0.0625, 128, width=32), min_size=1, max_size=8),
)
def test_fractions_of_any_kind_are_rounded_as_c_rounds_them(layers, n_gpu_layers, tensor_split):
    found = assigned(layers, n_gpu_layers, tensor_split)
    assert list(found) == in_single_precision(layers, n_gpu_layers, tensor_split)


def test_the_output_counts_and_negative_means_all():
    assert assigned(4, 1, (1,)) == (CPU, CPU, CPU, CPU, 0)
    assert assigned(4, -1, (1,)) == (0,) * 5
    assert assigned(4, 0, (1,)) == assigned(4, 3, ()) == (CPU,) * 5


def test_what_llama_cpp_cannot_do_is_refused():
    first, second = even(4, 2)
    with pytest.raises(ConfigError, match="name it first"):
        from_stages([("cuda:0", first), ("cpu:0-1", second)])
    with pytest.raises(ConfigError, match="name each once"):
        from_stages([("cuda:0", first), ("cuda:0", second)])
    with pytest.raises(ConfigError, match="at most 16"):
        split_for(0, [1] * 17)
    with pytest.raises(ConfigError, match="at least one layer"):
        split_for(0, [3, 0])


def log_of(names: list[str]) -> list[str]:
    lines = [
        f"load_tensors: layer {layer:3d} assigned to device {name}, is_swa = 0"
        for layer, name in enumerate(names)
    ]
    return [
        "load_tensors: loading model tensors, this can take a while...",
        *lines,
        "load_tensors: offloaded",
    ]


@given(st.lists(st.sampled_from(["CPU", "CUDA0", "RPC0[127.0.0.1:50052]", "Vulkan1"]), min_size=1))
def test_the_log_is_read_back(names: list[str]):
    assert read_back(log_of(names)) == tuple(names)


def test_a_log_without_layers_is_empty_and_one_with_gaps_is_refused():
    assert read_back(["llama_model_loader: loaded"]) == ()
    lines = log_of(["CPU"] * 4)
    with pytest.raises(BackendError, match="layers 0, 2-3 and of no others"):
        read_back([*lines[:2], *lines[3:]])


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([], "no layer on any device"),
        (["CPU"] * 3, "layers 0-1 on CPU, output on CPU"),
        (["CPU", "CUDA0", "CUDA1", "CUDA1"], "layers 0 on CPU, 1 on CUDA0, 2 on CUDA1, output on CUDA1"),
    ],
)
def test_where_layers_are_is_said_shortly(devices: list[str], words: str):
    assert described(devices) == words


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_name_every_number(numbers: set[int]):
    named = set()
    for part in ranges(sorted(numbers)).split(", "):
        first, _, last = part.partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == numbers
