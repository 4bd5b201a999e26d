"""Documents are cut along their structure, verbatim, with exact line numbers."""

from itertools import pairwise
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.documents.chunk import Chunk, chunk, embedded_text
from edged.documents.readers import decode, reader_for
from edged.errors import DocumentError


def words(texts):
    return [len(text.split()) for text in texts]


def cut(name: str, source: str | bytes, *, limit: int = 60, overlap: int = 8) -> list[Chunk]:
    path = PurePath(name)
    reader = reader_for(path)
    assert reader is not None
    data = source if isinstance(source, bytes) else source.encode()
    parsed = reader(data, path)
    return chunk(parsed, words, chunk_tokens=limit, overlap_tokens=overlap, capacity_tokens=500)


LINES = st.sampled_from(
    ["", "", "# Top", "## Inner part", "- an item", "1. first", "    indented code", "```", "| a | b |",
     "|---|---|", "One sentence here. Another one! And a third?", "word " * 40, "Title", "=====",
     "def name(x):", "x" * 2000, "日本語の文。次の文。", "\tTabbed", "> quoted", "a,b,c"]
)  # fmt: skip
TEXTS = st.lists(LINES, max_size=40).map("\n".join)
NAMES = st.sampled_from(["a.md", "a.txt", "a.rst", "a.py", "a.log", "a.csv"])


@given(NAMES, TEXTS)
def test_a_passage_is_what_its_lines_say(name, text):
    lines = text.split("\n")
    for piece in cut(name, text):
        assert piece.text.strip()
        assert 1 <= piece.first_line <= piece.last_line <= len(lines)
        cited = lines[piece.first_line - 1 : piece.last_line]
        assert piece.text in "\n".join(cited)
        assert piece.text[0] in cited[0]
        assert piece.text[-1] in cited[-1]


@given(NAMES, TEXTS, st.integers(16, 100), st.integers(0, 40))
def test_passages_are_bounded_and_lose_no_word(name, text, limit, overlap):
    pieces = cut(name, text, limit=limit, overlap=overlap)
    assert all(words([piece.text])[0] <= limit for piece in pieces)
    assert all(len(piece.text) <= limit * 12 + limit for piece in pieces)
    found = "".join("".join(piece.heading + piece.text for piece in pieces).split())
    if name in {"a.txt", "a.log", "a.csv"}:
        for word in text.split():
            assert word[:10] in found


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(0, 30))
def test_overlap_repeats_the_end_and_always_advances(lengths, overlap):
    text = "\n".join(f"s{number} " * length for number, length in enumerate(lengths))
    pieces = cut("a.log", text, limit=32, overlap=overlap)
    ends = [piece.last_line for piece in pieces]
    assert ends == sorted(set(ends))
    for former, following in pairwise(pieces):
        assert former.first_line < following.first_line <= former.last_line + 1
        repeated = former.text[former.text.rfind(f"s{following.first_line - 1} ") :]
        if following.first_line <= former.last_line:
            assert words([repeated])[0] <= overlap


def test_markdown_structure():
    source = (
        "---\ntitle: Gateway\n---\n# Router\n\nIntro text.\n\n## Reset\n\nHold it:\n\n"
        "```sh\nreboot\n\nnow\n```\n"
        "\n## Wiring\n\n| pin | use |\n|---|---|\n| 1 | ground |\n"
    )
    pieces = cut("a.md", source)
    assert [(piece.heading, piece.first_line, piece.last_line) for piece in pieces] == [
        ("Router", 6, 6),
        ("Router > Reset", 10, 16),
        ("Router > Wiring", 20, 22),
    ]
    assert pieces[1].text == "Hold it:\n\n```sh\nreboot\n\nnow\n```"


def test_a_code_fence_that_fits_is_not_torn_apart():
    fence = "```\n" + "\n".join(f"step {number} of it" for number in range(10)) + "\n```"
    pieces = cut("a.md", "# T\n\n" + "A sentence of six words here. " * 8 + "\n\n" + fence + "\n", limit=50)
    assert any(piece.text.endswith(fence) for piece in pieces)


def test_source_code_is_cut_at_definitions():
    source = "import os\n\n\ndef first(a):\n    b = a\n\n    return b\n\n\nclass Second:\n    x = 1\n"
    assert [(piece.heading, piece.first_line, piece.last_line) for piece in cut("a.py", source)] == [
        ("", 1, 1),
        ("def first(a)", 4, 7),
        ("class Second", 10, 11),
    ]


def test_restructured_sections():
    source = "Title\n=====\n\nIntro.\n\nPart\n----\n\nText::\n\n    code\n"
    assert [(piece.heading, piece.first_line) for piece in cut("a.rst", source)] == [("", 4), ("Part", 9)]


def test_html_keeps_what_is_read_and_drops_what_is_not():
    page = (
        b"<html><head><title>Manual &amp; more</title><style>p{}</style></head><body><script>evil()</script>"
        b"<h1>Reset</h1>loose <b>bold</b> text<p>A <i>short</i> word</p><ul><li>one<li>two</ul>"
        b"<table><tr><td>pin</td><td>use</td></tr></table><pre>a\n  b</pre></body></html>"
    )
    (piece,) = cut("a.html", page)
    expected = "loose bold text\n\nA short word\n\n- one\n- two\npin | use\n\na\n  b"
    assert (piece.heading, piece.text, piece.first_line) == ("Reset", expected, 0)


def test_hostile_html_nesting_is_refused():
    with pytest.raises(DocumentError, match="nests"):
        cut("a.html", b"<div>" * 100_000 + b"deep")


def test_a_heading_without_text_is_kept_only_where_nothing_is_below_it():
    pieces = cut("a.md", "# A\n\n## B\n\ntext\n\n## C\n")
    assert [piece.text for piece in pieces] == ["text", "## C"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfcaf\xc3\xa9\r\nx", "café\nx"),
        ("caf\u00e9".encode("utf-16"), "café"),
        (b"caf\xe9", "café"),
        (b"a" * 9000 + b"\0", "a" * 9000 + "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_encodings(data, text):
    assert decode(data)[0] == text


def test_latin_1_is_a_guess_and_says_so():
    assert "Latin-1" in decode(b"caf\xe9")[1][0]


def test_binary_content_is_refused():
    with pytest.raises(DocumentError, match="binary"):
        decode(b"\x7fELF\0\0")


@given(st.binary(max_size=300), st.sampled_from([".md", ".html", ".pdf", ".rst", ".py", ".txt", ".csv"]))
def test_any_bytes_give_passages_or_a_document_error(data, suffix):
    try:
        pieces = cut(f"a{suffix}", data)
    except DocumentError:
        return
    for piece in pieces:
        embedded_text("t", piece.heading, piece.text).encode()
