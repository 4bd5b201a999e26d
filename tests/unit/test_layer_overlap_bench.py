"""The overlap strategies are timed, and judged by what load and compute allow."""

from __future__ import annotations

import pytest

from edged.errors import ConfigError
from edged.layers.offload.bench import OverlapBench, measure_overlap
from edged.layers.offload.report import (
    CAUTION,
    PARTS,
    OverlapCase,
    OverlapReport,
    overlap_checks,
    overlap_lines,
)
from edged.layers.spec import Overlap

from .layer_jobs import (
    RANDOM,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_the_strategies_are_timed_and_judged_where_they_can_overlap():
    source = RANDOM.format(layers=4)
    seen: list[tuple[int, int]] = []
    asked = OverlapBench(source=source, rows=2, past=3, jobs=1, rounds=1)
    report = measure_overlap(asked, lambda done, most: seen.append((done, most)))
    assert seen == [(number, 11) for number in range(1, 12)]
    assert report.checks == overlap_checks(
        report.cases, report.load_s, report.compute_s, report.parts_s, overlaps=False
    )
    assert [(case.overlap, case.block) for case in report.cases] == [
        *[("none", 1), ("single", 1), ("multi", 1), ("multi", PARTS)]
    ]
    assert all(case.job_s > 0 and case.tokens_per_s > 0 for case in report.cases)
    assert [check.wanted for check in report.checks] == [1.25, 1.15, 2.5]
    told_on_a_cpu = list(overlap_lines(report))
    assert told_on_a_cpu[0].endswith(" on cpu")
    assert told_on_a_cpu[-1].strip() == CAUTION
    assert not any("missed" in line or "holds" in line for line in told_on_a_cpu)
    with pytest.raises(ConfigError, match="fewer than 4"):
        measure_overlap(OverlapBench(source=RANDOM.format(layers=3)))


def case(overlap: Overlap, block: int, job_s: float) -> OverlapCase:
    return OverlapCase(
        overlap=overlap, block=block, job_s=job_s, spread_s=0, tokens_per_s=block / job_s, copy_s=0
    )


def told(cases: tuple[OverlapCase, ...], load_s: float, compute_s: float) -> list[str]:
    """What is said of the three ratios."""
    report = OverlapReport(
        device="cuda:0",
        layers=4,
        layer_bytes=1,
        load_s=load_s,
        compute_s=compute_s,
        parts_s=PARTS * compute_s,
        cases=cases,
        checks=overlap_checks(cases, load_s, compute_s, PARTS * compute_s),
        caution="",
    )
    return list(overlap_lines(report))[-3:]


def test_what_load_and_compute_do_not_allow_is_not_called_missed():
    def verdicts(load_s: float, compute_s: float, *times_s: float) -> list[str]:
        kinds: list[tuple[Overlap, int]] = [("none", 1), ("single", 1), ("multi", 1), ("multi", 4)]
        cases = tuple(case(*kind, job_s) for kind, job_s in zip(kinds, times_s, strict=True))
        return [line.rpartition(": ")[2] for line in told(cases, load_s, compute_s)]

    assert verdicts(1.0, 1.0, 2.0, 1.1, 1.1, 4.1) == ["holds", "holds", "not to be had with these times"]
    assert verdicts(1.0, 0.1, 1.1, 1.2, 1.2, 1.2) == ["not to be had with these times", "missed", "holds"]


def test_what_every_job_costs_anyway_counts_for_what_is_possible_at_best():
    # A job costs 2 whatever it holds, a part 1, all loads 1; nothing overlaps.
    cases = case("none", 1, 4.0), case("single", 1, 4.0), case("multi", 1, 4.0), case("multi", 4, 7.0)
    *_, multi = overlap_checks(cases, load_s=1.0, compute_s=3.0, parts_s=6.0, overlaps=False)
    assert multi.ratio == pytest.approx(16 / 7)
    assert multi.ideal == pytest.approx(16 / 7)
    assert overlap_checks(cases, 1.0, 3.0, 6.0)[-1].ideal == pytest.approx(16 / 6)
    assert overlap_checks(cases, 1.0, 3.0, 6.0, overlaps=False)[0].ideal == 1.0


def test_an_ideal_that_was_beaten_is_reported_as_it_is_and_not_called_the_best():
    cases = case("none", 1, 5.0), case("single", 1, 1.0), case("multi", 1, 5.0), case("multi", 4, 1.0)
    gain, slack, parts = overlap_checks(cases, load_s=2.0, compute_s=2.0, parts_s=8.0)
    assert (gain.ratio, gain.ideal) == (5.0, 2.5)
    assert (slack.ratio, slack.ideal) == (0.5, 1.0)
    assert (parts.ratio, parts.ideal) == (20.0, 2.5)
    assert not any("at best" in line for line in told(cases, 2.0, 2.0))
    slow = case("none", 1, 5.0), case("single", 1, 2.5), case("multi", 1, 5.0), case("multi", 4, 10.0)
    ideals = [line.partition("at best ")[2][:4] for line in told(slow, 2.0, 2.0)]
    assert ideals == ["2.50", "1.00", "2.50"]
