"""Text comes out whole, once, and never past a stop string, however the tokens were split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest
from edged.stages.detokenizer import Detokenizer, StopStrings, TextStream

CONTROL = 256
SPACED = 300
"""Ids from here on are words of a vocabulary that drops the first space of what it decodes."""


def byte_decode(tokens: Sequence[int]) -> str:
    return bytes(token for token in tokens if token < CONTROL).decode("utf-8", "replace")


def spaced_decode(tokens: Sequence[int]) -> str:
    pieces = [f" w{t}".encode() if t >= SPACED else bytes([t]) for t in tokens if t != CONTROL]
    return b"".join(pieces).decode("utf-8", "replace").removeprefix(" ")


def one_mark_per_byte_decode(tokens: Sequence[int]) -> str:
    """Another reading of invalid UTF-8: a replacement character for every byte."""
    return (
        bytes(t for t in tokens if t < CONTROL)
        .decode("utf-8", "surrogateescape")
        .translate({0xDC00 + byte: "\ufffd" for byte in range(256)})
    )


decodes = st.sampled_from([byte_decode, spaced_decode, one_mark_per_byte_decode])
text_bytes = st.text(max_size=40).map(lambda text: list(text.encode()))
pieces = st.one_of(
    text_bytes,
    st.lists(st.integers(0, 255), max_size=12),
    st.just([CONTROL]),
    st.lists(st.integers(SPACED, SPACED + 9), max_size=3),
)
token_lists = st.lists(pieces, max_size=8).map(lambda parts: [t for part in parts for t in part])


def known(decode: Callable[[Sequence[int]], str], tokens: list[int]) -> list[int]:
    return [t for t in tokens if t < SPACED or decode is spaced_decode]


def split(data: st.DataObject, tokens: list[int]) -> list[list[int]]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=10)))
    return [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]


@given(decodes, token_lists, st.data())
def test_deltas_add_up_to_the_decoded_whole(decode, tokens, data):
    tokens = known(decode, tokens)
    detokenizer = Detokenizer(decode)
    deltas = [detokenizer.push(part) for part in split(data, tokens)]
    assert "".join(deltas) + detokenizer.flush() == decode(tokens)


@given(decodes, token_lists)
def test_one_token_at_a_time_gives_no_half_characters(decode, tokens):
    tokens = known(decode, tokens)
    detokenizer = Detokenizer(decode)
    given_text = ""
    for count, token in enumerate(tokens, 1):
        given_text += detokenizer.push([token])
        whole = decode(tokens[:count])
        assert whole.startswith(given_text)
        assert set(whole[len(given_text) :]) <= {"\ufffd"}


@pytest.mark.parametrize("decode", [byte_decode, spaced_decode, one_mark_per_byte_decode])
@pytest.mark.parametrize("token", [0x80, 0xF0, CONTROL, ord("a")])
def test_the_cost_is_linear_even_for_bytes_that_never_make_a_character(decode, token):
    decoded = 0

    def counting(tokens: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(tokens)
        return decode(tokens)

    detokenizer = Detokenizer(counting)
    count = 2_000
    text = detokenizer.push([ord("x")]) + "".join(detokenizer.push([token]) for _ in range(count))
    assert text + detokenizer.flush() == decode([ord("x")] + [token] * count)
    assert decoded < 100 * count


stops = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def reference(text: str, stop: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop string to end cuts; the longest, if several end together."""
    for end in range(1, len(text) + 1):
        if hits := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - max(map(len, hits))], True
    return text, False


@given(st.text("abc\n", max_size=30), stops, st.data())
def test_stop_strings_cut_where_the_first_of_them_ends(text, stop, data):
    filter_ = StopStrings(stop)
    shown = "".join(filter_.push("".join(part)) for part in split(data, list(text)))
    shown += filter_.flush()
    assert (shown, filter_.reached) == reference(text, stop)


@given(st.text("abc\n", max_size=30), stops)
def test_nothing_shown_is_taken_back(text, stop):
    filter_ = StopStrings(stop)
    shown = "".join(filter_.push(character) for character in text)
    assert reference(text, stop)[0].startswith(shown)


@pytest.mark.parametrize("stop", [["a"] * 5, [""], ["x" * 65]])
def test_unusable_stop_strings_are_refused(stop):
    with pytest.raises(BadRequest, match="stop string"):
        StopStrings(stop)


def play(stream: TextStream, parts: list[list[int]]) -> str:
    """Feed a stream as the generator does: up to the stop, then finish."""
    sent = ""
    for part in parts:
        if not stream.stopped:
            sent += stream.push(part)
    return sent + stream.finish()


@given(st.text("abé😀\n", max_size=30), stops, st.data())
def test_a_resumed_stream_sends_exactly_what_is_missing(text, stop, data):
    tokens = list(text.encode())
    uninterrupted = TextStream(byte_decode, StopStrings(stop))
    whole = play(uninterrupted, [[token] for token in tokens])
    assert whole == uninterrupted.text == reference(text, stop)[0]

    first = TextStream(byte_decode, StopStrings(stop))
    sent, cut = "", data.draw(st.integers(0, len(tokens)))
    for token in tokens[:cut]:
        if not first.stopped:
            sent += first.push([token])
    second = TextStream(byte_decode, StopStrings(stop), tokens[:cut], len(sent))
    rest = play(second, split(data, tokens[cut:]))
    assert sent + rest == whole
    assert second.text == whole


def test_a_client_that_missed_text_gets_it_with_the_next_token():
    stream = TextStream(byte_decode, StopStrings(()), list(b"hello"), 2)
    assert stream.push([ord("!")]) == "llo!"


def test_the_stages_own_stop_strings_come_on_top():
    filter_ = StopStrings(["a", "b", "c", "d"], own=["\n\n", "\nQuestion:"])
    assert filter_.push("It is so.\n\nQuestion: why?") == "It is so."
    assert filter_.reached
