"""Cut a document into passages along its structure. Pure: tokens are counted by the caller's function."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, pairwise, zip_longest
from typing import Literal

import msgspec

Shape = Literal["heading", "paragraph", "lines"]
CountTokens = Callable[[Sequence[str]], Sequence[int]]

CHARACTERS_PER_TOKEN = 12
"""A token stands for at most so many characters: some tokenizers make one token of any long word."""
PREFIX_CHARACTERS = 200
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])|\n(?=\s*\n)")  # noqa: RUF001 - CJK full stops
_LINE_END = re.compile(r"(?<=\n)")


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A structural unit of a document: characters `start` to `end` of its text."""

    start: int
    end: int
    shape: Shape = "paragraph"
    """`lines` for lists, tables, code and logs, which break between lines; prose breaks between sentences."""
    heading: tuple[str, ...] = ()
    """The headings above it, outermost first; for a heading, itself included."""
    page: int = 0


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """A document as a reader understood it."""

    text: str
    blocks: tuple[Block, ...]
    title: str
    media_type: str
    has_lines: bool = True
    """Whether lines of `text` are lines of the source."""
    notes: tuple[str, ...] = ()


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A passage: a verbatim stretch of the document's text."""

    text: str
    heading: str
    first_line: int
    last_line: int
    page: int


class Atom(msgspec.Struct, frozen=True):
    """A sentence or a line: chunks break between atoms only."""

    start: int
    end: int
    cost: int


def context_line(title: str, heading: str) -> str:
    """What is embedded above a passage, so that it is found by what its section is about.

    >>> context_line("Router", "Reset > By button")
    'Router > Reset > By button'
    """
    return " > ".join(part for part in (title, heading) if part)[:PREFIX_CHARACTERS]


def embedded_text(title: str, heading: str, text: str) -> str:
    """The text that stands for a passage in vector space."""
    above = context_line(title, heading)
    return f"{above}\n{text}" if above else text


def chunk(
    document: Parsed,
    count_tokens: CountTokens,
    *,
    chunk_tokens: int,
    overlap_tokens: int,
    capacity_tokens: int,
) -> list[Chunk]:
    """Cut into passages of at most `chunk_tokens`; with the context line they fit `capacity_tokens`.

    A passage never crosses a heading or a page. Blocks that fit are kept whole. Up to `overlap_tokens`
    of the end of a passage are repeated at the start of the next one of its section.
    """
    starts = [0, *(match.end() for match in re.finditer("\n", document.text))]
    chunks = []
    for blocks in _sections(document.blocks):
        heading = heading_path(document.title, blocks[0].heading)
        above = count_tokens([context_line(document.title, heading)])[0]
        limit = max(16, min(chunk_tokens, capacity_tokens - above))
        groups = _groups(document.text, blocks, count_tokens, limit)
        for start, end in _pack(groups, limit, overlap_tokens):
            first, last = _trim(document.text, start, end)
            lines = _line_numbers(starts, first, last) if document.has_lines else (0, 0)
            chunks.append(
                Chunk(
                    text=document.text[first:last],
                    heading=heading,
                    first_line=lines[0],
                    last_line=lines[1],
                    page=blocks[0].page,
                )
            )
    return chunks


def heading_path(title: str, heading: Sequence[str]) -> str:
    """Join headings, without an outermost one that only repeats the title.

    >>> heading_path("Router", ("Router", "Reset"))
    'Reset'
    """
    parts = heading[1:] if heading and heading[0] == title else heading
    return " > ".join(parts)


