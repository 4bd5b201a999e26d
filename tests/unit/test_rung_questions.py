"""Questions for `edgectl ladder measure`: made of passages, asked by a generator, brought by the operator."""

from __future__ import annotations

import json
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BadRequest, UnknownField
from edged.messages import Passage
from edged.rungs.asked import questions_in
from edged.rungs.drawing import Subject
from edged.rungs.making import WORDS, question, telling
from edged.rungs.record import Place
from edged.rungs.wording import conversation, question_in, worded

PUMP = Passage(
    id=3, source="/docs/pump.md", title="Pump", heading="Start", text="The pump starts at a level of 80 cm."
)
FUSE = Passage(id=4, source="/docs/fuse.md", title="Fuse", text="A fuse of 2 A protects the supply line.")


@given(st.integers(0, 1000), st.dictionaries(st.sampled_from(telling(PUMP)), st.integers(0, 50)))
def test_a_question_of_words_has_words_of_each_passage_and_names_both(seed, holding):
    made = question([PUMP, FUSE], holding, 100, Random(seed))
    assert made == question([PUMP, FUSE], holding, 100, Random(seed)), "the same seed, the same question"
    words = made.text.split()
    assert set(words) <= {*telling(PUMP), *telling(FUSE)}
    assert 2 <= len(words) <= 2 * WORDS
    assert made.relevant == (
        Place(source="/docs/pump.md", passage=3),
        Place(source="/docs/fuse.md", passage=4),
    )


def test_rare_words_are_likelier():
    common = dict.fromkeys(telling(PUMP), 99) | {"80": 1}
    assert "80" not in telling(PUMP), "a word of two letters tells little"
    common["cm"] = 1
    drawn = [question([PUMP], common | {"level": 1}, 100, Random(seed)).text for seed in range(200)]
    assert sum("level" in text for text in drawn) > sum("starts" in text for text in drawn)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("At which level does the pump start?\nAnswer: 80 cm", "At which level does the pump start?"),
        ("At which level does the pump start? I do not know.", "At which level does the pump start?"),
        ("The pump starts at a level of 80 cm.", ""),
        ("What is the capital of the largest country in Europe by level of the pump?", ""),
        ("What?", ""),
        ("", ""),
    ],
)
def test_only_questions_about_the_passage_are_kept(said, kept):
    assert question_in(said, PUMP) == kept


def test_a_question_about_two_passages_needs_both():
    about = Subject((PUMP, FUSE))
    good = ("At which level does the pump start?", "Which fuse protects the supply line?")
    both = worded(about, good)
    assert both is not None
    assert both.text == " ".join(good)
    assert [place.passage for place in both.relevant] == [3, 4]
    assert worded(about, (good[0], "No idea.")) is None


def test_a_passage_is_shown_under_its_headings():
    *_, last = conversation(PUMP)
    assert last == {"role": "user", "content": "Pump - Start: The pump starts at a level of 80 cm."}


def line(**fields: object) -> str:
    return json.dumps(fields)


def test_questions_of_ones_own():
    lines = [
        line(question="How high?", relevant=["pump.md", {"source": "a.md", "first_line": 3, "last_line": 9}]),
        "\n",
        line(question="Which fuse?", answer=" 2 A "),
    ]
    first, second = questions_in(lines, "own.jsonl")
    assert first.relevant == (Place(source="pump.md"), Place(source="a.md", first_line=3, last_line=9))
    assert (second.text, second.relevant, second.answer) == ("Which fuse?", (), "2 A")


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("{", None, "truncated.*a line looks like"),
        ("How high is it?", None, 'no JSON object.*a line looks like .*"relevant"'),
        ('"How high is it?"', None, "a line looks like"),
        (line(relevant=["a"]), None, "question"),
        (line(question=3, answer="x"), "question", "str"),
        (line(question=" ", answer="x"), "question", "empty"),
        (line(question="q"), "relevant", "neither relevant nor answer"),
        (line(question="q", relevant=[{"source": ""}]), "relevant", "without a source"),
        (
            line(question="q", relevant=[{"source": "a", "first_line": 9, "last_line": 3}]),
            "relevant",
            "9 to 3",
        ),
        (line(question="q", relevant=[{"file": "a"}]), "file", "unknown field"),
        (line(question="q", answers="x"), "answers", "unknown field"),
        ("[" * 10_000, None, "line 2"),
    ],
)
def test_a_bad_line_is_named_with_its_field(text, field, says):
    with pytest.raises(BadRequest, match=rf"(?s)own.jsonl, line 2: .*({says})|{says}") as refused:
        questions_in([line(question="q", answer="a"), text], "own.jsonl")
    assert "own.jsonl, line 2" in refused.value.message
    assert refused.value.param == field or field is None
    assert isinstance(refused.value, UnknownField) == (says == "unknown field")


def test_a_place_that_is_lacking_is_named_with_its_line():
    lines = [line(question="q", answer="a"), "", line(question="q", relevant=["a.md", "b.md"])]
    with pytest.raises(BadRequest, match=r"own.jsonl, line 3: no b.md") as refused:
        questions_in(lines, "own.jsonl", lambda place: "no b.md" if place.source == "b.md" else "")
    assert refused.value.param == "relevant"


def test_an_empty_file_is_refused():
    with pytest.raises(BadRequest, match="has no questions"):
        questions_in(["\n"], "own.jsonl")


@given(st.lists(st.text(), max_size=5))
def test_any_text_is_read_or_refused_with_a_code(lines):
    with suppress(BadRequest):
        assert all(question.text.strip() for question in questions_in(lines, "own.jsonl"))
