"""Find the structure of text formats: where headings, paragraphs, lists, tables and code lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest

from markdown_it import MarkdownIt
from markdown_it.token import Token

from edged.documents.chunk import Block, Shape

_UNDERLINE = re.compile(r"([=\-`:'\"~^_*+#<>.])\1{2,}\s*$")
_LIST_ITEM = re.compile(r"\s*([-*+•]|\d+[.)]|#\.)\s+\S")
_DEFINITION = re.compile(
    r"(?:[\w@<>\[\]*&:,]+\s+){0,5}?"
    r"(?:def|class|func|fn|function|fun|sub|interface|struct|enum|trait|impl|module|namespace|type|record)\s+\S"
    r"|[\w*&:<>\[\]~]+(?:\s+[\w*&:<>\[\]~]+)+\s*\([^;]*$"
)
_CLOSING = re.compile(r"[)}\]]|end\b|else\b|elif\b|except\b|finally\b|catch\b|fi\b|done\b|esac\b")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)
_FRONT_MATTER_TITLE = re.compile(r"^title:\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE)
_SIGNATURE_CHARACTERS = 100

_SHAPES: dict[str, Shape] = {
    "heading_open": "heading",
    "paragraph_open": "paragraph",
    "blockquote_open": "paragraph",
}


class Headings:
    """The path of headings above a place, kept while a document is read from top to bottom."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def enter(self, level: int, text: str) -> tuple[str, ...]:
        """Begin a section; deeper and equal ones before it end."""
        self._open = [(depth, name) for depth, name in self._open if depth < level]
        self._open.append((level, " ".join(text.split())))
        return self.path

    @property
    def path(self) -> tuple[str, ...]:
        """Headings from the outermost to the innermost."""
        return tuple(name for _, name in self._open)


def line_starts(text: str) -> list[int]:
    """Offset of every line, and of the end of the text behind the last."""
    return [0, *(match.end() for match in re.finditer(r"\n|\Z", text) if match.end())]


def markdown(text: str) -> tuple[list[Block], str]:
    """Blocks of CommonMark with tables, and the title of its front matter."""
    front = _FRONT_MATTER.match(text)
    skipped = front.group().count("\n") if front else 0
    body = text[front.end() :] if front else text
    starts = line_starts(text)
    headings = Headings()
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    blocks = []
    for token, following in zip_longest(tokens, tokens[1:]):
        if token.level or not token.map:
            continue
        if token.type == "heading_open" and following is not None:
            headings.enter(int(token.tag[1:]), following.content)
        blocks.append(_markdown_block(token, starts, skipped, headings.path))
    title = _FRONT_MATTER_TITLE.search(front.group()) if front else None
    return blocks, title.group(1) if title else ""


def _markdown_block(token: Token, starts: list[int], skipped: int, path: tuple[str, ...]) -> Block:
    assert token.map is not None
    first, last = (line + skipped for line in token.map)
    return Block(
        start=starts[first],
        end=starts[min(last, len(starts) - 1)],
        shape=_SHAPES.get(token.type, "lines"),
        heading=path,
    )


def restructured(text: str) -> list[Block]:
    """Blocks of reStructuredText: sections by their underlines, the rest by blank lines.

    A section's level is the order in which its underline first appears, as the format defines it.
    """
    headings = Headings()
    levels: dict[str, int] = {}
    blocks = []
    for start, end in _paragraphs(text):
        lines = [line for line in text[start:end].splitlines() if line.strip()]
        title = _rst_title(lines)
        if title:
            name, underline = title
            headings.enter(levels.setdefault(underline, len(levels) + 1), name)
        shape: Shape = "heading" if title else _shape(lines)
        blocks.append(Block(start=start, end=end, shape=shape, heading=headings.path))
    return blocks


def _rst_title(lines: Sequence[str]) -> tuple[str, str] | None:
    """Title and the style of its adornment, for a block that is a section title."""
    over = len(lines) == 3 and bool(_UNDERLINE.match(lines[0])) and lines[0].strip() == lines[2].strip()  # noqa: PLR2004
    name, under = (lines[1], lines[2]) if over else (lines[0], lines[1] if len(lines) == 2 else "")  # noqa: PLR2004
    if not _UNDERLINE.match(under) or len(under.rstrip()) < len(name.strip()) or _UNDERLINE.match(name):
        return None
    return name.strip(), under[0] + ("/" if over else "")


def plain(text: str) -> list[Block]:
    """Paragraphs by blank lines; a paragraph that looks like a list keeps its lines."""
    return [
        Block(start=start, end=end, shape=_shape(text[start:end].splitlines()))
        for start, end in _paragraphs(text)
    ]


def records(text: str) -> list[Block]:
    """One block of lines: tables and logs break between records only."""
    return [Block(start=0, end=len(text), shape="lines")] if text.strip() else []


def code(text: str) -> list[Block]:
    """Top-level definitions: a new block starts behind a blank line, at a line that is not indented."""
    starts = line_starts(text)
    spans = pairwise(starts)
    cuts = [0]
    blank = False
    for start, end in spans:
        line = text[start:end]
        if blank and line.strip() and not line[0].isspace() and not _CLOSING.match(line):
            cuts.append(start)
        blank = not line.strip()
    return [
        Block(start=start, end=end, shape="lines", heading=_signature(text[start:end]))
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)
        if text[start:end].strip()
    ]


def _signature(source: str) -> tuple[str, ...]:
    """The line that names what a block of code defines, if it defines something."""
    for line in source.splitlines()[:40]:
        if line[:1].strip() and _DEFINITION.match(line):
            return (line.strip().rstrip("{:(").strip()[:_SIGNATURE_CHARACTERS],)
    return ()


def _shape(lines: Sequence[str]) -> Shape:
    items = sum(bool(_LIST_ITEM.match(line)) or line[:1].isspace() for line in lines)
    return "lines" if lines and items * 2 > len(lines) else "paragraph"


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Character ranges between blank lines."""
    starts = line_starts(text)
    first: int | None = None
    for start, end in pairwise(starts):
        if text[start:end].strip():
            first = start if first is None else first
        elif first is not None:
            yield first, start
            first = None
    if first is not None:
        yield first, len(text)
