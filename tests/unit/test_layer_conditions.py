"""Measured costs are held against what is planned with them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edged.errors import ConfigError
from edged.layers.planning.conditions import UNKNOWN, Planned, doubts
from edged.layers.planning.costs import Conditions, MeasuredCosts
from edged.layers.planning.partition import Candidate
from edged.layers.share import Architecture

SHAPE = Architecture(
    family="llama",
    layers=6,
    hidden=64,
    intermediate=128,
    heads=4,
    key_value_heads=2,
    head_dimension=16,
    vocabulary=1000,
    context_tokens=512,
    tied=True,
)
UNDER = Conditions(
    model="small", architecture=SHAPE, device="cpu", dtype="float32", micro_batch=4, context_tokens=512
)
COSTS = MeasuredCosts(layer_s=0.001, head_s=0.004, conditions=UNDER)
PLANNED = Planned(
    model="small",
    architecture=SHAPE,
    dtype="float32",
    micro_batch=4,
    context_tokens=512,
    candidates=(Candidate(id="cpu"), Candidate(id="cuda:0", speed=9)),
)


def doubted(**changes: Any) -> tuple[str, ...]:
    return doubts(COSTS, msgspec.structs.replace(PLANNED, **changes))


def test_costs_of_the_same_are_not_doubted() -> None:
    assert doubted() == ()
    assert doubted(candidates=()) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"micro_batch": 8}, "--micro-batch 8"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16"),
        ({"context_tokens": 256}, "--context-tokens 256"),
        ({"candidates": (Candidate(id="cuda:0"),)}, "write cuda:0=SPEED"),
        ({"candidates": (Candidate(id="cpu", speed=2),)}, "leave its speed out"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], said: str) -> None:
    (doubt,) = doubted(**changes)
    assert said in doubt


def test_costs_of_another_model_are_refused() -> None:
    other = msgspec.structs.replace(SHAPE, hidden=128)
    with pytest.raises(ConfigError, match=r"measured for small, .* than large") as refusal:
        doubted(architecture=other, model="large")
    assert refusal.value.param == "costs"


def test_costs_without_conditions_and_plans_without_a_model_are_doubted() -> None:
    assert doubts(MeasuredCosts(layer_s=1, head_s=1), PLANNED) == (UNKNOWN,)
    (doubt,) = doubted(architecture=None)
    assert "those of small" in doubt
