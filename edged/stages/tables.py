"""Tables in words: a small model reads `LED: NET; meaning: searching`, and stumbles over columns."""

from __future__ import annotations

import re
from collections.abc import Iterator

_RULE = re.compile(r"\s*\|?\s*:?-{3,}:?\s*(\|\s*:?-{3,}:?\s*)*\|?\s*")


def spelled_out(text: str) -> str:
    r"""Rewrite the Markdown tables of a passage, a sentence per row; other lines stay as they are.

    >>> print(spelled_out("| LED | meaning |\n|---|---|\n| NET | searching |"))
    LED: NET; meaning: searching.
    """
    return "\n".join(_lines(text.split("\n")))


def _lines(lines: list[str]) -> Iterator[str]:
    heads: list[str] = []
    for number, line in enumerate(lines):
        if number + 1 < len(lines) and "|" in line and _RULE.fullmatch(lines[number + 1]):
            heads = _cells(line)
        elif heads and _RULE.fullmatch(line):
            continue
        elif heads and "|" in line:
            yield _sentence(heads, _cells(line))
        else:
            heads = []
            yield line


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _sentence(heads: list[str], cells: list[str]) -> str:
    named = [f"{head}: {cell}" if head else cell for head, cell in zip(heads, cells, strict=False) if cell]
    return "; ".join([*named, *cells[len(heads) :]]) + "."
