"""`edgectl layers plan`, as typed; the models are descriptions only."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from edged.backend import Variant
from edged.cli.root import edgectl
from edged.layers.planning.costs import Conditions, MeasuredCosts
from edged.layers.weights.checkpoint import describe

TINY = {
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
WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "safetensors", "gguf")))
from edged.cli.root import edgectl
edgectl(sys.argv[1:])
"""


def typed(*words: str) -> Result:
    return CliRunner().invoke(edgectl, ["layers", "plan", *words])


def as_json(*words: str) -> Any:
    found = typed(*words, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A folder that describes a model of six layers."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path)


@pytest.mark.parametrize(("layers", "stages", "sizes"), [(30, 4, [8, 8, 7, 7]), (10, 3, [4, 3, 3])])
def test_the_bare_partition(layers: int, stages: int, sizes: list[int]):
    found = as_json("--layers", str(layers), "--stages", str(stages))
    assert found["sizes"] == sizes
    ends = [(stage["share"]["embedding"], stage["share"]["head"]) for stage in found["stages"]]
    assert ends == [(True, False), *[(False, False)] * (stages - 2), (False, True)]
    assert found["tokens_per_s"] is None


def test_more_stages_than_layers_are_refused():
    found = typed("--layers", "3", "--stages", "4")
    assert found.exit_code == 78
    assert "error [config]: stages = 4" in found.stderr
    assert "take 1 to 3" in found.stderr


def test_a_table_for_people(tiny: str):
    found = typed("--model", tiny, "--devices", "cpu=4@1GiB,cuda:0=1@512MiB", "--requests", "1", "--even")
    assert found.exit_code == 0, found.output
    for expected in (
        "cuda:0",
        "embedding",
        "head",
        "bubble:",
        "256 bytes a token",
        "8 bytes of ids",
        "6 layers as float32 over 2 stages (even)",
        'for torch_pipeline: options = { devices = ["cpu", "cuda:0"], layers = [3, 3], mode = "ring", ',
        'for llama_cpp: options = { devices = ["cpu", "cuda:0"], layers = [3, 3], max_sequences = 2, ',
        "not speed",
    ):
        assert expected in found.stdout


def test_figures_follow_the_options(tiny: str):
    found = as_json(
        *("--model", tiny, "--devices", "cuda:0,cuda:1,cpu", "--micro-batch", "2", "--context-tokens", "256"),
        *("--tokens", "56", "--dtype", "bfloat16", "--mode", "flush", "--even"),
    )
    assert (found["mode"], found["kind"], found["micro_batches"]) == ("flush", "even", 3)
    assert found["decode_hop_bytes"] == 2 * 64 * 2
    assert found["prefill_hop_bytes"] == 200 * 2 * 64 * 2
    assert found["stages"][0]["cache_bytes"] == 2 * 6 * (2 * 256 * 2 * 16 * 2)
    assert found["requests"] == 6
    assert not found["measured"]


def test_measured_costs_decide(tiny: str, tmp_path: Path):
    costs = tmp_path / "costs.json"
    costs.write_text('{"layer_s": 0.001, "head_s": 0.004}')
    told = typed("--model", tiny, "--devices", "cpu,cpu", "--costs", str(costs))
    assert "warning: the costs do not say what they were measured for" in told.stderr
    found = as_json("--model", tiny, "--devices", "cpu,cpu", "--costs", str(costs))
    assert found["measured"]
    assert found["sizes"] == [5, 1]
    assert found["times_one_device"] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--stages", "2"], 2, "either --model"),
        (["--layers", "4"], 2, "either --stages"),
        (["--layers", "4", "--stages", "2", "--devices", "cpu"], 2, "either --stages"),
        (["--layers", "4", "--devices", "cpu=fast"], 2, "'cpu=fast' is no device"),
        (["--layers", "4", "--devices", "cpu=0"], 2, "'cpu=0' is no device"),
        (["--layers", "4", "--devices", "cpu,"], 2, "'' is no device"),
        (["--layers", "4", "--devices", ""], 2, "'' is no device"),
        (["--layers", "4", "--devices", "cuda:0@0GiB"], 2, "is no device"),
        (["--layers", "4", "--devices", "foo:7,cpu"], 2, "'foo:7' is the name of no device"),
        (["--layers", "4", "--devices", "cuda"], 2, "'cuda' is the name of no device"),
        (["--layers", "4", "--devices", "cpu:3-1"], 2, "'cpu:3-1' is the name of no device"),
        (["--layers", "99", "--devices", ",".join(["cpu"] * 65)], 2, "1 to 64"),
        (["--layers", "4", "--devices", "cpu@1GiB,cpu"], 2, "leave @SIZE out"),
        (["--layers", "4", "--stages", "2", "--even", "--weighted"], 2, "either --even or --weighted"),
        (["--layers", "1048576", "--stages", "2"], 2, "'--layers'"),
        (["--layers", "99", "--stages", "65"], 2, "'--stages'"),
        (["--layers", "1024", "--stages", "64", "--weighted"], 78, "too long to be weighed"),
        (["--layers", "4", "--stages", "2", "--micro-batch", "1024"], 78, "at most 1024"),
        (["--layers", "4", "--stages", "2", "--tokens", "4000"], 78, "tokens = 4000 leaves no room"),
        (["--layers", "4", "--stages", "2", "--mode", "seed", "--micro-batches", "3"], 78, "at most 2"),
        (["--model", "no-such-model", "--stages", "2"], 1, "no-such-model"),
        (["--model", "./absent.gguf", "--stages", "2"], 78, "absent.gguf"),
    ],
)
def test_what_is_refused(words: list[str], code: int, message: str):
    found = typed(*words)
    assert found.exit_code == code
    assert message in found.stderr


