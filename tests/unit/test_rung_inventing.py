"""Which of the questions that a generator asks are taken, and what takes the place of the others."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edged.messages import Passage
from edged.rungs.drawing import Subject
from edged.rungs.invent import _rest
from edged.rungs.record import Place, Question

kinds = st.lists(st.sampled_from((1, 2)), max_size=30)


def subject(number: int, passages: int) -> Subject:
    return Subject(tuple(Passage(id=10 * number + n, text="", source="a") for n in range(passages)))


@given(kinds, kinds, st.integers(0, 30))
def test_what_is_missing_is_filled_with_pairs_first_and_never_too_much(left, asked, count):
    asked = asked[:count]
    taken = {n: Question(text="q", relevant=(Place(source="a"),) * kind) for n, kind in enumerate(asked)}
    subjects = [subject(n, kind) for n, kind in enumerate(left)]
    rest = _rest(subjects, taken, count)
    assert len(rest) == min(len(left), count - len(asked))
    assert len(set(map(id, rest))) == len(rest)
    pairs = Counter(asked)[2] + sum(len(each.passages) == 2 for each in rest)
    possible = Counter(asked)[2] + min(Counter(left)[2], len(rest))
    assert pairs >= min(count // 2, possible)
