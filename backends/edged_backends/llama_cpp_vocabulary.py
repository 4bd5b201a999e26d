"""The tokenizer that a GGUF file carries."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

from edged.errors import BackendError
from edged_backends.llama_cpp_runtime import runtime

_PIECE_BYTES = 256
_NO_ADDED = False
"""`add_special` of `llama_tokenize`: no beginning or end token of its own."""
_NO_CONTROL = False
"""`special` of `llama_token_to_piece`: control tokens have no text."""


class LlamaVocabulary:
    """Text to ids and back, through llama.cpp."""

    def __init__(self, model: Any) -> None:
        self._handle: Any = runtime.llama_model_get_vocab(model)
        self._pieces: dict[int, bytes] = {}
        self.size = int(runtime.llama_vocab_n_tokens(self._handle))
        self.chat_template = (runtime.llama_model_chat_template(model, None) or b"").decode(
            "utf-8", "replace"
        )
        self.beginning = self._text_of(runtime.llama_vocab_bos(self._handle))
        self.end = self._text_of(runtime.llama_vocab_eos(self._handle))

    def encode(self, text: str, /, *, special: bool) -> list[int]:
        """Tokenise; `special` says whether control tokens written in the text are recognised."""
        data = text.encode("utf-8", "replace")
        tokenize = partial(runtime.llama_tokenize, self._handle, data, len(data))
        buffer = (runtime.llama_token * (len(data) + 1))()
        count = int(tokenize(buffer, len(buffer), _NO_ADDED, special))
        if count < 0:
            buffer = (runtime.llama_token * -count)()
            count = int(tokenize(buffer, len(buffer), _NO_ADDED, special))
        if count < 0:
            raise BackendError(f"llama.cpp cannot tokenise a text of {len(data)} bytes")
        return list(buffer[:count])

    def decode(self, tokens: Sequence[int], /) -> str:
        """Turn ids to text, control tokens left out; an incomplete UTF-8 tail becomes U+FFFD.

        Pieces are joined as they are, so that the text of a longer answer begins with that of a shorter.
        """
        return b"".join(map(self._piece, tokens)).decode("utf-8", "replace")

    def ends(self, token: int) -> bool:
        """Whether a token ends the generation."""
        return bool(runtime.llama_vocab_is_eog(self._handle, token))

    def check(self, tokens: Sequence[int]) -> None:
        """Raise `BackendError` for an id outside the vocabulary: the runtime would end the process."""
        stray = next((token for token in tokens if not 0 <= token < self.size), None)
        if stray is not None:
            raise BackendError(f"token {stray} is outside the vocabulary of {self.size} tokens")

    def _text_of(self, token: Any) -> str:
        if not 0 <= token < self.size:
            return ""
        return bytes(runtime.llama_vocab_get_text(self._handle, token)).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        if token not in self._pieces:
            self.check([token])
            self._pieces[token] = self._render(token, _PIECE_BYTES)
        return self._pieces[token]

    def _render(self, token: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        count = int(runtime.llama_token_to_piece(self._handle, token, buffer, size, 0, _NO_CONTROL))
        return buffer.raw[:count] if count >= 0 else self._render(token, -count)
