"""Answers of the generator that rest on passages: citations, doubts, and no passages at all."""

from __future__ import annotations

import pytest

from edged.messages import Passage
from edged.stages.generator import NOT_IN_PASSAGES, NOTHING_FOUND, UNSUPPORTED

from .scripted import (
    GATEWAY,
    Scripted,
    item,
    run,
    stage,
)


def test_a_grounded_answer_cites_what_it_rests_on():
    decoy = Passage(id=8, text="The LED is amber.", source="leds.md")
    _, whole = run(stage(), item(grounded=True, passages=(GATEWAY, decoy)))
    assert [(c.number, c.passage, c.quote) for c in whole.citations] == [(1, GATEWAY, GATEWAY.text)]
    assert whole.passages_dropped == 0


def test_dropped_passages_are_reported_and_not_cited():
    long = Passage(id=8, text=f"{GATEWAY.text} {'x' * 1_500}", source="long.md")
    _, whole = run(stage(), item(grounded=True, passages=(GATEWAY, long)))
    assert whole.passages_dropped == 1
    assert [citation.passage for citation in whole.citations] == [GATEWAY]


@pytest.mark.parametrize(("reply", "characters"), [("Bananas.", 4), ("Bananas.\n\nQuestion: Why?", 4)])
def test_an_answer_that_no_passage_supports_says_so(reply, characters):
    task = {"grounded": True, "passages": (GATEWAY,)}
    progress, whole = run(stage(Scripted(reply)), item(**task))
    assert "".join(event.text for event in progress) == whole.text == "Bananas." + UNSUPPORTED
    assert whole.citations == ()
    after, resumed = run(stage(Scripted(reply)), item(1, reply[:characters].encode(), characters, **task))
    assert reply[:characters] + "".join(event.text for event in after) == resumed.text == whole.text


def test_without_passages_no_model_speaks():
    session = Scripted()
    progress, whole = run(stage(session), item(grounded=True))
    assert session.admitted == []
    assert "".join(event.text for event in progress) == whole.text == NOTHING_FOUND
    assert (whole.model, whole.completion_tokens) == ("", 0)


def test_numbers_that_no_passage_holds_are_named():
    reply = "To reset, hold the recessed button for 99 s."
    _, whole = run(stage(Scripted(reply)), item(grounded=True, passages=(GATEWAY,)))
    assert whole.text == reply + NOT_IN_PASSAGES.format("99")
    assert len(whole.citations) == 1


def test_a_grounded_answer_that_goes_round_in_circles_is_ended():
    reply = "Hold the recessed button. " * 40
    _, whole = run(stage(Scripted(reply)), item(grounded=True, passages=(GATEWAY,)))
    assert (whole.finish, whole.text.count("Hold")) == ("stop", 3)
    _, plain = run(stage(Scripted(reply)), item())
    assert plain.text.count("Hold") > 3