def test_options_repeat_the_plan(tiny: str):
    found = as_json(
        *("--model", tiny, "--devices", "cuda:0,cpu", "--micro-batches", "3", "--micro-batch", "2"),
        *("--context-tokens", "256", "--mode", "flush", "--even"),
    )
    assert found["options"] == {
        "torch_pipeline": {
            "devices": ["cuda:0", "cpu"],
            "layers": [3, 3],
            "mode": "flush",
            "micro_batches": 3,
            "max_sequences": 6,
            "context_tokens": 256,
            "dtype": "float32",
        }
    }
    assert "name it first" in found["not_possible"]["llama_cpp"]
    assert (found["model"], found["dtype"], found["context_tokens"]) == (tiny, "float32", 256)


def test_what_torch_cannot_use_is_not_offered_to_it(tiny: str):
    found = as_json("--model", tiny, "--devices", "igpu,cuda:0", "--even")
    assert list(found["options"]) == ["llama_cpp"]
    assert "igpu" in found["not_possible"]["torch_pipeline"]
    found = as_json("--model", tiny, "--devices", "cpu,tcp://10.0.0.2:7701", "--even")
    assert list(found["options"]) == ["torch_pipeline"]
    assert as_json("--model", tiny, "--stages", "2")["options"] == {}


@pytest.mark.parametrize(
    ("devices", "dtype"), [("cuda:0,cuda:1", "bfloat16"), ("cuda:0,cpu", "float32"), ("cpu,cpu", "float32")]
)
def test_weights_are_planned_as_the_engine_would_hold_them(tiny: str, devices: str, dtype: str):
    found = as_json("--model", tiny, "--devices", devices, "--even")
    assert found["dtype"] == dtype
    assert any(f"as {dtype}" in line for line in found["words"])
    explicit = as_json("--model", tiny, "--devices", devices, "--even", "--dtype", dtype)
    assert explicit["stages"] == found["stages"]
    assert as_json("--layers", "4", "--stages", "2")["dtype"] is None


def test_requests_without_a_place_are_told_to_wait(tiny: str):
    found = as_json("--model", tiny, "--devices", "cpu,cpu", "--requests", "4")
    assert (found["requests"], found["waiting"]) == (2, 2)
    assert any("of 4 at a time, 2 wait" in line for line in found["words"])


def test_one_is_one():
    assert typed("--layers", "30", "--devices", "cpu").stdout.startswith(
        "30 layers over 1 stage (weighted), mode ring, 1 micro-batch of 1, context of 2048 tokens\n"
    )


def test_a_context_beyond_the_models_is_refused(tiny: str):
    found = typed("--model", tiny, "--stages", "2", "--context-tokens", "1024")
    assert found.exit_code == 78
    assert "context_tokens = 1024 exceeds the model's 512" in found.stderr


def test_costs_that_are_none_are_refused(tiny: str, tmp_path: Path):
    costs = tmp_path / "costs.json"
    for text in (
        "{",
        '{"layer_s": 1, "head_s": 1, "layers": 2}',
        '{"layer_s": 0, "head_s": 1}',
        '{"layer_s": 1}',
    ):
        costs.write_text(text)
        found = typed("--model", tiny, "--stages", "2", "--costs", str(costs))
        assert found.exit_code == 1
        assert "holds no costs of layers" in found.stderr


def test_memory_that_is_missing_is_told_in_numbers(tiny: str):
    found = typed("--model", tiny, "--devices", "cuda:0@1MiB,cuda:1@1MiB", "--micro-batch", "8")
    assert found.exit_code == 78
    assert "MiB are missing" in found.stderr


def without_torch(words: Sequence[str]) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "layers", "plan", *words, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_planning_needs_no_torch(tiny: str, variant: Callable[[str, str], Variant]):
    assert without_torch(["--model", tiny, "--stages", "2"])["layers"] == 6
    gguf = str(variant("smollm2-135m-instruct", "q4_1").path)
    found = without_torch(["--model", gguf, "--stages", "4"])
    assert found["sizes"] == [8, 8, 7, 7]
    assert found["decode_hop_bytes"] == 2304


def test_an_error_of_a_command_that_prints_json_is_json():
    result = CliRunner().invoke(edgectl, ["layers", "plan", "--layers", "2", "--stages", "3", "--json"])
    assert (result.exit_code, result.stdout) == (78, "")
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["param"], error["retry_after_s"]) == ("config", "stages", None)
    assert "stages = 3" in error["message"]


def test_costs_measured_under_other_conditions_are_doubted_and_those_of_another_model_refused(tiny: str):
    under = Conditions(
        model="small",
        architecture=describe(tiny),
        device="cpu",
        dtype="float32",
        micro_batch=4,
        context_tokens=512,
    )
    file = Path(tiny) / "costs.json"
    file.write_bytes(msgspec.json.encode(MeasuredCosts(layer_s=0.001, head_s=0.004, conditions=under)))
    asked = ("--model", tiny, "--devices", "cpu,cpu", "--costs", str(file))
    assert typed(*asked, "--micro-batch", "4").stderr == ""
    warned = typed(*asked)
    assert warned.exit_code == 0
    assert "warning: the costs were measured with micro_batch = 4, and 1 is planned" in warned.stderr
    assert "micro_batch = 4" in as_json(*asked)["warnings"][0]
    (Path(tiny) / "config.json").write_text(json.dumps(TINY | {"intermediate_size": 256}))
    refused = typed(*asked, "--micro-batch", "4")
    assert refused.exit_code == 78
    assert "the costs were measured for small" in refused.stderr
