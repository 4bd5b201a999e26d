"""What a frugal stage does without, and how that joins what else is said of a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.backend import Variant
from edged.config import Stage
from edged.config.tables import Rung
from edged.governor.effects import effects, settings
from edged.governor.wishes import Wish, wishes
from edged.placement.frugal import frugal
from edged.workers.spec import StageSpec


def spec(backend: str = "openvino", device: str = "cpu", **options: Any) -> StageSpec:
    return StageSpec(
        name="generator",
        kind="generator",
        backend=backend,
        device=device,
        max_batch=8,
        variant=Variant(
            model="m", name="q4", task="generate", format="gguf", path=Path("m.gguf"), context_tokens=64
        ),
        options=options,
        library=Path("library"),
    )


def saved(placed: StageSpec, cores: int = 4, leased: int = 0, **configured: Any) -> dict[str, Any]:
    stage = Stage(kind="generator", model="m", options=configured)
    return frugal(placed, stage, cores, leased or cores)


@pytest.mark.parametrize(
    ("placed", "cores", "expected"),
    [
        (spec(), 4, {"threads": 2, "exact": False}),
        (spec(), 1, {"exact": False}),
        (spec(device="cpu:0,2-3"), 8, {"threads": 2, "exact": False}),
        (spec(threads=6), 8, {"threads": 3, "exact": False}),
        (spec(threads=1, exact=False), 8, {}),
        (spec("onnx"), 4, {"threads": 2}),
        (spec(device="igpu"), 4, {}),
        (spec("llama_cpp", "cuda:0", threads=8), 8, {}),
        (spec(threads="4"), 4, {"threads": 2, "exact": False}),
        (spec("torch_pipeline"), 4, {}),
    ],
)
def test_half_of_the_threads_and_no_exact_where_it_has_a_price(placed, cores, expected):
    assert saved(placed, cores) == expected


@pytest.mark.parametrize(
    ("placed", "expected"),
    [
        (spec("llama_cpp", exact=False), {"threads": 1}),
        (spec("llama_cpp", threads=6, exact=False), {"threads": 1}),
        (spec("llama_cpp", device="cpu:0-3", exact=False), {"threads": 1}),
        (spec(exact=False), {"threads": 4}),
        (spec(threads=6, exact=False), {"threads": 3}),
    ],
)
def test_an_engine_that_heeds_the_cores_of_its_lease_is_halved_from_those(placed, expected):
    assert saved(placed, 8, 2) == expected


def test_what_the_operator_has_asked_for_is_exact_all_the_same():
    assert saved(spec(exact=True), exact=True) == {"threads": 2}
    assert saved(spec(exact=True)) == {"threads": 2, "exact": False}, "a plan may have chosen it"


def test_wishes_of_a_rung_are_those_of_all_rungs_before_it():
    ladder = (
        Rung(name="full"),
        Rung(name="thrifty", frugal=("generator",)),
        Rung(name="light", variants={"reranker": "int8"}, frugal=("generator", "reranker")),
    )
    assert wishes(settings(ladder, 2)) == {
        "reranker": Wish("int8", frugal=True),
        "generator": Wish(frugal=True),
    }
    assert wishes(settings(ladder, 2, without={2})) == {"generator": Wish(frugal=True)}


def test_a_frugal_rung_is_taken_to_cost_less_and_to_be_worth_a_little_less():
    best, thrifty = effects((Rung(name="full"), Rung(name="thrifty", frugal=("generator",))))
    assert 0.6 < thrifty.cost / best.cost < 0.9
    assert 0.98 < thrifty.quality / best.quality < 1.0


def test_what_stages_other_than_generators_save_is_not_guessed():
    ladder = (Rung(name="full"), Rung(name="thrifty", frugal=("writer",)))
    best, thrifty = effects(ladder)
    assert (thrifty.cost, thrifty.quality) == (best.cost, best.quality)
    best, thrifty = effects(ladder, generators=("writer",))
    assert thrifty.cost < best.cost
