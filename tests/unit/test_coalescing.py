"""Tokens that are told together: none is lost, none waits for long, the first waits not at all."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from edged.stages.contract import Finished, Progress
from edged.workers.coalescing import Coalescing, Event

INTERVAL_S = 0.04
STEPS = st.lists(
    st.tuples(st.floats(0.001, 0.1), st.sets(st.integers(0, 3))), min_size=1, max_size=40
)  # how long a step takes, and who gets a token in it


def token(request: int, number: int) -> Progress:
    return Progress(request, number, (number,), f"{number} ")


def tokens_of(events: list[Event]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for event in events:
        if isinstance(event, Progress):
            assert event.first == len(found[event.request])
            assert event.text == "".join(f"{each} " for each in event.tokens)
            found[event.request] += event.tokens
    return found


@given(STEPS)
def test_each_answer_is_told_whole_and_in_order(steps: list[tuple[float, set[int]]]) -> None:
    coalescing, now = Coalescing(INTERVAL_S), 0.0
    said: dict[int, list[int]] = defaultdict(list)
    told: list[Event] = []
    for spent_s, requests in steps:
        now += spent_s
        fresh = [token(each, len(said[each])) for each in requests]
        for event in fresh:
            said[event.request] += event.tokens
        told += coalescing.pass_on(fresh, now)
    ends = [Finished(each, b"") for each in said]
    last = coalescing.pass_on(ends, now)
    assert tokens_of(told + last) == said
    for each in said:  # its end is the last that is told of an answer
        assert isinstance([event for event in last if event.request == each][-1], Finished)


@given(STEPS)
def test_an_answer_is_told_an_interval_apart_and_as_soon_as_that_is_over(
    steps: list[tuple[float, set[int]]],
) -> None:
    """Also when nothing more comes of it."""
    coalescing, now = Coalescing(INTERVAL_S), 0.0
    said: dict[int, int] = defaultdict(int)
    known: dict[int, int] = defaultdict(int)
    told_at: dict[int, float] = {}
    for spent_s, requests in steps:
        now += spent_s
        for event in coalescing.pass_on([token(each, said[each]) for each in requests], now):
            assert isinstance(event, Progress)
            assert now >= told_at.get(event.request, -1.0) + INTERVAL_S
            known[event.request], told_at[event.request] = event.first + len(event.tokens), now
        for each in requests:
            said[each] += 1
        for each, count in said.items():
            assert known[each] == count or now < told_at[each] + INTERVAL_S


def test_what_is_held_can_be_told_now_or_never() -> None:
    coalescing = Coalescing(INTERVAL_S)
    coalescing.pass_on([token(1, 0), token(2, 0)], 0.0)
    assert coalescing.pass_on([token(1, 1), token(2, 1)], 0.001) == []
    coalescing.forget(2)
    assert coalescing.flush() == [token(1, 1)]
    assert coalescing.flush() == []
    assert coalescing.pass_on([token(1, 2)], 0.002) == []
    assert coalescing.pass_on([Finished(1, b"")], 0.003) == [token(1, 2), Finished(1, b"")]
