"""A stage reads its own tensors, whole and right, from GGUF, safetensors or a seed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import BackendError, ConfigError
from edged.layers.share import Share
from edged.layers.weights.checkpoint import describe, library_config, open_checkpoint, weights
from edged.layers.weights.gguf_checkpoint import llama3_factors
from edged.layers.weights.gguf_header import read_header
from edged.layers.weights.gguf_weights import library_order
from edged.layers.weights.tensor_names import wanted
from tests.unit.tiny_models import CLASSES, FAMILIES, SHAPE, as_gguf, interleaved, saved, tiny

WHOLE = Share(first=0, end=3, embedding=True, head=True)
SHARES = (Share(first=0, end=1, embedding=True), Share(first=1, end=2), Share(first=2, end=3, head=True))
IDS = [[3, 14, 15, 92, 65, 35], [1, 2, 3, 5, 8, 13]]
RANDOM = "random:llama:layers=4,hidden=64,heads=4,kv=2,intermediate=96,vocabulary=128"


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


def rebuilt(source: Any) -> Any:
    """The library's whole model with the settings and weights that edged reads."""
    family = CLASSES[describe(source).family]
    model = getattr(transformers, f"{family}ForCausalLM")(library_config(source)).eval()
    share = Share(first=0, end=describe(source).layers, embedding=True, head=True)
    model.load_state_dict(dict(weights(source, share, "float32")), strict=True)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llama_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_gguf(tiny("llama"), tmp_path_factory.mktemp("gguf") / "model.gguf")


# ------------------------------------------------------------------ the library is the reference


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_safetensors_give_the_logits_of_the_library(family: str, tied: bool, tmp_path: Path) -> None:
    folder = saved(tiny(family, tie_word_embeddings=tied), tmp_path)
    own = getattr(transformers, f"{CLASSES[family]}ForCausalLM").from_pretrained(folder).eval()
    assert torch.equal(logits(rebuilt(folder)), logits(own))
    assert describe(folder).tied is tied


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_gives_the_logits_of_the_model_it_was_made_of(family: str, tied: bool, tmp_path: Path) -> None:
    model = tiny(family, tie_word_embeddings=tied)
    path = as_gguf(model, tmp_path / "model.gguf")
    assert torch.allclose(logits(rebuilt(path)), logits(model), atol=1e-5)
    folder = saved(model, tmp_path / "folder")
    assert describe(path).family == family
    for field in ("layers", "hidden", "heads", "key_value_heads", "head_dimension", "vocabulary", "tied"):
        assert getattr(describe(path), field) == getattr(describe(folder), field), field


@pytest.mark.parametrize("scheme", ["linear", "llama3", "yarn"])
def test_scaled_positions_are_those_of_the_library(scheme: str, tmp_path: Path) -> None:
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    rope = {"rope_type": scheme, "rope_theta": 5000.0, "factor": 4.0, **(more if scheme != "linear" else {})}
    folder = saved(tiny("llama", rope_parameters=rope), tmp_path)
    own = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(logits(rebuilt(folder)), logits(own))
    assert not torch.equal(logits(own), logits(tiny("llama")))


def test_the_older_spelling_of_position_settings_is_read(llama: Path, tmp_path: Path) -> None:
    folder = _edited(
        llama,
        tmp_path,
        rope_parameters=None,
        rope_theta=777.0,
        rope_scaling={"type": "linear", "factor": 2.0},
    )
    assert library_config(folder).rope_parameters == {
        "rope_type": "linear",
        "rope_theta": 777.0,
        "factor": 2.0,
    }


def test_llama3_scaling_is_found_in_a_gguf_file(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**SHAPE, "max_position_embeddings": 131072})
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    config.rope_parameters = {**rope, "original_max_position_embeddings": 8192}
    config.head_dim = 64
    rotary = importlib.import_module("transformers.models.llama.modeling_llama").LlamaRotaryEmbedding(config)
    plain = 500000.0 ** -(torch.arange(0, 64, 2).float() / 64)
    assert np.allclose(llama3_factors(500000.0, 32, 32.0), (plain / rotary.inv_freq).numpy(), rtol=1e-5)
    model = tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    factors = np.array(llama3_factors(500000.0, 4, 32.0), np.float32)
    path = _with_factors(model, tmp_path / "known.gguf", factors)
    assert library_config(path).rope_parameters == {**config.rope_parameters, "factor": 32.0}
    strange = _with_factors(model, tmp_path / "strange.gguf", factors * np.float32([1, 1, 1.5, 1]))
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight"):
        describe(strange)


