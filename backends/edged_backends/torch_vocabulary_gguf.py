"""Build the library's tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edged.errors import BackendError, ConfigError
from edged.layers.weights.gguf_header import read_header
from edged_backends.torch_vocabulary_pieces import (
    Parts,
    byte_alphabet,
    byte_level_piece,
    sentencepiece_piece,
)

_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
"""`tokenizer.ggml.token_type`; 1 is an ordinary token, 6 a byte."""
_ENDING = frozenset(
    ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "</s>", "<|fim_pad|>")
) | {"<|repo_name|>", "<|file_sep|>", "<reponame>"}
"""Control tokens that end a generation under llama.cpp even where the metadata names another end."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _WORDS + r"|\p{N}" + _REST
_LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _REST
_SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "llama-bpe": (_LLAMA3,),
    "tekken": (_TEKKEN,),
}
"""How a text is cut before its pieces are merged, by `tokenizer.ggml.pre`: the expressions of the
`tokenizer.json` of SmolLM2, Qwen2.5, Llama 3 and Mistral Nemo."""
_WHOLE_FIRST = ("llama3", "llama-v3", "llama-bpe", "tekken")
"""Vocabularies in which a piece that is a token is never merged from parts."""
_COMPOSED = ("qwen2", "deepseek-r1-qwen")
"""Vocabularies learnt on composed characters (NFC)."""


def gguf_parts(path: Path) -> tuple[Tokenizer, Parts]:
    """Read a file's vocabulary; `ConfigError` for a kind that edged cannot rebuild exactly."""
    metadata = read_header(path, _ARRAYS).metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    if not isinstance(tokens, list) or (kinds and len(kinds) != len(tokens)):
        raise BackendError(f"{path} has no vocabulary; pull or convert the model again")
    kinds = kinds or [1] * len(tokens)
    byte_level = _is_byte_level(metadata, path)
    tokenizer = _byte_level(metadata, tokens, path) if byte_level else _sentencepiece(metadata, tokens, path)
    _add(tokenizer, tokens, kinds)
    piece = byte_level_piece if byte_level else sentencepiece_piece
    parts = Parts(
        pieces=[_bytes_of(token, kind, piece) for token, kind in zip(tokens, kinds, strict=True)],
        ends=frozenset(_ends(metadata, tokens, kinds)),
        chat_template=str(metadata.get("tokenizer.chat_template") or ""),
        beginning=_named(metadata, tokens, "bos"),
        end=_named(metadata, tokens, "eos"),
    )
    return tokenizer, parts


def _is_byte_level(metadata: Mapping[str, Any], path: Path) -> bool:
    model, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model == "llama":
        return False
    if model == "gpt2" and cut in _SPLITS:
        return True
    raise ConfigError(
        f"{path} has a tokenizer of kind {model}/{cut}; known are llama and gpt2 with {', '.join(_SPLITS)}: "
        "take the model as a folder of safetensors with its tokenizer.json"
    )


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> Tokenizer:
    cut = metadata["tokenizer.ggml.pre"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = _stated_merges(metadata, vocabulary, path)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut in _WHOLE_FIRST))
    if cut in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in _SPLITS[cut]]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, level, *_gaps(vocabulary)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gaps(vocabulary: Mapping[str, int]) -> list[Any]:
    """A byte without a token is left out, as llama.cpp does: its neighbours are not merged over the gap."""
    missing = "".join(re.escape(character) for character in byte_alphabet() if character not in vocabulary)
    return [pre_tokenizers.Split(Regex(f"[{missing}]"), behavior="removed")] if missing else []


def _stated_merges(
    metadata: Mapping[str, Any], vocabulary: Mapping[str, int], path: Path
) -> list[tuple[str, str]]:
    """Read the merges; the library ends with a bare exception when they do not fit the vocabulary."""
    pairs = [merge.partition(" ") for merge in metadata.get("tokenizer.ggml.merges") or ()]
    if any(part not in vocabulary for left, _, right in pairs for part in (left, right, left + right)):
        raise BackendError(f"{path} merges tokens that it does not have; pull or convert the model again")
    return [(left, right) for left, _, right in pairs]


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    scores = metadata.get("tokenizer.ggml.scores") or []
    unknown = _named(metadata, tokens, "unknown")
    if len(scores) != len(tokens) or not unknown:
        raise BackendError(
            f"{path} has no scores, or no token for the unknown; pull or convert the model again"
        )
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges(vocabulary, scores),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "\u2581")
    first = metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), spaces] if first else [spaces]
    )
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to join two tokens to a third, best score of the third first."""
    ways = [
        (-scores[number], number, token[:cut], token[cut:])
        for token, number in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return [(left, right) for _, _, left, right in sorted(ways)]


def _add(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Control tokens are found in a text when asked for, those that users defined always."""
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        found = [token for token, held in zip(tokens, kinds, strict=True) if held == kind]
        added = [AddedToken(token, normalized=False, special=special) for token in found]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)


def _bytes_of(token: str, kind: int, piece: Any) -> bytes:
    if kind in (_UNKNOWN, _CONTROL, _UNUSED):
        return b""
    return token.encode() if kind == _USER_DEFINED else bytes(piece(token))


def _ends(metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> Iterable[int]:
    for name in ("eos", "eot", "eom"):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int):
            yield number
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _CONTROL and token in _ENDING:
            yield number


def _named(metadata: Mapping[str, Any], tokens: list[str], name: str) -> str:
    number = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else ""
