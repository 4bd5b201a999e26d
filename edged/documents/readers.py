"""From the bytes of a file to its text and structure."""

from __future__ import annotations

import codecs
import io
import logging
import re
import zlib
from collections.abc import Callable
from pathlib import PurePath

from pypdf import PdfReader
from pypdf.errors import FileNotDecryptedError, PyPdfError
from selectolax.lexbor import LexborHTMLParser, LexborNode

from edged.documents import markup
from edged.documents.chunk import Block, Parsed, Shape
from edged.errors import DocumentError

VERSION = 1
"""Raised when reading or chunking changes, so that unchanged files are cut again."""

_BINARY_PROBE_BYTES = 8192
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_CODE_SUFFIXES = """
    .py .pyi .c .h .cc .cpp .cxx .hpp .hh .cs .java .kt .kts .scala .go .rs .swift .js .mjs .cjs .jsx
    .ts .tsx .rb .php .pl .pm .lua .r .jl .sh .bash .zsh .fish .ps1 .sql .proto .m .mm .dart .ex .exs
    .erl .hs .ml .el .clj .vim .tcl .asm .s .v .sv .vhd .cmake .gradle .nix .tf .css .scss
"""
_RECORDS = frozenset({".csv", ".tsv", ".log", ".jsonl", ".ndjson"})
_PLAIN_SUFFIXES = """
    .txt .text .ini .cfg .conf .toml .yaml .yml .json .xml .service .desktop .properties .tex .org
    .adoc .asciidoc .man .1 .5 .7 .8 .diff .patch .eml .srt .vtt
"""
_PLAIN_NAMES = """
    readme license licence copying changelog news authors makefile dockerfile todo
"""
_BLOCK_TAGS = """
    h1 h2 h3 h4 h5 h6 p li pre blockquote tr div section article main body dt dd figcaption table ul ol
    dl header footer address details summary form fieldset caption
"""
_BLOCKS = frozenset(_BLOCK_TAGS.split())
_SILENT_TAGS = ["script", "style", "noscript", "template", "svg", "nav", "head", "iframe", "object", "math"]
_SEPARATORS = {"td": " | ", "th": " | ", "br": "\n"}
_HTML_SHAPES: dict[str, Shape] = {"li": "lines", "pre": "lines", "tr": "lines", "dt": "lines", "dd": "lines"}
_DEEPEST_INLINE = 64
_DEEPEST_HTML = 4000
"""The parser's time grows with the square of the depth."""
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
_UNCLOSED_TAGS = """
    p li dt dd tr td th thead tbody tfoot option optgroup colgroup body html head a
    area base br col embed hr img input link meta param source track wbr
"""
# pypdf lets these escape from damaged files.
_PDF_FAULTS = (
    PyPdfError, ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError,
    TypeError, ValueError, zlib.error,
)  # fmt: skip

Reader = Callable[[bytes, PurePath], Parsed]


def reader_for(path: PurePath) -> Reader | None:
    """The reader of a file name; None when edged does not ingest its kind."""
    suffix = path.suffix.lower()
    known = {".md": read_markdown, ".markdown": read_markdown, ".rst": read_restructured}
    known |= dict.fromkeys((".html", ".htm", ".xhtml"), read_html) | {".pdf": read_pdf}
    if suffix in known:
        return known[suffix]
    if suffix in _CODE_SUFFIXES.split():
        return read_code
    if suffix in _RECORDS:
        return read_records
    return (
        read_plain if suffix in _PLAIN_SUFFIXES.split() or path.name.lower() in _PLAIN_NAMES.split() else None
    )


def decode(data: bytes) -> tuple[str, tuple[str, ...]]:
    r"""Text with `\n` line ends, and a note where the encoding was guessed.

    Raises `DocumentError` for binary content.

    >>> decode(b"caf\xe9\r\n")[0]
    'café\n'
    """
    text, notes = _decode(data)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), notes


def _decode(data: bytes) -> tuple[str, tuple[str, ...]]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace"), ()
    if b"\0" in data[:_BINARY_PROBE_BYTES]:
        raise DocumentError("the file is binary")
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError as error:
        note = f"byte {error.start} is not UTF-8: the file was read as Latin-1"
        return data.decode("latin-1"), (note,)


def read_markdown(data: bytes, path: PurePath) -> Parsed:
    """CommonMark with tables; the title is that of the front matter, else the first heading."""
    text, notes = decode(data)
    blocks, title = markup.markdown(text)
    return _parsed(text, blocks, title or _first_heading(blocks), path, "text/markdown", notes)


def read_restructured(data: bytes, path: PurePath) -> Parsed:
    """Sections of reStructuredText."""
    text, notes = decode(data)
    blocks = markup.restructured(text)
    return _parsed(text, blocks, _first_heading(blocks), path, "text/x-rst", notes)


def read_plain(data: bytes, path: PurePath) -> Parsed:
    """Paragraphs."""
    text, notes = decode(data)
    return _parsed(text, markup.plain(text), path.name, path, "text/plain", notes)


def read_records(data: bytes, path: PurePath) -> Parsed:
    """Lines of a table or of a log."""
    text, notes = decode(data)
    return _parsed(text, markup.records(text), path.name, path, "text/plain", notes)


