"""A stage is a layer pipeline where somebody says so, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edged.backend import Device, Variant
from edged.catalogue import Catalogue
from edged.cli.checks import unused
from edged.config import Config, Stage
from edged.layers.assembly import Settings
from edged.models import ModelStore
from edged.placement import survey
from edged.placement.defaults import first_present, place
from edged.placement.fallback import places
from edged.placement.forms import Box, Present, Runtime, candidates
from edged.placement.overrides import LAYERED, overridden
from edged.report import Override

MODEL = "smollm2-135m-instruct"
PIPELINE = "torch_pipeline"
OPTIONS = {"devices": ["cuda:0", "cuda:1"], "mode": "flush", "context_tokens": 512, "max_tokens": 9}


@pytest.fixture
def store(variant: Callable[[str, str], Variant]) -> ModelStore:
    folder = variant(MODEL, "q4_1").path.parents[2]
    variant(MODEL, "q4_0")
    return ModelStore(folder, Catalogue.discover())


def generator(**changes: object) -> Stage:
    return msgspec.structs.replace(Stage(kind="generator", model=MODEL, variant="q4_1"), **changes)


def runtime(name: str) -> Runtime:
    device = Device(id="cpu", kind="cpu", name="CPU", backend=name)
    return Runtime(name=name, formats=("gguf",), devices=(device,))


def test_every_generator_in_gguf_can_be_one() -> None:
    rungs = [rung for model in Catalogue.discover().models.values() for rung in model.variants]
    assert all(PIPELINE in rung.backends for rung in rungs if rung.format == "gguf")


def test_the_default_is_another() -> None:
    assert first_present((PIPELINE, "openvino")) == "openvino"
    assert first_present((PIPELINE,)) == PIPELINE


def test_it_is_measured_only_where_it_is_configured(store: ModelStore) -> None:
    box = Box(
        runtimes=(runtime("openvino"), runtime(PIPELINE)), cores=4, library=Path(), cache_dir=Path("cache")
    )
    entry = Present(variant=store.resolve(MODEL, "q4_1"))
    left_open = candidates("generator", generator(), [entry], box)
    assert {candidate.form.backend for candidate in left_open} == {"openvino"}
    (only,) = candidates("generator", generator(backend=PIPELINE, options=OPTIONS), [entry], box)
    assert only.form.threads == 0  # it shares the cores out itself
    assert only.spec.options["devices"] == OPTIONS["devices"]


def test_its_runtime_is_loaded_only_where_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(name: str) -> object:
        asked.append(name)
        return type("Backend", (), {"formats": (), "devices": lambda _: []})()

    monkeypatch.setattr(survey.plugins, "load", load)
    survey.runtimes({"generator": generator()})
    assert "openvino" in asked
    assert not {PIPELINE, "simulated"} & set(asked)
    survey.runtimes({"generator": generator(backend=PIPELINE), "reranker": generator()})
    assert PIPELINE in asked


@pytest.mark.parametrize(
    ("devices", "device"), [(["cpu", "cpu:0"], "cpu"), (["cpu", "cuda:1", "cuda:0"], "cuda:1"), ([], "cpu")]
)
def test_it_is_lost_with_its_first_accelerator(store: ModelStore, devices: list[str], device: str) -> None:
    spec = place("g", generator(backend=PIPELINE, options={"devices": devices}), Config(), store)
    assert spec.device == device
    assert place("g", generator(backend=PIPELINE, device="cpu:1"), Config(), store).device == "cpu:1"


def test_a_part_that_is_stuck_is_named_before_the_worker_is_killed(store: ModelStore) -> None:
    spec = place("g", generator(backend=PIPELINE, timeout_s=20.0), Config(), store)
    assert spec.options["timeout_s"] == 15.0
    own = generator(backend=PIPELINE, timeout_s=20.0, options={"timeout_s": 3})
    assert place("g", own, Config(), store).options["timeout_s"] == 3


def test_where_its_accelerator_is_lost_another_backend_goes_on(store: ModelStore) -> None:
    stage = generator(backend=PIPELINE, options=OPTIONS)
    config = Config(stages={"generator": stage})
    home = place("generator", stage, config, store)
    away = places("generator", stage, home, config, None, store)[1]
    assert (away.backend, away.device) == ("openvino", "cpu")
    assert away.options.keys() - {"cache_dir"} == {"context_tokens", "max_tokens"}


def test_swaps_take_along_only_options_that_are_understood(store: ModelStore) -> None:
    stage = generator(backend="openvino", options={"exact": True, "threads": 2, "max_tokens": 9})
    now = place("generator", stage, Config(), store)
    there = overridden("generator", stage, Override(backend=PIPELINE), now, Config(), store)
    assert there.options == {"threads": 2, "max_tokens": 9, "timeout_s": 45.0}
    lighter = overridden("generator", stage, Override(variant="q4_0"), there, Config(), store)
    assert (lighter.backend, lighter.variant.name) == (PIPELINE, "q4_0")


def test_all_its_options_are_known() -> None:
    assert set(Settings.__struct_fields__) == LAYERED


@pytest.mark.parametrize(
    ("stage", "batch"),
    [
        ({"options": {"max_sequences": 16}}, 16),
        ({"options": {"max_sequences": 2}}, 2),
        ({"options": {"max_sequences": 16}, "max_batch": 4}, 4),
        ({"options": {}}, 8),
        ({"options": {"max_sequences": 5000}}, 8),
        ({"options": {"max_sequences": "many"}}, 8),
    ],
)
def test_room_in_the_cache_is_room_for_requests(store: ModelStore, stage: dict[str, object], batch: int):
    spec = place("generator", generator(backend=PIPELINE, **stage), Config(), store)
    assert spec.max_batch == batch, "a cache for more sequences than are ever let in lies idle"


def test_a_cache_for_more_sequences_than_are_let_in_is_warned_of():
    idle = generator(max_batch=8, options={"max_sequences": 16})
    (warning,) = unused(Config(stages={"generator": idle}))
    assert "stages.generator.options.max_sequences = 16" in warning
    assert "max_batch = 8" in warning
    for options, batch in (({"max_sequences": 16}, None), ({"max_sequences": 8}, 8), ({}, 8)):
        assert not list(unused(Config(stages={"g": generator(max_batch=batch, options=options)})))
