"""Weights of a real GGUF file, against the library's own reading of it and against llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from edged_backends.torch_vocabulary import read_vocabulary

from edged.backend import Variant
from edged.layers.share import Share
from edged.layers.weights.checkpoint import describe, library_config, weights
from edged.layers.weights.tensor_names import gguf_name, wanted

SHARES = (Share(first=0, end=2, embedding=True), Share(first=17, end=18), Share(first=29, end=30, head=True))


@pytest.fixture(scope="module")
def path(variant: Callable[[str, str], Variant]) -> Path:
    return variant("smollm2-135m-instruct", "q4_1").path


def test_a_real_file_is_described(path: Path) -> None:
    shape = describe(path)
    assert (shape.family, shape.layers, shape.hidden, shape.head_dimension) == ("llama", 30, 576, 64)
    assert (shape.heads, shape.key_value_heads, shape.vocabulary) == (9, 3, 49152)
    assert (shape.context_tokens, shape.tied, shape.rope_theta) == (8192, True, 100_000.0)


def test_tensors_are_those_that_the_library_reads(path: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    processor = TENSOR_PROCESSORS["llama"](config={"num_attention_heads": 9, "num_key_value_heads": 3})
    for share in SHARES:
        read = dict(weights(path, share, "float32"))
        for name, stored, _ in wanted(describe(path), share):
            source = held[gguf_name(stored)]
            values = gguf.quants.dequantize(source.data, source.tensor_type)
            expected = processor.process(weights=values, name=source.name).weights
            assert torch.equal(read[name], torch.from_numpy(expected.copy())), name


def test_the_whole_model_continues_as_it_should(path: Path) -> None:
    model: Any = transformers.LlamaForCausalLM(library_config(path)).eval()
    whole = Share(first=0, end=30, embedding=True, head=True)
    model.load_state_dict(dict(weights(path, whole, "float32")), strict=True)
    vocabulary = read_vocabulary(path)
    prompt = vocabulary.encode("The capital of France is", special=False)
    with torch.no_grad():
        token = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    assert vocabulary.decode([token]) == " Paris"
