"""The bytes that each token stands for."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

_BYTE = re.compile(r"<0x([0-9A-F]{2})>\Z")
_SPACE = "\u2581"
"""How sentencepiece writes a space."""


class Parts(NamedTuple):
    """What a vocabulary is made of."""

    pieces: list[bytes]
    """By id; control tokens are empty."""
    ends: frozenset[int]
    """Tokens that end a generation."""
    chat_template: str
    beginning: str
    end: str


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable bytes stand for themselves, the others for the characters from U+0100 on, in order:
    https://github.com/openai/gpt-2/blob/master/src/encoder.py, `bytes_to_unicode`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def byte_level_piece(token: str) -> bytes:
    """Bytes of a token of a byte-level vocabulary.

    >>> byte_level_piece("Ġcaf")
    b' caf'
    """
    alphabet = byte_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def sentencepiece_piece(token: str) -> bytes:
    r"""Bytes of a token of a sentencepiece vocabulary.

    >>> sentencepiece_piece("\u2581caf"), sentencepiece_piece("<0xC3>")
    (b' caf', b'\xc3')
    """
    found = _BYTE.match(token)
    return bytes([int(found[1], 16)]) if found else token.replace(_SPACE, " ").encode()
