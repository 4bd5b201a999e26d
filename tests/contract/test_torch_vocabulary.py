"""What the vocabulary of torch does, llama.cpp does; and beside safetensors, what `tokenizer.json` does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from edged_backends.llama_cpp_runtime import free_model, runtime
from edged_backends.llama_cpp_vocabulary import LlamaVocabulary
from edged_backends.torch_vocabulary import TorchVocabulary, read_vocabulary
from edged_backends.torch_vocabulary_gguf import gguf_parts
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edged.backend import Variant
from edged.errors import BackendError, ConfigError
from edged.testing.token_contract import TEXTS

TRICKY = (
    *TEXTS,
    "",
    " ",
    "  two leading",
    "Hello 1234 world, 3.14159 and ½ ² Ⅷ ٣",
    "<|im_start|>user\nhello<|im_end|>\n",
    "<s>what</s> <unk>",
    "don't we'LL they've\r\n\r\n\ttabs",
    "e\u0301 combining",
    "\u2581already\u2581there",
    "\x00\x01\x7f",
    "a byte without a token:\x1d:\U00040000:",
)
PARTS = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "</s>", "  ", "\n\n", "123", "'s", "日本", "😀", "\u0301"]
)
ANY_TEXT = st.lists(st.text(max_size=12) | PARTS, max_size=6).map("".join)


@pytest.fixture(scope="module")
def both(variant: Callable[[str, str], Variant]) -> Iterator[tuple[LlamaVocabulary, TorchVocabulary]]:
    yield from _pair(variant("smollm2-135m-instruct", "q4_1").path)


def _pair(path: Path) -> Iterator[tuple[LlamaVocabulary, TorchVocabulary]]:
    parameters = runtime.llama_model_default_params()
    parameters.vocab_only = True
    model = runtime.llama_model_load_from_file(os.fsencode(path), parameters)
    yield LlamaVocabulary(model), read_vocabulary(path)
    free_model(model)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("text", TRICKY)
def test_ids_are_those_of_llama_cpp(both: tuple[Any, Any], text: str, special: bool) -> None:
    llama, own = both
    assert own.encode(text, special=special) == llama.encode(text, special=special)


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT, special=st.booleans())
def test_ids_of_any_text_are_those_of_llama_cpp(both: tuple[Any, Any], text: str, special: bool) -> None:
    llama, own = both
    tokens = own.encode(text, special=special)
    assert tokens == llama.encode(text, special=special)
    assert own.decode(tokens) == llama.decode(tokens)


def test_every_token_reads_alike_and_ends_alike(both: tuple[Any, Any]) -> None:
    llama, own = both
    assert own.size == llama.size
    for token in range(own.size):
        assert own.decode([token]) == llama.decode([token])
        assert own.ends(token) == llama.ends(token)
    assert (own.chat_template, own.beginning, own.end) == (llama.chat_template, llama.beginning, llama.end)


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_a_text_without_control_tokens_comes_back(both: tuple[Any, Any], text: str) -> None:
    """SmolLM2 has no token for some control characters' bytes; llama.cpp loses them too."""
    own = both[1]
    known = {piece[0] for piece in own._pieces if len(piece) == 1}
    assume(set(text.encode()) <= known)
    assert own.decode(own.encode(text, special=False)) == text


@given(tokens=st.lists(st.integers(0, 49151), max_size=8), more=st.integers(0, 49151))
def test_a_longer_answer_begins_with_the_shorter(both: tuple[Any, Any], tokens: list[int], more: int) -> None:
    own = both[1]
    shorter = own.decode(tokens).rstrip("\ufffd")
    assert own.decode([*tokens, more]).startswith(shorter)


def test_a_lone_surrogate_is_replaced(both: tuple[Any, Any]) -> None:
    llama, own = both
    assert own.encode("a\ud800b", special=False) == llama.encode("a\ud800b", special=False)


def test_a_stray_token_is_refused(both: tuple[Any, Any]) -> None:
    for stray in (-1, 49152):
        with pytest.raises(BackendError, match="outside the vocabulary"):
            both[1].decode([stray])


# ------------------------------------------------------------------ sentencepiece, written for the test

PIECES = ["▁", "▁the", "t", "h", "e", "th", "▁t", "he", "ca", "fé", "c", "a", "f", "é", "▁ca", "▁café", "s"]


