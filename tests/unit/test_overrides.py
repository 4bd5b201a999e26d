"""What stays when some of a stage is changed, and whether there is memory for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.backend import Variant
from edged.catalogue import Catalogue, Rung
from edged.config import BUILT_IN, Config, Stage
from edged.errors import BadRequest, ConfigError, NotFound
from edged.models.store import ModelStore
from edged.placement.overrides import expected_bytes, overridden
from edged.placement.room import MARGIN, Room
from edged.report import Override
from edged.workers.spec import StageSpec
from tests.conftest import MODELS

MODEL = "all-minilm-l6-v2"
CONFIG = msgspec.convert(BUILT_IN, Config)
STAGE = Stage(kind="retriever", model=MODEL)


@pytest.fixture
def store(variant) -> ModelStore:
    """The catalogue, with one variant that is for a single backend."""
    for name in ("int8", "fp32", "fp32-export"):
        variant(MODEL, name)
    known = Catalogue.discover()
    model = known.models[MODEL]
    rungs = tuple(_for_openvino(rung) if rung.name == "fp32-export" else rung for rung in model.variants)
    narrowed = msgspec.structs.replace(model, variants=rungs)
    return ModelStore(MODELS, Catalogue({**known.models, MODEL: narrowed}))


def _for_openvino(rung: Rung) -> Rung:
    sizes = {"openvino": rung.memory_bytes["openvino"]}
    return msgspec.structs.replace(rung, backends=("openvino",), memory_bytes=sizes)


def running(store: ModelStore, name: str = "int8", backend: str = "onnx", **more: object) -> StageSpec:
    spec = StageSpec(
        name="retriever",
        kind="retriever",
        backend=backend,
        device="cpu",
        max_batch=3,
        variant=store.resolve(MODEL, name),
        options={"threads": 2},
        library=Path("library"),
    )
    return msgspec.structs.replace(spec, **more)


def changed(store: ModelStore, now: StageSpec | None, stage: Stage = STAGE, **asked: Any) -> StageSpec:
    return overridden("retriever", stage, Override(**asked), now, CONFIG, store)


def form(spec: StageSpec) -> tuple[str, str, str]:
    return spec.variant.name, spec.backend, spec.device


def test_what_is_not_named_stays_as_it_is_now(store):
    spec = changed(store, running(store), variant="fp32")
    assert form(spec) == ("fp32", "onnx", "cpu")
    assert (spec.options, spec.max_batch) == ({"threads": 2}, 3)


def test_a_plans_threads_are_for_its_device_and_the_operators_for_any(store):
    assert changed(store, running(store), device="cpu:0").options == {}
    fixed = msgspec.structs.replace(STAGE, options={"threads": 2})
    assert changed(store, running(store), fixed, device="cpu:0").options == {"threads": 2}


def test_a_variant_that_the_backend_does_not_open_takes_one_that_does(store):
    assert form(changed(store, running(store), variant="fp32-export"))[1] == "openvino"


def test_another_backend_gets_only_those_options_that_it_shares(store):
    spec = changed(store, running(store), variant="fp32-export", options={"threads": 1, "exact": False})
    assert (spec.backend, spec.options["threads"], "exact" in spec.options) == ("openvino", 1, False)
    same = changed(store, running(store), variant="fp32", options={"threads": None})
    assert (same.backend, same.options) == ("onnx", {})


def test_a_backend_that_does_not_open_the_variant_takes_one_that_is_here(store):
    export = running(store, "fp32-export", "openvino")
    name, backend, _ = form(changed(store, export, backend="onnx"))
    assert backend == "onnx"
    assert name != "fp32-export"


def test_what_does_not_go_together_is_refused(store):
    with pytest.raises(BadRequest, match="fp32-export is not for backend 'onnx', but for: openvino"):
        changed(store, running(store), variant="fp32-export", backend="onnx")
    with pytest.raises(NotFound, match=r"no variant 'q9'; it has: .*int8"):
        changed(store, running(store), variant="q9")
    with pytest.raises(ConfigError, match=r"installed: .*onnx"):
        changed(store, running(store), backend="tpu")


def test_to_the_simulated_runtime_and_back(store):
    there = changed(store, running(store), backend="simulated", device="sim:cpu")
    assert form(there) == ("none", "simulated", "sim:cpu")
    back = changed(store, there, backend="onnx")
    assert (back.backend, back.device) == ("onnx", "cpu")


def test_a_stage_that_runs_nothing_is_placed_as_configured(store):
    assert form(changed(store, None, variant="int8"))[0] == "int8"


def test_the_manifest_says_what_a_worker_takes(store):
    variant = store.resolve(MODEL, "int8")
    assert expected_bytes(variant, "onnx", store) > variant.path.stat().st_size
    unknown = Variant(model="none", name="none", task="tensor", format="none", path=Path("/dev/null"))
    assert expected_bytes(unknown, "simulated", store) == 0


SIZES = st.integers(0, 1 << 40)


@given(needed=SIZES, freed=SIZES, available=SIZES, total=SIZES)
def test_a_verdict_keeps_the_margin_free(needed, freed, available, total):
    room = Room(needed_bytes=needed, freed_bytes=freed, available_bytes=available, total_bytes=total)
    left = available - MARGIN * total - needed
    match room.verdict:
        case "beside":
            assert left >= 0 or needed == 0
        case "alone":
            assert left < 0 <= left + freed
        case "none":
            assert left + freed < 0
