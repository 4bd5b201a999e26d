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
    report = measure_overlap(OverlapBench(source=source, rows=2, past=3, jobs=1, rounds=1))
    assert [(case.overlap, case.block) for case in report.cases] == [
        *[("none", 1), ("single", 1), ("multi", 1), ("multi", PARTS)]
    ]
    assert all(case.job_s > 0 and case.tokens_per_s > 0 for case in report.cases)
    assert [check.wanted for check in report.checks] == [1.25, 1.15, 2.5]
    told_on_a_cpu = list(overlap_lines(report))
    assert told_on_a_cpu[-1].strip() == CAUTION
    assert not any("missed" in line or "holds" in line for line in told_on_a_cpu)
    with pytest.raises(ConfigError, match="fewer than 4"):
        measure_overlap(OverlapBench(source=RANDOM.format(layers=3)))


def test_what_load_and_compute_do_not_allow_is_not_called_missed():
    def case(overlap: Overlap, block: int, job_s: float) -> OverlapCase:
        return OverlapCase(
            overlap=overlap, block=block, job_s=job_s, spread_s=0, tokens_per_s=block / job_s, copy_s=0
        )

    def verdicts(load_s: float, compute_s: float, *times_s: float) -> list[str]:
        kinds: list[tuple[Overlap, int]] = [("none", 1), ("single", 1), ("multi", 1), ("multi", 4)]
        cases = tuple(case(*kind, job_s) for kind, job_s in zip(kinds, times_s, strict=True))
        checks = overlap_checks(cases, load_s, compute_s)
        report = OverlapReport(
            device="cuda:0",
            layers=4,
            layer_bytes=1,
            load_s=load_s,
            compute_s=compute_s,
            cases=cases,
            checks=checks,
            caution="",
        )
        return [line.rpartition(": ")[2] for line in overlap_lines(report)][-3:]

    assert verdicts(1.0, 1.0, 2.0, 1.1, 1.1, 4.1) == ["holds", "holds", "not to be had with these times"]
    assert verdicts(1.0, 0.1, 1.1, 1.2, 1.2, 1.2) == ["not to be had with these times", "missed", "holds"]
