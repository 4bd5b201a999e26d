"""The formulas of a pipeline's bubble against a pipeline that is played through, job by job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.layers.planning import bubble
from edged.layers.schedule import Mode

STAGES, MICRO_BATCHES, TOKENS = st.integers(1, 5), st.integers(1, 9), st.integers(1, 6)
SECONDS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


class Pipeline:
    """Stages that take a job, keep it for their time, and hand it on after `hop`; ids go back."""

    def __init__(self, mode: Mode, seconds: list[int], micro_batches: int, tokens: int, hop: int = 0) -> None:
        self.world = simpy.Environment()
        self.mode, self.seconds, self.hop = mode, seconds, hop
        self.micro_batches, self.tokens = micro_batches, tokens
        self.waiting = [simpy.Store(self.world) for _ in seconds]
        self.back = simpy.Store(self.world)
        self.busy = [0] * len(seconds)
        self.last_end = 0

    def play(self) -> tuple[list[int], int]:
        """Seconds in which each stage worked, and from the first start to the last end."""
        for stage in range(len(self.seconds)):
            self.world.process(self.stage(stage))
        self.world.run(self.world.process(self.head()))
        return self.busy, self.last_end

    def stage(self, stage: int) -> Iterator[simpy.Event]:
        while True:
            job = yield self.waiting[stage].get()
            yield self.world.timeout(self.seconds[stage])
            self.busy[stage] += self.seconds[stage]
            self.last_end = self.world.now
            follower = self.waiting[stage + 1] if stage + 1 < len(self.seconds) else self.back
            self.world.process(self.send(follower, job))

    def send(self, to: simpy.Store, job: int) -> Iterator[simpy.Event]:
        yield self.world.timeout(self.hop if len(self.seconds) > 1 else 0)
        yield to.put(job)

    def head(self) -> Iterator[simpy.Event]:
        """Start turns as the mode has it."""
        if self.mode in {"flush", "naive"}:
            together = self.micro_batches if self.mode == "flush" else 1
            for _ in range(self.tokens * self.micro_batches // together):
                for job in range(together):
                    yield self.waiting[0].put(job)
                for _ in range(together):
                    yield self.back.get()
            return
        done = dict.fromkeys(range(self.micro_batches), 0)
        for job in done:
            yield self.waiting[0].put(job)
        while any(count < self.tokens for count in done.values()):
            job = yield self.back.get()
            done[job] += 1
            if done[job] < self.tokens:
                yield self.waiting[0].put(job)


@settings(deadline=None)
@given(st.sampled_from(get_args(Mode)), STAGES, MICRO_BATCHES, TOKENS)
def test_formulas_of_equal_stages(mode: Mode, stages: int, micro_batches: int, tokens: int):
    busy, span = Pipeline(mode, [1] * stages, micro_batches, tokens).play()
    expected = bubble.formula(mode, stages, micro_batches, tokens)
    assert bubble.measured(busy, span) == pytest.approx(expected)
    assert bubble.predicted(mode, [1] * stages, micro_batches, tokens) == pytest.approx(expected)


@settings(deadline=None)
@given(st.sampled_from(get_args(Mode)), SECONDS, MICRO_BATCHES, TOKENS, st.integers(0, 3))
def test_span_of_unequal_stages(mode: Mode, seconds: list[int], micro_batches: int, tokens: int, hop: int):
    busy, span = Pipeline(mode, seconds, micro_batches, tokens, hop).play()
    assert bubble.span_s(mode, seconds, micro_batches, tokens, hop) == pytest.approx(span)
    assert bubble.predicted(mode, seconds, micro_batches, tokens, hop) == pytest.approx(
        bubble.measured(busy, span)
    )


@given(st.integers(2, 8), st.integers(1, 16), st.integers(1, 64))
def test_a_ring_stands_still_no_longer_than_a_flushed_pipeline(stages, micro_batches, tokens):
    ring = bubble.ring(stages, micro_batches, tokens)
    assert 0 < ring <= bubble.flushed(stages, micro_batches) + 1e-12
    assert bubble.flushed(stages, micro_batches) <= bubble.naive(stages) + 1e-12
    assert bubble.ring(stages, micro_batches + 1, tokens) <= ring + 1e-12


def test_the_forms_of_the_ring_meet():
    assert bubble.ring(4, 4, 16) == pytest.approx(1 - 4 * 16 / (16 * 4 + 4 - 1))


@pytest.mark.parametrize(("busy_s", "elapsed_s", "expected"), [([], 1, 0), ([1], 0, 0), ([1.01], 1, 0)])
def test_clocks_that_disagree_give_no_impossible_bubble(busy_s, elapsed_s, expected):
    assert bubble.measured(busy_s, elapsed_s) == expected
