"""Measured costs are held against what is planned with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edged.cli.root import edgectl
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


def test_the_command_warns_and_refuses(tmp_path: Path) -> None:
    file, model = tmp_path / "costs.json", tmp_path / "model"
    model.mkdir()
    file.write_bytes(msgspec.json.encode(COSTS))
    described = {
        "model_type": "llama",
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
    }

    def typed(*words: str) -> Result:
        (model / "config.json").write_text(json.dumps(described))
        asked = ["layers", "plan", "--model", str(model), "--devices", "cpu,cpu", "--costs", str(file)]
        return CliRunner().invoke(edgectl, [*asked, *words])

    assert typed("--micro-batch", "4").stderr == ""
    warned = typed()
    assert warned.exit_code == 0
    assert "warning: the costs were measured with micro_batch = 4, and 1 is planned" in warned.stderr
    assert "micro_batch = 4" in json.loads(typed("--json").stdout)["warnings"][0]
    described["intermediate_size"] = 256
    refused = typed("--micro-batch", "4")
    assert refused.exit_code == 78
    assert "the costs were measured for small" in refused.stderr