def read_code(data: bytes, path: PurePath) -> Parsed:
    """Top-level definitions of source code."""
    text, notes = decode(data)
    return _parsed(text, markup.code(text), path.name, path, "text/x-source", notes)


def _first_heading(blocks: list[Block]) -> str:
    return next((block.heading[-1] for block in blocks if block.shape == "heading" and block.heading), "")


def _parsed(
    text: str, blocks: list[Block], title: str, path: PurePath, media_type: str, notes: tuple[str, ...]
) -> Parsed:
    return Parsed(
        text=text, blocks=tuple(blocks), title=title or path.stem, media_type=media_type, notes=notes
    )


class _Composer:
    """Collects pieces of text into one text with blocks, for formats without lines."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.headings = markup.Headings()
        self._parts: list[str] = []
        self._length = 0

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def add(self, text: str, shape: Shape = "paragraph", *, page: int = 0, gap: str = "\n\n") -> None:
        """Append a block, if it says anything."""
        if not text.strip():
            return
        text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
        end = self._length + len(text)
        self.blocks.append(
            Block(start=self._length, end=end, shape=shape, heading=self.headings.path, page=page)
        )
        self._parts += [text, gap]
        self._length = end + len(gap)


def read_html(data: bytes, path: PurePath) -> Parsed:
    """Visible text of a page; headings, list items, table rows and preformatted text are kept apart."""
    source, notes = decode(data)
    _refuse_deep(source)
    tree = LexborHTMLParser(source)
    title = tree.css_first("title")
    name = " ".join(title.text().split()) if title else ""
    tree.strip_tags(_SILENT_TAGS)
    composer = _Composer()
    for tag, text in _html_pieces(tree):
        if tag in {"h1", "h2", "h3", "h4", "h5", "h6"} and text.strip():
            composer.headings.enter(int(tag[1]), text)
            composer.add(" ".join(text.split()), "heading")
        else:
            _add_html(composer, tag, text)
    return Parsed(
        text=composer.text,
        blocks=tuple(composer.blocks),
        title=name or _first_heading(composer.blocks) or path.stem,
        media_type="text/html",
        has_lines=False,
        notes=notes,
    )


def _refuse_deep(source: str) -> None:
    """Raise `DocumentError` for nesting that only an attack would have."""
    depth = 0
    unclosed = frozenset(_UNCLOSED_TAGS.split())
    for closing, tag in _TAG.findall(source):
        if tag.lower() not in unclosed:
            depth = max(0, depth - 1) if closing else depth + 1
        if depth > _DEEPEST_HTML:
            raise DocumentError(f"the page nests more than {_DEEPEST_HTML} elements")


def _add_html(composer: _Composer, tag: str, text: str) -> None:
    if tag == "pre":
        composer.add(text.strip("\n"), "lines")
    elif tag == "li":
        composer.add("- " + " ".join(text.split()) if text.strip() else "", "lines", gap="\n")
    else:
        composer.add(" ".join(text.split()), _HTML_SHAPES.get(tag, "paragraph"))


def _html_pieces(tree: LexborHTMLParser) -> list[tuple[str, str]]:
    """Texts that stand in one block-level element each, in document order."""
    pieces: list[tuple[str, list[str]]] = []
    last = None
    for node in tree.root.traverse(include_text=True) if tree.root else ():
        text = _SEPARATORS.get(node.tag or "") or (node.text_content if node.tag == "-text" else None)
        if text is None:
            continue
        owner = _block_owner(node)
        if owner is None or owner.mem_id != last:
            pieces.append((owner.tag or "" if owner else "", []))
            last = owner.mem_id if owner else None
        pieces[-1][1].append(text)
    return [(tag, "".join(parts).strip(" |") if tag == "tr" else "".join(parts)) for tag, parts in pieces]


def _block_owner(node: LexborNode) -> LexborNode | None:
    parent = node.parent
    for _ in range(_DEEPEST_INLINE):
        if parent is None or parent.tag in _BLOCKS:
            return parent
        parent = parent.parent
    return None


def read_pdf(data: bytes, path: PurePath) -> Parsed:
    """Text of a PDF, page by page. Raises `DocumentError` when it is encrypted, damaged or only pictures."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    composer = _Composer()
    try:
        title = _pdf_pages(PdfReader(io.BytesIO(data)), composer)
    except FileNotDecryptedError as error:
        raise DocumentError("the PDF is encrypted; remove its password first") from error
    except _PDF_FAULTS as error:
        raise DocumentError(f"the PDF is damaged: {error or type(error).__name__}") from error
    if not composer.blocks:
        raise DocumentError("the PDF holds no text (scanned pages?); run a text recognition over it first")
    return Parsed(
        text=composer.text,
        blocks=tuple(composer.blocks),
        title=title or path.stem,
        media_type="application/pdf",
        has_lines=False,
    )


def _pdf_pages(reader: PdfReader, composer: _Composer) -> str:
    for number, page in enumerate(reader.pages, start=1):
        for paragraph in re.split(r"\n\s*\n", page.extract_text()):
            composer.add(paragraph, page=number)
    title = reader.metadata.title if reader.metadata else None
    return " ".join(str(title).split()) if title else ""
