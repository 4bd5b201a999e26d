"""Citations point at passages that contain what the answer says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.messages import Answer, Citation, Passage
from edged.stages.citations import (
    ATTRIBUTION_SHARE,
    cite,
    content_words,
    renumbered,
    sentences,
    share,
    supported,
)


def passage(number: int, text: str) -> Passage:
    return Passage(id=number, text=text, source=f"{number}.md")


MANUAL = (
    passage(1, "The status LED is amber while the gateway updates. It turns green when the update is done."),
    passage(2, "To reset, hold the recessed button for 12 seconds.\nThe gateway then restarts twice."),
    passage(3, "The default address of the gateway is 192.168.77.1. The user is admin."),
)


def numbers(citations: tuple[Citation, ...]) -> list[int]:
    return [citation.number for citation in citations]


def answer(text: str, *passages: Passage) -> Answer:
    citations = cite(text, passages)
    return Answer(
        text=text, finish="stop", prompt_tokens=1, completion_tokens=1, model="m", citations=citations
    )


def test_a_marked_passage_is_cited_with_the_line_that_says_it():
    (citation,) = cite("Hold the recessed button for 12 seconds [2].", MANUAL)
    assert citation.number == 2
    assert citation.passage == MANUAL[1]
    assert citation.quote == "To reset, hold the recessed button for 12 seconds."
    assert citation.support == 1.0


def test_an_unmarked_sentence_is_attributed_by_its_words():
    assert numbers(cite("Its default address is 192.168.77.1.", MANUAL)) == [3]


def test_each_sentence_is_attributed_on_its_own():
    text = "Hold the button for 12 seconds. The LED turns green when the update is done."
    assert numbers(cite(text, MANUAL)) == [1, 2]


def test_a_wrong_marker_is_shown_with_its_low_support_beside_the_right_passage():
    low, high = cite("Hold the recessed button for 12 seconds [1].", MANUAL)
    assert (low.number, high.number) == (1, 2)
    assert low.support < ATTRIBUTION_SHARE < high.support


@pytest.mark.parametrize("marker", ["[0]", "[4]", "[99999999999]", "[x]", "[]", "[-1]"])
def test_markers_that_point_nowhere_are_ignored(marker):
    assert cite(f"Bananas are yellow {marker}.", MANUAL) == ()


def test_several_markers_in_one_bracket_count():
    assert numbers(cite("Unlike anything [1, 3].", MANUAL)) == [1, 3]


def test_a_wrong_number_outweighs_matching_words():
    words = content_words("Hold the button for 45 seconds.")
    known = content_words(MANUAL[1].text)
    assert share(words, known) == 3 / 6


def test_supported_means_that_the_cited_passages_say_it():
    assert supported(answer("Hold the recessed button for 12 seconds [2].", *MANUAL))
    assert not supported(answer("Hold the recessed button for 15 seconds [2].", *MANUAL))
    assert not supported(answer("Bananas are yellow and grow in bunches [2].", *MANUAL))
    assert not supported(answer("Bananas are yellow.", *MANUAL))
    assert not supported(answer("", *MANUAL))


def test_to_repeat_the_question_is_not_an_answer():
    assert not supported(answer("What is the default address of the gateway?", *MANUAL))


def test_numbers_of_a_list_are_not_claims():
    assert supported(
        answer("1. Hold the recessed button for 12 seconds.\n2. The gateway restarts twice.", *MANUAL)
    )


def test_sentences_do_not_end_inside_addresses():
    assert sentences("Use 192.168.77.1 now! [3] Then wait\nfor it.\nDone\n\nNET\n| a | b |\n| c | d |") == [
        "Use 192.168.77.1 now! [3]",
        "Then wait\nfor it.",
        "Done",
        "NET",
        "| a | b |",
        "| c | d |",
    ]


texts = st.text(max_size=80).filter(lambda text: "?" not in text) | st.lists(
    st.sampled_from(["reset", "button", "12", "seconds", "[1]", "[2]", ".", "\n", "the", "10.0.0.1"])
).map(" ".join)


@given(texts, st.lists(texts, max_size=4))
def test_any_answer_gives_citations_that_are_true(text, bodies):
    passages = [passage(n, body) for n, body in enumerate(bodies, 1)]
    citations = cite(text, passages)
    assert numbers(citations) == sorted(set(numbers(citations)))
    for citation in citations:
        assert citation.passage is passages[citation.number - 1]
        assert citation.quote in citation.passage.text
        assert 0 <= citation.support <= 1


def test_numbers_that_the_reader_never_saw_begin_at_1_with_the_best():
    text = "Hold the recessed button for 12 hours. The default address of the gateway is 192.168.77.1."
    found = cite(text, MANUAL)
    assert numbers(found) == [2, 3]
    plain = renumbered(text, found)
    assert numbers(plain) == [1, 2]
    assert plain[0].passage is MANUAL[2]
    assert renumbered("As in [3].", found) == found


@given(texts)
def test_a_passage_always_supports_its_own_words(text):
    copied = answer(text, passage(1, text))
    assert supported(copied) == bool(content_words(text))  # no question marks among these texts


@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_a_sentence_taken_from_a_passage_is_always_cited(bodies, data):
    passages = [passage(n, body) for n, body in enumerate(bodies, 1)]
    spans = [span for body in bodies for span in sentences(body) if content_words(span)]
    if spans:
        span = data.draw(st.sampled_from(spans))
        assert any(c.support == 1 for c in cite(span, passages))