@pytest.fixture(scope="module", params=[True, False])
def pieces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("pieces") / "model.gguf"
    yield from _pair(_sentencepiece(path, space_first=request.param))


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from([*"the caféß☃ ", "</s>", "<s>", "<think>"]), max_size=12).map("".join))
@pytest.mark.parametrize("special", [False, True])
def test_sentencepiece_ids_are_those_of_llama_cpp(pieces: Any, text: str, special: bool) -> None:
    llama, own = pieces
    tokens = own.encode(text, special=special)
    assert tokens == llama.encode(text, special=special)
    assert own.decode(tokens) == llama.decode(tokens)


def _sentencepiece(path: Path, *, space_first: bool) -> Path:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<think>"]
    writer = _header(path)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(number) for number in range(len(PIECES))] + [0.0])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [4])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(space_first)
    return _written(writer, path, len(tokens))


def _header(path: Path) -> Any:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("head_count", 4),
    ):
        getattr(writer, f"add_{name}")(value)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    return writer


def _written(writer: Any, path: Path, tokens: int) -> Path:
    import numpy as np

    writer.add_tensor("token_embd.weight", np.zeros((tokens, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("model", "cut"), [("gpt2", "viking"), ("bert", "bert"), ("gpt2", "")])
def test_a_kind_that_cannot_be_rebuilt_is_refused(model: str, cut: str, tmp_path: Path) -> None:
    writer = _header(tmp_path / "model.gguf")
    writer.add_tokenizer_model(model)
    if cut:
        writer.add_tokenizer_pre(cut)
    writer.add_token_list(["a"])
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        gguf_parts(_written(writer, tmp_path / "model.gguf", 1))


def test_merges_of_tokens_that_are_not_there_are_refused(tmp_path: Path) -> None:
    writer = _header(tmp_path / "model.gguf")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a b"])
    with pytest.raises(BackendError, match="merges"):
        gguf_parts(_written(writer, tmp_path / "model.gguf", 2))


# ------------------------------------------------------------------ beside safetensors

SHAPE = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 400,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path / "config.json", SHAPE)
    _write(tmp_path / "generation_config.json", {"eos_token_id": [7]})
    template = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}
    _write(tmp_path / "tokenizer_config.json", settings)
    return tmp_path


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("text", TEXTS)
def test_a_folder_gives_the_ids_of_its_tokenizer(folder: Path, text: str) -> None:
    own = read_vocabulary(folder)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_truncation()
    tokens = own.encode(text, special=False)
    assert tokens == library.encode(text, add_special_tokens=False).ids
    assert own.decode(tokens) == library.decode(tokens) == text


def test_a_folder_says_how_answers_begin_and_end(folder: Path) -> None:
    own = read_vocabulary(folder)
    assert (own.beginning, own.end, own.chat_template, own.size) == ("<s>", "</s>", "D", 400)
    assert [token for token in range(own.size) if own.ends(token)] == [1, 7]
    (folder / "chat_template.jinja").write_text("J")
    assert read_vocabulary(folder).chat_template == "J"


def test_control_tokens_of_a_folder_are_found_when_asked_for(folder: Path) -> None:
    own = read_vocabulary(folder)
    assert own.encode("</s>", special=True) == [1]
    assert own.decode(own.encode("</s><think>", special=False)) == "</s><think>"
    assert own.decode([0, *own.encode("a<think>b", special=True), 1, 399]) == "a<think>b"


def test_a_folder_with_byte_fallback_reads_spaces(folder: Path) -> None:
    vocabulary = {token: number for number, token in enumerate(["<unk>", *PIECES])}
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("h", "e")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.save(str(folder / "tokenizer.json"))
    own = read_vocabulary(folder)
    assert own.decode(own.encode("the ☃", special=False)) == " the ☃"


def test_a_damaged_or_unknown_tokenizer_is_refused(folder: Path) -> None:
    unknown = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    for content in (b"{}", unknown.to_str().encode()):
        (folder / "tokenizer.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"tokenizer\.json"):
            read_vocabulary(folder)


# ------------------------------------------------------------------ beside nothing


@pytest.mark.parametrize("size", [8, 300])
def test_a_random_model_has_a_token_for_every_byte_and_text_for_every_token(size: int) -> None:
    own = read_vocabulary(f"random:llama:layers=1,vocabulary={size}")
    tokens = own.encode("naïve <s>", special=True)
    assert all(0 < token < size for token in tokens)
    assert own.ends(0)
    assert [token for token in range(size) if not own.decode([token])] == [0]
    if size > 256:
        assert own.decode(tokens) == "naïve <s>"
