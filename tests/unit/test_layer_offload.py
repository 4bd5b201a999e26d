"""Weights and cache outside the device change no token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edged.backend import Sampling, Variant
from edged.errors import BackendError, ConfigError
from edged.layers import runners
from edged.layers.assembly import Settings, assemble
from edged.layers.offload.shelf import DiskShelf, MemoryShelf, Shelf
from edged.layers.offload.streams import InOrder, Work
from edged.layers.share import Share
from edged.layers.wire import Job, Row

from .layer_jobs import (
    COMBINATIONS,
    CONTEXT_TOKENS,
    PROMPTS,
    RANDOM,
    broken_after,
    built,
    jobs,
    resident_answers,
    spec,
    told,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("offload_cache", [False, True])
@pytest.mark.parametrize("source", ["memory", "disk"])
@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_the_answers_are_those_of_resident_weights(
    tmp_path: Path, overlap: str, block: int, source: str, offload_cache: bool, layers: int
):
    changes = {"overlap": overlap, "block": block, "overlap_from": source, "offload_cache": offload_cache}
    runner, _ = built(spec(layers, **changes, overlap_folder=str(tmp_path)))
    try:
        assert told(runner) == resident_answers(layers)
    finally:
        runner.close()


@pytest.mark.parametrize("offload_cache", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_hidden_states_are_the_same_to_the_bit(overlap: str, block: int, dtype: str, offload_cache: bool):
    middle = {"share": Share(first=1, end=5), "source": RANDOM.format(layers=6), "dtype": dtype}
    resident, _ = runners._loaded(spec(**middle, block=block), torch.device("cpu"))  # cut in the same parts
    offloaded, _ = built(spec(**middle, overlap=overlap, block=block, offload_cache=offload_cache))
    starts = [0] * len(PROMPTS)
    for number, tokens in enumerate((5, 1, 3)):
        rows = tuple(
            Row(slot, starts[slot], max(1, tokens - slot), emit=False) for slot in range(len(PROMPTS))
        )
        generator = torch.Generator().manual_seed(number)
        hidden = torch.randn(len(rows), tokens, 64, generator=generator).to(getattr(torch, dtype))
        job = Job(number, 0, rows)
        assert torch.equal(resident.run(job, hidden), offloaded.run(job, hidden))
        starts = [row.start + row.count for row in rows]
    resident.close()
    offloaded.close()


def test_the_device_holds_two_layers_and_the_ends(tmp_path: Path):
    runner, everything = built(spec(5))
    runner.close()
    for overlap, rooms in (("none", 1), ("single", 2), ("multi", 2)):
        runner, loaded = built(spec(5, overlap=overlap))
        runner.close()
        layer = loaded.host_weight_bytes // 5
        assert everything.weight_bytes - loaded.weight_bytes == (5 - rooms) * layer
    runner, loaded = built(spec(5, overlap="single", overlap_from="disk", overlap_folder=str(tmp_path)))
    assert (loaded.host_weight_bytes, loaded.disk_weight_bytes) == (0, 5 * layer)
    assert not list(tmp_path.iterdir())  # it has no name: nothing stays behind, however the process ends
    runner.close()


def test_the_cache_on_the_device_is_three_parts():
    runner, loaded = built(spec(5, overlap="multi", block=3, offload_cache=True))
    runner.close()
    row = 2 * 2 * 16 * 4  # keys and values, heads, dimension, float32
    rows = 2  # five in three parts
    assert loaded.cache_bytes == 3 * rows * (CONTEXT_TOKENS + 1) * row
    assert loaded.host_cache_bytes == 5 * len(PROMPTS) * CONTEXT_TOKENS * row


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"block": 2}, "block"),
        ({"block": 2, "overlap": "single"}, "block"),
        ({"offload_cache": True}, "offload_cache"),
        ({"overlap_from": "disk"}, "overlap_from"),
    ],
)
def test_what_makes_no_sense_together_is_refused(changes, param: str):
    with pytest.raises(ConfigError) as found:
        assemble(RANDOM.format(layers=2), Settings(**changes))
    assert found.value.param == param
    with pytest.raises(ConfigError):
        built(spec(2, **changes))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere") as found:
        built(spec(overlap="single", overlap_from="disk", overlap_folder=str(tmp_path / "nowhere")))
    assert found.value.param == "overlap_folder"


@pytest.fixture(params=["memory", "disk"])
def shelf(request, tmp_path: Path):
    made = MemoryShelf(pinned=False) if request.param == "memory" else DiskShelf(str(tmp_path), staged=False)
    yield made
    made.close()


def test_a_layer_of_another_shape_is_refused(shelf: Shelf):
    shelf.put({"a": torch.zeros(3, 4), "b": torch.zeros(5)})
    with pytest.raises(BackendError, match="same shape"):
        shelf.put({"a": torch.zeros(3, 4), "b": torch.zeros(6)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_packed_comes_back(shelf: Shelf, dtype: torch.dtype):
    layers = [{"a": torch.randn(3, 4).to(dtype), "b": torch.randn(5).to(dtype)} for _ in range(3)]
    for layer in layers:
        shelf.put(layer)
    assert shelf.layout is not None
    flat = shelf.layout.empty()
    for number in (2, 0, 1):
        InOrder().issue(Work("weights", "load", number, -1, 0), shelf.transfer(number, flat))
        views = shelf.layout.views(flat)
        assert all(torch.equal(views[name], layers[number][name]) for name in views)
        assert all(view.data_ptr() % 64 == flat.data_ptr() % 64 for view in views.values())


def test_weights_that_cannot_be_read_fail_the_job_and_no_later_one(monkeypatch, tmp_path: Path):
    runner, _ = built(spec(overlap="single", overlap_from="disk", overlap_folder=str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr("os.preadv", broken_after(2))
        with pytest.raises(BackendError, match="layer 2 could not be read"):
            jobs(runner, 1)
    assert told(runner) == resident_answers(5)
    runner.close()


@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_a_job_that_fails_among_the_layers_leaves_the_next_ones_right(overlap: str, block: int):
    runner, _ = built(spec(overlap=overlap, block=block, offload_cache=True))
    jobs(runner, 1)
    beyond = Job(1, 0, (Row(0, CONTEXT_TOKENS + 1, 1, True),), ())
    with pytest.raises((RuntimeError, IndexError)):
        runner.run(beyond, torch.tensor([[3]]))
    assert told(runner) == resident_answers(5)
    runner.close()


def answers_of(source: str, **options: object) -> list[list[int]]:
    """Answer prompts through a pipeline of two stages."""
    chosen = {"devices": ("cpu", "cpu"), "transport": "threads", "max_sequences": 6, "context_tokens": 64}
    pipeline = assemble(source, Settings(**{**chosen, **options})).start(lambda _token: False)
    answers: dict[int, list[int]] = {number: [] for number in range(len(PROMPTS))}
    try:
        for number, prompt in enumerate(PROMPTS):
            pipeline.head.start(number, prompt, Sampling(), 4)
        while (events := pipeline.turn()) is not None:
            for event in events:
                answers[event.sequence] += event.tokens
    finally:
        pipeline.close()
    return list(answers.values())


def test_a_pipeline_of_stages_larger_than_their_devices(tmp_path: Path):
    source = RANDOM.format(layers=6)
    offloaded = {"overlap": "multi", "block": 2, "offload_cache": True}
    resident = answers_of(source)
    assert all(len(answer) == 4 for answer in resident)
    assert answers_of(source, **offloaded) == resident
    assert answers_of(source, **offloaded, overlap_from="disk", overlap_folder=str(tmp_path)) == resident


def test_a_real_model_from_disk(variant: Callable[[str, str], Variant], tmp_path: Path):
    source = str(variant("smollm2-135m-instruct", "q4_1").path)
    multi = {"overlap": "multi", "block": 3, "offload_cache": True}
    disk = {"overlap_from": "disk", "overlap_folder": str(tmp_path)}
    assert answers_of(source, **multi, **disk) == answers_of(source)
