"""The tokenizer of a model that torch runs: from `tokenizer.json` beside it, or from its GGUF file.

Encoding is the library `tokenizers`; decoding joins the bytes of each token, as llama.cpp does, so that the
text of a longer answer begins with that of a shorter one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from edged.errors import BackendError
from edged.layers.weights.checkpoint import describe
from edged.layers.weights.random_checkpoint import PREFIX
from edged_backends.torch_vocabulary_folder import folder_parts
from edged_backends.torch_vocabulary_gguf import gguf_parts
from edged_backends.torch_vocabulary_pieces import Parts
from edged_backends.torch_vocabulary_seeded import ByteEncoder, seeded_parts


class Encoder(Protocol):
    """What turns text to ids."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Tokenise a text of whole characters."""
        ...


class TorchVocabulary:
    """Text to ids and back."""

    def __init__(self, encoder: Encoder, parts: Parts, size: int) -> None:
        self._encoder = encoder
        self._pieces = parts.pieces
        self._ends = parts.ends
        self.size = size
        self.chat_template = parts.chat_template
        self.beginning = parts.beginning
        self.end = parts.end

    def encode(self, text: str, /, *, special: bool) -> list[int]:
        """Tokenise; `special` says whether control tokens written in the text are recognised."""
        return self._encoder.encode(text.encode("utf-8", "replace").decode("utf-8"), special=special)

    def decode(self, tokens: Sequence[int], /) -> str:
        """Turn ids to text, control tokens left out; an incomplete UTF-8 tail becomes U+FFFD."""
        self.check(tokens)
        known = len(self._pieces)
        return b"".join(self._pieces[token] for token in tokens if token < known).decode("utf-8", "replace")

    def ends(self, token: int) -> bool:
        """Whether a token ends the generation."""
        return token in self._ends

    def check(self, tokens: Iterable[int]) -> None:
        """Raise `BackendError` for an id outside the vocabulary."""
        stray = next((token for token in tokens if not 0 <= token < self.size), None)
        if stray is not None:
            raise BackendError(f"token {stray} is outside the vocabulary of {self.size} tokens")


def read_vocabulary(source: Path | str) -> TorchVocabulary:
    """Read the vocabulary of a GGUF file, of a folder of safetensors, or make one for a `random:` model.

    Raises `ConfigError` when the model has none that edged can rebuild, `BackendError` for a damaged file.
    """
    size = describe(source).vocabulary
    if str(source).startswith(PREFIX):
        return TorchVocabulary(ByteEncoder(size), seeded_parts(size), size)
    path = Path(source)
    tokenizer, parts = gguf_parts(path) if path.suffix == ".gguf" else folder_parts(path)
    return TorchVocabulary(LibraryEncoder(tokenizer), parts, size)


class LibraryEncoder:
    """The library's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Tokenise, without tokens of the tokenizer's own before or behind."""
        self._tokenizer.encode_special_tokens = not special
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