def _with_factors(model: Any, path: Path, factors: Any) -> Path:
    return as_gguf(model, path, tensors={"rope_freqs.weight": factors})


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16", "F16"])
def test_quantised_matrices_are_what_the_package_makes_of_them(kind: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[kind]
    model = tiny("qwen3", intermediate_size=64)
    path = as_gguf(model, tmp_path / "model.gguf", kind)
    read = dict(weights(path, WHOLE, "float32"))
    for name, tensor in model.state_dict().items():
        packed = gguf.quants.quantize(tensor.numpy(), kind) if tensor.ndim > 1 else None
        expected = tensor.numpy() if packed is None else gguf.quants.dequantize(packed, kind)
        assert np.array_equal(read[name].numpy(), expected), name


# ------------------------------------------------------------------ by key range


@pytest.mark.parametrize("make", ["llama", "llama_gguf"])
def test_shares_together_are_the_model_with_layers_from_zero(
    make: str, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(make)
    whole = dict(weights(source, WHOLE, "float32"))
    for share in SHARES:
        part = dict(weights(source, share, "float32"))
        assert list(part) == [tensor.name for tensor in wanted(describe(source), share)]
        for tensor in wanted(describe(source), share):
            assert torch.equal(part[tensor.name], whole[tensor.stored])
    assert {name for name in dict(weights(source, SHARES[2], "float32")) if "layers.0" in name}
    total = describe(source).parameters_of(WHOLE)
    assert sum(tensor.numel() for tensor in whole.values()) == total


def test_a_stage_reads_no_other_file(tmp_path: Path) -> None:
    folder = saved(tiny("qwen3"), tmp_path, max_shard_size="20KB")
    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    mine = {tensor.stored for tensor in wanted(describe(folder), SHARES[1])}
    needed = {files[name] for name in mine}
    assert needed < set(files.values())
    for other in set(files.values()) - needed:
        (folder / other).write_bytes(b"spoiled")
    assert len(dict(weights(folder, SHARES[1], "bfloat16"))) == len(mine)
    with pytest.raises(BackendError, match="cannot read"):
        dict(weights(folder, WHOLE, "float32"))


def test_a_stage_opens_no_other_tensor(llama_gguf: Path) -> None:
    """Bytes of all other tensors are noise; what the stage reads does not change."""
    header = read_header(llama_gguf)
    expected = dict(weights(llama_gguf, SHARES[1], "float32"))
    data = bytearray(llama_gguf.read_bytes())
    for name, entry in header.tensors.items():
        if not name.startswith("blk.1."):
            data[entry.offset : entry.offset + 4 * entry.elements] = b"\xff" * (4 * entry.elements)
    spoiled = llama_gguf.with_name("spoiled.gguf")
    spoiled.write_bytes(data)
    for name, tensor in weights(spoiled, SHARES[1], "float32"):
        assert torch.equal(tensor, expected[name])


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    model = tiny("qwen2", tie_word_embeddings=True)
    for source in (saved(model, tmp_path), as_gguf(model, tmp_path / "model.gguf")):
        last = dict(weights(source, SHARES[2], "float32"))
        assert torch.equal(last["lm_head.weight"], model.get_input_embeddings().weight)
        assert "model.embed_tokens.weight" not in last
        whole = dict(weights(source, WHOLE, "float32"))
        assert whole["lm_head.weight"] is whole["model.embed_tokens.weight"]


def test_weights_come_in_the_type_asked_for(llama: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        assert {tensor.dtype for _, tensor in weights(llama, SHARES[2], dtype)} == {getattr(torch, dtype)}


def test_a_single_file_is_read_with_the_settings_beside_it(llama: Path) -> None:
    assert describe(llama / "model.safetensors") == describe(llama)
    assert torch.equal(logits(rebuilt(llama / "model.safetensors")), logits(rebuilt(llama)))


# ------------------------------------------------------------------ what is read


def test_describing_imports_no_runtime(llama: Path, llama_gguf: Path) -> None:
    code = (
        "import sys; from edged.layers.weights.checkpoint import describe\n"
        "for source in sys.argv[1:]: assert describe(source).layers in (3, 4)\n"
        "assert not {'torch', 'transformers', 'gguf', 'safetensors', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(llama), str(llama_gguf), RANDOM], check=True)


def test_a_window_caps_the_context(llama: Path, tmp_path: Path) -> None:
    folder = saved(tiny("mistral", sliding_window=100), tmp_path / "mistral")
    assert describe(folder).context_tokens == 100
    assert library_config(folder).sliding_window is None
    assert describe(saved(tiny("mistral", sliding_window=None), tmp_path / "none")).context_tokens == 256
    assert describe(_edited(llama, tmp_path / "llama", sliding_window=100)).context_tokens == 256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gemma2"}, "llama, qwen2, qwen3, mistral"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0, "rope_theta": 1e4}}, "low_freq_factor"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
    ],
)
def test_what_edged_does_not_compute_is_refused(
    change: dict[str, Any], said: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        describe(_edited(llama, tmp_path, **change))


def test_other_kinds_of_gguf_are_refused(tmp_path: Path) -> None:
    model = tiny("llama")
    refused = {
        "experts": {"add_expert_count": 8},
        "rotates 4 of 8": {"add_rope_dimension_count": 4},
        "yarn": {"add_rope_scaling_type": gguf.RopeScalingType.YARN},
    }
    for said, metadata in refused.items():
        with pytest.raises(ConfigError, match=said):
            describe(as_gguf(model, tmp_path / f"{said}.gguf", **metadata))


def test_there_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model at"):
        open_checkpoint(tmp_path / "missing.gguf")
    with pytest.raises(ConfigError, match=r"config\.json"):
        describe(tmp_path)
    (tmp_path / "model.bin").touch()
    with pytest.raises(ConfigError, match="neither"):
        open_checkpoint(tmp_path / "model.bin")


@pytest.mark.parametrize(("package", "make"), [("gguf", "llama_gguf"), ("safetensors", "llama")])
def test_a_missing_package_is_named_with_its_extra(
    package: str, make: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = request.getfixturevalue(make)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'edged\[pipeline\]'"):
        dict(weights(source, SHARES[1], "float32"))


# ------------------------------------------------------------------ damaged sources


def test_missing_misshapen_and_unknown_tensors_are_named(llama: Path, tmp_path: Path) -> None:
    whole = safetensors.torch.load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    spoiled = {
        f"no tensor {name}": {key: value for key, value in whole.items() if key != name},
        rf"{name} has shape \(3, 3\)": {**whole, name: torch.zeros(3, 3)},
        "q_proj.bias, which a layer of llama": {
            **whole,
            "model.layers.1.self_attn.q_proj.bias": torch.zeros(32),
        },
    }
    for said, tensors in spoiled.items():
        folder = _edited(llama, tmp_path / said[:8])
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        with pytest.raises(BackendError, match=said):
            dict(weights(folder, SHARES[1], "float32"))
        assert dict(weights(folder, SHARES[0], "float32")), "another stage is not concerned"


def test_an_index_names_files_beside_it_only(llama: Path, tmp_path: Path) -> None:
    folder = _edited(llama, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../a.safetensors"}})
    )
    with pytest.raises(BackendError, match="beside it"):
        dict(weights(folder, SHARES[0], "float32"))


def test_an_unknown_quantisation_is_named(llama_gguf: Path, tmp_path: Path) -> None:
    data = bytearray(llama_gguf.read_bytes())
    name = b"blk.1.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 16
    data[at : at + 4] = (4_000).to_bytes(4, "little")
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(BackendError, match=r"blk\.1\.ffn_up\.weight \(type 4000\)"):
        dict(weights(tmp_path / "model.gguf", SHARES[1], "float32"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_refused_or_read_never_anything_else(
    llama_gguf: Path, data: st.DataObject
) -> None:
    content = bytearray(llama_gguf.read_bytes())
    end = min(entry.offset for entry in read_header(llama_gguf).tensors.values())
    for at in data.draw(st.lists(st.integers(0, end - 1), max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    damaged = llama_gguf.with_name("damaged.gguf")
    damaged.write_bytes(content[: data.draw(st.integers(0, end) | st.just(len(content)))])
    try:
        dict(weights(damaged, SHARES[1], "float32"))
    except (BackendError, ConfigError) as error:
        assert "damaged.gguf" in str(error)  # noqa: PT017 - either way is right


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(1, 3))
def test_rows_come_back_to_the_librarys_order(heads: int, half: int, columns: int) -> None:
    rows = np.arange(heads * 2 * half * columns).reshape(-1, columns)
    assert np.array_equal(library_order(interleaved(rows, heads), heads), rows)


# ------------------------------------------------------------------ random


def test_random_tensors_are_the_same_whoever_asks() -> None:
    whole = dict(weights(RANDOM, Share(first=0, end=4, embedding=True, head=True), "float32"))
    for name, tensor in weights(RANDOM, Share(first=2, end=4, head=True), "float32"):
        number = name.replace("layers.0", "layers.2").replace("layers.1", "layers.3")
        assert torch.equal(tensor, whole[number])
    other = dict(weights(RANDOM + ",seed=2", Share(first=0, end=1), "float32"))
    assert not torch.equal(
        other["model.layers.0.mlp.up_proj.weight"], whole["model.layers.0.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_random_activations_stay_finite(family: str) -> None:
    source = f"random:{family}:layers=40,hidden=32,heads=4,kv=2,intermediate=64,vocabulary=128,tied=1"
    seen = logits(rebuilt(source))
    assert torch.isfinite(seen).all()
    assert 0.2 < float(seen.std()) < 5


def test_a_large_random_tensor_has_no_two_rows_alike() -> None:
    source = "random:llama:layers=1,hidden=1024,heads=8,intermediate=1024,vocabulary=2200"
    matrix = next(tensor for _, tensor in weights(source, Share(first=0, end=0, embedding=True), "float32"))
    assert len({bytes(row) for row in matrix.numpy().view(np.uint8)}) == len(matrix)


@pytest.mark.parametrize(
    "text", ["random:llama:layers=0", "random:llama:colour=1", "random:gemma:", "random:llama:layers"]
)
def test_a_text_that_spells_no_model_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="random"):
        describe(text)


def _edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy with other settings; None leaves a setting out."""
    target.mkdir(parents=True, exist_ok=True)
    stated = {**json.loads((source / "config.json").read_text()), **changes}
    (target / "config.json").write_text(
        json.dumps({key: value for key, value in stated.items() if value is not None})
    )
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return target
