"""What a load run reports: from samples to figures."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.cli.durations import DURATION
from edged.load.drive import Run
from edged.load.report import covered, report
from edged.load.sample import Sample
from edged.replies import Timing

SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: (min(pair), max(pair))))


def timing(stage: str, compute_s: float, wait_s: float = 0.0) -> Timing:
    return Timing(stage=stage, compute_s=compute_s, wait_s=wait_s)


@given(SPANS)
def test_the_union_of_intervals_counts_every_moment_once(spans):
    moments = {moment for start, end in spans for moment in range(start, end)}
    assert covered(spans) == len(moments)


def test_a_stage_that_works_all_the_time_is_the_bottleneck():
    samples = [
        Sample(
            due_s=n,
            end_s=n + 1.0,
            first_s=n + 0.5,
            tokens=10,
            gaps_s=(0.1, 0.2),
            timings=(timing("reranker", 0.2, 0.1), timing("generator", 0.7)),
        )
        for n in range(10)
    ]
    found = report(samples, clients=1, rate_per_s=None, duration_s=10.0)
    assert found.bottleneck == "generator"
    assert found.stages["generator"].utilisation == pytest.approx(0.7)
    assert found.stages["reranker"].utilisation == pytest.approx(0.2)
    assert found.stages["reranker"].wait_s == pytest.approx(0.1)
    assert found.throughput_per_s == 1.0
    assert found.tokens_per_s == 10.0
    assert found.first_token.p50 == pytest.approx(0.5)
    assert found.token_gap.maximum == pytest.approx(0.2)


def test_work_side_by_side_is_one_time_busy():
    samples = [Sample(due_s=0, end_s=4, timings=(timing("generator", 4.0),)) for _ in range(8)]
    found = report(samples, clients=8, rate_per_s=None, duration_s=10.0)
    assert found.stages["generator"].utilisation == pytest.approx(0.4)
    assert found.bottleneck == ""
    assert "more clients" in found.verdict


def test_failures_are_counted_by_code_and_never_as_answers():
    samples = [
        Sample(due_s=0, end_s=1, timings=(timing("generator", 1.0),)),
        Sample(due_s=0, end_s=0.1, error="overloaded"),
        Sample(due_s=0, end_s=0.1, error="overloaded"),
    ]
    found = report(samples, clients=3, rate_per_s=None, duration_s=1.0)
    assert (found.answered, found.errors) == (1, {"overloaded": 2})
    assert found.latency.maximum == 1.0


def test_a_run_without_answers_says_so():
    found = report([], clients=1, rate_per_s=2.0, duration_s=5.0)
    assert found.latency.p50 is None
    assert found.verdict == "nothing was answered"


def test_arrivals_keep_their_times_whatever_the_answers_take():
    """A request that starts late because others are slow is charged from when it was due."""
    run = Run(lambda _, began_s, due_s: Sample(due_s=due_s, end_s=time.monotonic() - began_s), ["q"], 0.3)
    samples = list(run.open(100.0, seed=1))
    again = list(Run(lambda *_: Sample(due_s=_[2], end_s=_[2]), ["q"], 0.3).open(100.0, seed=1))
    assert sorted(s.due_s for s in samples) == sorted(s.due_s for s in again)
    assert all(sample.latency_s >= 0 for sample in samples)


def test_a_closed_loop_asks_every_question_in_turn():
    asked = []

    def ask(question: str, began_s: float, due_s: float) -> Sample:
        asked.append(question)
        if len(asked) >= 6:
            run.stop()
        return Sample(due_s=due_s, end_s=due_s)

    run = Run(ask, ["a", "b", "c"], 60.0)
    assert len(list(run.closed(1))) == 6
    assert asked == ["a", "b", "c", "a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1.5s", 1.5)]
)
def test_durations_as_people_type_them(text, seconds):
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-5s", "5 parsecs", "m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Exception, match="duration"):
        DURATION.convert(text, None, None)