def _sections(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Runs of blocks under one heading on one page, without the heading that the context line repeats."""
    runs: list[list[Block]] = []
    for block in blocks:
        if block.shape == "heading" or not runs or _place(block) != _place(runs[-1][0]):
            runs.append([])
        runs[-1].append(block)
    for run, following in zip_longest(runs, runs[1:]):
        body = [block for block in run if block.shape != "heading"]
        path = run[0].heading
        has_children = following is not None and following[0].heading[: len(path)] == path
        if body or not has_children:
            yield body or run


def _place(block: Block) -> tuple[tuple[str, ...], int]:
    return block.heading, block.page


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Drop white space at both ends, but keep the indentation of a first line."""
    end = start + len(text[start:end].rstrip())
    body = start + len(text[start:end]) - len(text[start:end].lstrip())
    line = text.rfind("\n", 0, body) + 1
    return (line if line >= start else body), end


def _groups(text: str, blocks: list[Block], count: CountTokens, limit: int) -> Iterator[list[Atom]]:
    """What may not be torn apart: a block that fits, else each of its atoms."""
    for block in blocks:
        atoms = _atoms(text, block, count, limit)
        if sum(atom.cost for atom in atoms) <= limit:
            yield atoms
        else:
            yield from ([atom] for atom in atoms)


def _pack(groups: Iterator[list[Atom]], limit: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Fill chunks greedily; give the character range of each."""
    current: list[Atom] = []
    for group in filter(None, groups):
        room = limit - sum(atom.cost for atom in group)
        if current and sum(atom.cost for atom in current) > room:
            yield current[0].start, current[-1].end
            current = _tail(current, min(overlap, room))
        current += group
    if current:
        yield current[0].start, current[-1].end


def _tail(atoms: list[Atom], budget: int) -> list[Atom]:
    kept = len(atoms)
    while kept and (budget := budget - atoms[kept - 1].cost) >= 0:
        kept -= 1
    return atoms[kept:]


def _atoms(text: str, block: Block, count: CountTokens, limit: int) -> list[Atom]:
    spans = _split(text, block.start, block.end, _LINE_END if block.shape == "lines" else _SENTENCE_END)
    spans = [part for span in spans for part in _windows(text, *span, limit * CHARACTERS_PER_TOKEN)]
    atoms: list[Atom] = []
    while spans:
        costs = _costs(text, spans, count)
        pieces = [Atom(start, end, cost) for (start, end), cost in zip(spans, costs, strict=True)]
        whole = [piece.cost <= limit or piece.end - piece.start == 1 for piece in pieces]
        atoms += compress(pieces, whole)
        spans = [
            half
            for piece, fits in zip(pieces, whole, strict=True)
            if not fits
            for half in _halves(text, piece)
        ]
    return sorted(atoms, key=lambda atom: atom.start)


def _costs(text: str, spans: list[tuple[int, int]], count: CountTokens) -> list[int]:
    counts = count([text[start:end] for start, end in spans])
    longest = [-(-(end - start) // CHARACTERS_PER_TOKEN) for start, end in spans]
    return [max(pair) for pair in zip(counts, longest, strict=True)]


def _split(text: str, start: int, end: int, boundary: re.Pattern[str]) -> list[tuple[int, int]]:
    """Cut a range behind every match; pieces of white space alone are dropped."""
    cuts = [start, *(match.end() for match in boundary.finditer(text, start, end)), end]
    spans = pairwise(cuts)
    return [(first, last) for first, last in spans if not text[first:last].isspace() and first < last]


def _windows(text: str, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    while end - start > size:
        cut = _space(text, start, start + size)
        yield start, cut
        start = cut
    yield start, end


def _halves(text: str, atom: Atom) -> list[tuple[int, int]]:
    middle = (atom.start + atom.end) // 2
    cut = _space(text, atom.start, middle)
    return [(atom.start, cut), (cut, atom.end)]


def _space(text: str, start: int, end: int) -> int:
    """The last place to break in a range: behind white space where there is some, else its end."""
    return max(text.rfind(" ", start, end), text.rfind("\n", start, end)) + 1 or end


def _line_numbers(starts: list[int], first: int, last: int) -> tuple[int, int]:
    return bisect_right(starts, first), bisect_right(starts, max(first, last - 1))
