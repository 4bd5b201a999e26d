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
    number = 0
    while number < len(lines):
        if _is_head(lines, number):
            end = _end_of_table(lines, number + 2)
            rows = [_cells(line) for line in lines[number + 2 : end] if not _RULE.fullmatch(line)]
            yield from _sentences(_cells(lines[number]), rows)
            number = end
        else:
            yield lines[number]
            number += 1


def _is_head(lines: list[str], number: int) -> bool:
    """Whether a line has columns and a rule under them."""
    return number + 1 < len(lines) and "|" in lines[number] and bool(_RULE.fullmatch(lines[number + 1]))


def _end_of_table(lines: list[str], number: int) -> int:
    """The first line from `number` on that is neither a row nor a rule, or is the head of the next table."""
    while number < len(lines) and not _is_head(lines, number):
        if "|" not in lines[number] and not _RULE.fullmatch(lines[number]):
            break
        number += 1
    return number


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _sentences(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    """One for each row; before them the heads that no row names."""
    named = {column for row in rows for column, cell in enumerate(row) if cell}
    left = [head for column, head in enumerate(heads) if head and column not in named]
    if left:
        yield "; ".join(left) + "."
    yield from (_sentence(heads, row) for row in rows if any(row))


def _sentence(heads: list[str], cells: list[str]) -> str:
    named = [f"{head}: {cell}" if head else cell for head, cell in zip(heads, cells, strict=False) if cell]
    return "; ".join([*named, *filter(None, cells[len(heads) :])]) + "."
