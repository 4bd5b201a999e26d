"""Variants made on this machine: the same bytes every time, and close to what they are made from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from edged.backend import Variant
from edged.errors import ModelError
from edged.models.derive import derive

Give = Callable[[str, str], Variant]

HIDDEN, INNER, LAYERS, WORDS, POSITIONS = 8, 16, 2, 20, 12
SENTENCES = [
    "The gateway reboots when the supply voltage drops below nine volts.",
    "Press the reset button for ten seconds to restore factory settings.",
    "What is the capital of France?",
    "MQTT",
]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A two-layer encoder with random weights."""
    random = np.random.default_rng(7)

    def weight(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": weight(WORDS, HIDDEN),
        "embeddings.position_embeddings.weight": weight(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": weight(2, HIDDEN),
        "embeddings.LayerNorm.weight": weight(HIDDEN),
        "embeddings.LayerNorm.bias": weight(HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        linear = {f"attention.self.{name}": (HIDDEN, HIDDEN) for name in ("query", "key", "value")}
        linear |= {"attention.output.dense": (HIDDEN, HIDDEN)}
        linear |= {"intermediate.dense": (INNER, HIDDEN), "output.dense": (HIDDEN, INNER)}
        for name, shape in linear.items():
            tensors[f"{prefix}.{name}.weight"] = weight(*shape)
            tensors[f"{prefix}.{name}.bias"] = weight(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors[f"{prefix}.{name}.weight"] = weight(HIDDEN)
            tensors[f"{prefix}.{name}.bias"] = weight(HIDDEN)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(path: Path, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return np.asarray(session.run(None, feeds)[0])


def embed(path: Path, tokenizer: Path) -> NDArray[np.float32]:
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.enable_truncation(64)
    encoder.enable_padding()
    encodings = encoder.encode_batch(SENTENCES)
    mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
    states = run(path, np.array([encoding.ids for encoding in encodings], np.int64), mask)
    means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float((left * right).sum(1).min())


@pytest.fixture
def exported(bert: Path, tmp_path: Path) -> Path:
    derive("onnx_export_bert", bert, tmp_path / "one.onnx", {"heads": 2, "epsilon": 1e-12})
    return tmp_path / "one.onnx"


def test_an_export_twice_gives_the_same_bytes(bert: Path, exported: Path, tmp_path: Path) -> None:
    derive("onnx_export_bert", bert, tmp_path / "two.onnx", {"heads": 2, "epsilon": 1e-12})
    assert exported.read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_quantising_twice_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        derive("onnx_int8_dynamic", exported, tmp_path / name, {"keep": ["*.0.output.dense.weight"]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_padding_changes_nothing(exported: Path) -> None:
    ids = np.array([[3, 1, 4, 1]], np.int64)
    padded = np.concatenate([ids, np.full((1, 3), 9, np.int64)], axis=1)
    mask = np.array([[1, 1, 1, 1, 0, 0, 0]], np.int64)
    plain = run(exported, ids, np.ones_like(ids))
    np.testing.assert_allclose(run(exported, padded, mask)[:, :4], plain, atol=1e-5)


def test_an_item_of_padding_alone_is_finite(exported: Path) -> None:
    ids = np.array([[3, 1], [0, 0]], np.int64)
    assert np.isfinite(run(exported, ids, np.array([[1, 1], [0, 0]], np.int64))).all()


def test_the_export_of_real_weights_agrees_with_the_packaged_int8(variant: Give) -> None:
    whole, packaged = (variant("all-minilm-l6-v2", name) for name in ("fp32-export", "int8"))
    assert whole.tokenizer
    assert cosine(embed(whole.path, whole.tokenizer), embed(packaged.path, whole.tokenizer)) > 0.998


@pytest.mark.skipif(not shutil.which("npm"), reason="the reference is an npm package and npm is missing")
def test_the_export_of_real_weights_is_the_packaged_fp32(variant: Give) -> None:
    exported, packaged = (variant("all-minilm-l6-v2", name) for name in ("fp32-export", "fp32"))
    assert exported.tokenizer
    ours, theirs = (embed(which.path, exported.tokenizer) for which in (exported, packaged))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_dynamic_int8_stays_close(variant: Give) -> None:
    quantised, whole = (variant("all-minilm-l6-v2", name) for name in ("int8-dynamic", "fp32-export"))
    assert quantised.tokenizer
    assert cosine(embed(quantised.path, quantised.tokenizer), embed(whole.path, quantised.tokenizer)) > 0.985


def test_requantising_twice_gives_the_same_bytes(variant: Give, tmp_path: Path) -> None:
    base = variant("smollm2-135m-instruct", "q4_1").path
    for name in ("a", "b"):
        derive("gguf_requantise", base, tmp_path / name, {"type": "Q4_0"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < base.stat().st_size


def test_a_derivation_that_fails_says_why(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown file type 'Q9'"):
        derive("gguf_requantise", exported, tmp_path / "x", {"type": "Q9"})
    with pytest.raises(ModelError, match=r"onnx_export_bert failed"):
        derive("onnx_export_bert", exported, tmp_path / "x", {"heads": 2, "epsilon": 1e-12})
    assert not (tmp_path / "x").exists()
