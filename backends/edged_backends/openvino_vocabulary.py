"""The tokenizer inside a GGUF file, as OpenVINO GenAI reads it (byte-level BPE only)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from edged.errors import BackendError
from edged_backends.openvino_devices import ERRORS, translated

_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "</s>")
"""Control tokens that end an answer, by the names that the common chat formats give them."""


class OpenvinoVocabulary:
    """A `Vocabulary` over GenAI's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, bytes] = {token: piece for piece, token in tokenizer.get_vocab().items()}
        controls = self._control_tokens()
        self._controls = frozenset(controls.values())
        longest_first = sorted(controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.stops = frozenset(controls[end] for end in _ENDS if end in controls) | {
            tokenizer.get_eos_token_id()
        }
        self.chat_template: str = tokenizer.get_original_chat_template()
        self.beginning: str = tokenizer.get_bos_token()
        self.end: str = tokenizer.get_eos_token()

    def encode(self, text: str, /, *, special: bool) -> list[int]:
        """Tokenise; see `Vocabulary.encode`.

        GenAI always recognises control tokens. To keep them plain text, the text is cut inside each of
        them, after its first character, and the parts are tokenised one by one. GenAI gives a byte that the
        vocabulary lacks as a control token: such a byte is left out.
        """
        if special:
            return self._encode(text)
        cuts = [0, *(match.start() + 1 for match in self._control.finditer(text)), len(text)]
        tokens = (token for first, last in pairwise(cuts) for token in self._encode(text[first:last]))
        return [token for token in tokens if token not in self._controls]

    def decode(self, tokens: Sequence[int], /) -> str:
        """Turn ids to text, control tokens left out; see `Vocabulary.decode`."""
        try:
            pieces = [self._pieces[token] for token in tokens if token not in self._controls]
        except KeyError as error:
            raise BackendError(f"the vocabulary has no token {error}") from error
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).input_ids.data
        except ERRORS as error:
            raise translated(error, "openvino cannot tokenise the text") from error
        return [int(token) for token in ids[0]]

    def _control_tokens(self) -> dict[str, int]:
        """Return the tokens that decoding leaves out on request, by their text."""
        ids = sorted(self._pieces)
        batch = [[token] for token in ids]
        shown = self._tokenizer.decode(batch, skip_special_tokens=False)
        left = self._tokenizer.decode(batch, skip_special_tokens=True)
        return {text: token for token, text, rest in zip(ids, shown, left, strict=True) if text and not rest}
