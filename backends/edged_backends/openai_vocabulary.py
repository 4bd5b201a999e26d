"""Text as numbers for the seam, and back: what a server is asked in words crosses the seam as tokens.

The server has a tokenizer and a chat format of its own, which nobody here knows. So a token here is a piece
of text that spells itself: its bytes are in its number, and any worker can read what another's answer said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from edged.errors import BackendError

ROLES = ("system", "user", "assistant")
CONTROL = tuple(f"<|edged:{name}|>" for name in (*ROLES, "end"))
_ASSISTANT, _END = 2, 3
_SPLIT = re.compile("(" + "|".join(map(re.escape, CONTROL)) + ")")
_PIECE, _MORE, _LENGTH = 1 << 62, 1 << 61, 56
"""A piece is its bytes, their number from bit `_LENGTH` on, and `_PIECE`: no tokenizer's ids reach that far.
`_MORE` says that it belongs to the piece before: the server said both at once, as one token."""
PROMPT_PIECE_BYTES = 4
"""About the bytes of an English token: the estimate by which passages are fitted to the context."""
ANSWER_PIECE_BYTES = 7
"""As many as fit a 64-bit number: what a server sends at once is mostly one of its tokens, and one here."""

_MARKERS = re.compile(
    r"<(?=[|\uff5c][^<>]{1,64}[|\uff5c]>|/?s>|(?:start|end)_of_turn>|/?think>)|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\])"
)
_BREAK = "\u2060"


class PieceVocabulary:
    """Pieces of text as tokens, and control tokens that say who speaks."""

    chat_template = (
        "{% for message in messages %}<|edged:{{ message['role'] }}|>{{ message['content'] }}<|edged:end|>"
        "{% endfor %}{% if add_generation_prompt %}<|edged:assistant|>{% endif %}"
    )
    beginning = ""
    end = CONTROL[_END]

    def encode(self, text: str, /, *, special: bool) -> list[int]:
        """Cut a text into pieces; `special` says whether control tokens written in it are recognised."""
        parts = _SPLIT.split(text) if special else [text]
        return [token for part in parts for token in _tokens(part, special=special)]

    def decode(self, tokens: Sequence[int], /) -> str:
        """Turn ids to text, control tokens left out; an incomplete UTF-8 tail becomes U+FFFD."""
        return b"".join(_bytes(token) for token in tokens).decode("utf-8", "replace")


class Asked(msgspec.Struct, frozen=True):
    """A prompt as a server takes it: a conversation, or, without turns, a text to go on with."""

    turns: tuple[tuple[str, str], ...] = ()
    """Role and content of each."""
    text: str = ""
    """What the answer already says, or the whole prompt when there are no turns."""
    known: int = 0
    """Tokens of what the answer already says."""
    spent: int = 0
    """Of the server's own tokens that was: see `said_at_once`."""


def answer_tokens(text: str, *, inside: bool = False) -> list[int]:
    """The ids of what a server said at once: a token and the rest of it, or, `inside` one, the rest alone."""
    return [*_pieces(text, ANSWER_PIECE_BYTES, _MORE if inside else 0, _MORE)]


def said_at_once(tokens: Sequence[int]) -> int:
    """How many tokens of its own the server is likely to have spent on a part of an answer."""
    return sum(not token & _MORE for token in tokens)


def asked(tokens: Sequence[int]) -> Asked:
    """Read a prompt back. `BackendError` when it is not one of this vocabulary."""
    vocabulary = PieceVocabulary()
    openers = [place for place, token in enumerate(tokens) if 0 <= token < _END]
    if not openers:
        return Asked(text=unmarked(vocabulary.decode(tokens)))
    if openers[0] or tokens[openers[-1]] != _ASSISTANT:
        raise BackendError("a prompt for the backend openai begins with a turn and ends with the assistant's")
    turns = [
        (ROLES[tokens[start]], unmarked(vocabulary.decode(tokens[start + 1 : stop])))
        for start, stop in pairwise(openers)
    ]
    said = tokens[openers[-1] + 1 :]
    return Asked(tuple(turns), vocabulary.decode(said), len(said), said_at_once(said))


def unmarked(text: str) -> str:
    """Break what the usual chat formats use as control tokens: servers recognise them wherever they stand.

    >>> unmarked("a <|im_end|> b") == "a <" + chr(0x2060) + "|im_end|> b"
    True
    """
    return _MARKERS.sub(lambda found: found[0] + _BREAK, text)


def _tokens(part: str, *, special: bool) -> Iterator[int]:
    if special and part in CONTROL:
        yield CONTROL.index(part)
    else:
        yield from _pieces(part, PROMPT_PIECE_BYTES)


def _pieces(text: str, size: int, first: int = 0, other: int = 0) -> Iterator[int]:
    data = text.encode("utf-8", "replace")
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        mark = _PIECE | (other if start else first)
        yield mark | len(piece) << _LENGTH | int.from_bytes(piece, "big")


def _bytes(token: int) -> bytes:
    """A token's bytes, none for control tokens; `BackendError` for what this vocabulary does not have."""
    if 0 <= token <= _END:
        return b""
    length = token >> _LENGTH & 7
    value = token & (1 << _LENGTH) - 1
    if token >> 62 != 1 or not length or value >> 8 * length:
        raise BackendError(f"token {token} is not one of the backend openai; another backend's answer?")
    return value.to_bytes(length, "big")
