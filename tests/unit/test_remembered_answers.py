"""A generator that remembers whole answers: the same events, without the model."""

from __future__ import annotations

import msgspec
import pytest

from edged.backend import Sampling

from .scripted import GATEWAY, REPLY, Scripted, answer, drain, item, run, stage

GROUNDED = {"grounded": True, "passages": (GATEWAY,)}


def said(progress):
    return [t for event in progress for t in event.tokens], "".join(event.text for event in progress)


def test_a_question_that_comes_again_is_answered_without_the_model():
    session = Scripted(per_event=3)
    generator = stage(session, answers_cache_mib=1)
    cold, first = run(generator, item(1, **GROUNDED))
    warm, again = run(generator, item(2, **GROUNDED))
    assert (said(warm), again) == (said(cold), first)
    assert len(session.admitted) == 1
    assert warm[0].first == 0
    counters = generator.cache_counters()["answers"]
    assert (counters.hits, counters.misses, counters.entries) == (1, 1, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"max_tokens": 5},
        {"stop": ("hold",)},
        {"sampling": Sampling(seed=3)},
        {"passages": (msgspec.structs.replace(GATEWAY, text="To reset, hold the button for 9 s."),)},
        {"passages": (msgspec.structs.replace(GATEWAY, source="another.md"),)},
    ],
)
def test_whatever_an_answer_depends_on_makes_another_answer(other):
    session = Scripted()
    generator = stage(session, answers_cache_mib=1)
    run(generator, item(1, **GROUNDED))
    _, warm = run(generator, item(2, **GROUNDED | other))
    assert len(session.admitted) == 2
    assert warm == run(stage(), item(3, **GROUNDED | other))[1]


def test_what_was_drawn_interrupted_or_given_up_is_not_remembered():
    session = Scripted()
    generator = stage(session, answers_cache_mib=1)
    drawn = item(1, sampling=Sampling(temperature=0.7))
    run(generator, drawn)
    run(generator, drawn)
    run(generator, item(2, list(REPLY.encode()[:4]), 4))
    generator.admit(item(3))
    generator.step()
    generator.cancel(3)
    assert generator.cache_counters()["answers"].entries == 0
    before = len(session.admitted)
    assert run(generator, item(4))[1].text == REPLY
    assert len(session.admitted) == before + 1


def test_nothing_is_remembered_unless_asked_for_and_clearing_forgets():
    off, session = stage(), Scripted()
    run(off, item(1))
    assert "answers" not in off.cache_counters()
    generator = stage(session, answers_cache_mib=1)
    run(generator, item(1))
    generator.clear_caches(["prefix"])
    assert generator.cache_counters()["answers"].entries == 1
    generator.clear_caches([])
    generator.admit(item(2))
    assert answer(drain(generator)[-1]).text == REPLY
    assert len(session.admitted) == 2
