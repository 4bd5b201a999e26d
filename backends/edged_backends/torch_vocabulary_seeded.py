"""A vocabulary for weights that were drawn at random: they know no language, but tools want text."""

from __future__ import annotations

from edged_backends.torch_vocabulary_pieces import Parts

_END = 0
_OFFSET = 1
"""Id of byte 0."""


class ByteEncoder:
    """A token a byte; with fewer tokens than bytes, several bytes share one."""

    def __init__(self, size: int) -> None:
        self._bytes = min(256, size - _OFFSET)

    def encode(self, text: str, *, special: bool) -> list[int]:  # noqa: ARG002 - text holds no control tokens
        """Tokenise."""
        return [_OFFSET + byte % self._bytes for byte in text.encode()]


def seeded_parts(size: int) -> Parts:
    """Token 0 ends; then the bytes; what is left reads as its number."""
    bytes_of = [bytes([byte]) for byte in range(min(256, size - _OFFSET))]
    numbers = [f" {number}".encode() for number in range(_OFFSET + len(bytes_of), size)]
    return Parts(
        pieces=[b"", *bytes_of, *numbers], ends=frozenset((_END,)), chat_template="", beginning="", end=""
    )
