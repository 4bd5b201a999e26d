"""The order of turns: what it promises, and why `seed` takes no more micro-batches than stages."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ConfigError
from edged.layers.schedule import Turns, check, next_lane

MODES = st.sampled_from(["ring", "flush", "naive"])


@given(mode=MODES, lanes=st.integers(1, 9), tokens=st.integers(1, 6))
def test_every_micro_batch_gets_every_token(mode, lanes, tokens):
    turns = Turns(mode=mode)
    left = dict.fromkeys(range(lanes), tokens)
    flying: deque[int] = deque()
    last, started, most, closed = -1, 0, 0, False
    while True:
        due = {lane for lane, count in left.items() if count and lane not in flying}
        act = turns.act(len(due))
        if act == "rest":
            break
        if act == "start":
            assert not (mode == "flush" and closed), "a flushed pipeline starts nothing before it is empty"
            last = next_lane(due, last, lanes)
            flying.append(last)
            turns, started = turns.started(), started + 1
        else:
            left[flying.popleft()] -= 1
            turns = turns.received()
            closed = bool(flying)
        most = max(most, len(flying))
        assert turns.in_flight == len(flying)
    assert not flying
    assert not any(left.values())
    assert started == lanes * tokens
    assert most == (1 if mode == "naive" else lanes)


@given(lanes=st.integers(2, 9), last=st.integers(-1, 8), data=st.data())
def test_turns_go_round(lanes, last, data):
    due = data.draw(st.sets(st.integers(0, lanes - 1), min_size=1))
    chosen = next_lane(due, last, lanes)
    assert chosen in due
    between = {(last + 1 + step) % lanes for step in range((chosen - last - 1) % lanes)}
    assert not between & due


def _ends(stages: int, lanes: int, tokens: int) -> bool:
    """Whether the blocking order ends: a send waits for its receive, and there is no room in between.

    The first stage receives before it sends (unless nothing else is on its way), the others send before they
    receive. Each stage is a list of what it does next; steps happen when both sides of a link are there.
    """
    jobs = lanes * tokens
    first: list[str] = []
    held = flying = 0
    done = sent = 0
    while done < jobs:  # the order in which the head acts, whatever the others do
        if sent < jobs and flying < lanes:
            first += ["send"] * held
            held, flying, sent = 1, flying + 1, sent + 1
        else:
            if held and flying == 1:
                first.append("send")
                held = 0
            first.append("receive")
            flying, done = flying - 1, done + 1
    orders = [deque(first)] + [deque(["receive", "send"] * jobs) for _ in range(stages - 1)]
    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            mine, theirs = orders[stage], orders[(stage + 1) % stages]
            if mine and theirs and mine[0] == "send" and theirs[0] == "receive":
                mine.popleft()
                theirs.popleft()
                moved = True
    return not any(orders)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("lanes", range(1, 10))
def test_the_blocking_order_hangs_exactly_where_it_is_refused(stages, lanes):
    if _ends(stages, lanes, tokens=3):
        check("seed", stages, lanes)
        return
    with pytest.raises(ConfigError) as caught:
        check("seed", stages, lanes)
    assert caught.value.param == "micro_batches"


def test_no_micro_batches_are_refused():
    with pytest.raises(ConfigError, match="below 1"):
        check("ring", 2, 0)
