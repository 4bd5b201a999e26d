"""What the overlap strategies gained: figures, and the ratios that are wanted of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from edged.layers.spec import Overlap

SINGLE_GAIN = 1.25
"""`single` against `none`, where load and compute are within 2x of each other. A target, not a law."""
SINGLE_SLACK = 1.15
"""`single` against the longer of load and compute. A target."""
BLOCK_GAIN = 2.5
"""Tokens a second of `multi` with four parts against one. A target."""
PARTS = 4


CAUTION = "on a CPU nothing overlaps: these figures show that the code runs, not how fast it is"


class OverlapCase(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy's figures; medians over rounds."""

    overlap: Overlap
    block: int
    job_s: float
    spread_s: float
    """Between the slowest and the fastest round."""
    tokens_per_s: float
    copy_s: float
    """Of a job, what compute waited for copies (on a CPU: what they took)."""


class OverlapCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio beside what is wanted of it, and beside what load and compute would allow at best."""

    name: str
    ratio: float
    wanted: float
    at_most: bool = False
    """Whether the ratio is to be at most what is wanted, instead of at least."""
    ideal: float
    """From load and compute timed for themselves: times vary, so a ratio can come out better than this."""

    @property
    def possible(self) -> bool:
        """Whether these loads and this compute allow what is wanted."""
        return self.ideal <= self.wanted if self.at_most else self.ideal >= self.wanted

    @property
    def within(self) -> bool:
        """Whether what was measured is no better than the ideal, so that this can be called the best."""
        return self.ideal <= self.ratio if self.at_most else self.ideal >= self.ratio

    @property
    def holds(self) -> bool:
        """Whether what is wanted was measured."""
        return self.ratio <= self.wanted if self.at_most else self.ratio >= self.wanted


class OverlapReport(msgspec.Struct, frozen=True, kw_only=True):
    """All figures, and what they may be used for."""

    device: str
    layers: int
    layer_bytes: int
    load_s: float
    """Of all layers once, with no compute."""
    compute_s: float
    """Of a job with one part, with no load."""
    parts_s: float
    """Of a job with `PARTS` parts, with no load: what every job costs anyway is in it once."""
    cases: tuple[OverlapCase, ...]
    checks: tuple[OverlapCheck, ...]
    caution: str


def overlap_lines(report: OverlapReport) -> Iterator[str]:
    """Say a report in words."""
    yield f"{report.layers} layers of {report.layer_bytes / 1e6:.1f} MB on {report.device}"
    yield f"  load {report.load_s * 1e3:.1f} ms, compute {report.compute_s * 1e3:.1f} ms a job"
    yield f"  compute {report.parts_s * 1e3:.1f} ms a job of {PARTS} parts"
    for case in report.cases:
        yield (
            f"  {case.overlap:<6} block {case.block}: {case.job_s * 1e3:.1f} ms a job "
            f"(spread {case.spread_s * 1e3:.1f}), {case.tokens_per_s:.1f} tokens/s, "
            f"{case.copy_s * 1e3:.1f} ms waiting for copies"
        )
    for check in report.checks:
        sign = "<=" if check.at_most else ">="
        best = f", at best {check.ideal:.2f}" if check.within else ""
        figures = f"{check.ratio:.2f} (wanted {sign} {check.wanted}{best})"
        yield f"  {check.name}: {figures}{_verdict(check, report)}"
    if report.caution:
        yield f"  {report.caution}"


def overlap_checks(
    cases: Sequence[OverlapCase], load_s: float, compute_s: float, parts_s: float, *, overlaps: bool = True
) -> tuple[OverlapCheck, ...]:
    """Return the ratios of none, single, multi with one part and multi with `PARTS`, in this order.

    At best a job takes as long as the longer of its load and its compute, or where nothing `overlaps` both;
    what it is compared with took as long as measured. `parts_s` is the compute of `PARTS` parts.
    """
    none, single, one, four = cases
    longer = max(load_s, compute_s)
    least_s = longer if overlaps else load_s + compute_s
    least_parts_s = max(load_s, parts_s) if overlaps else load_s + parts_s
    return (
        OverlapCheck(
            name="single against none",
            ratio=none.job_s / single.job_s,
            wanted=SINGLE_GAIN,
            ideal=none.job_s / least_s,
        ),
        OverlapCheck(
            name="single against the longer of load and compute",
            ratio=single.job_s / longer,
            wanted=SINGLE_SLACK,
            at_most=True,
            ideal=least_s / longer,
        ),
        OverlapCheck(
            name=f"tokens/s of multi, {PARTS} parts against 1",
            ratio=four.tokens_per_s / one.tokens_per_s,
            wanted=BLOCK_GAIN,
            ideal=PARTS * one.job_s / least_parts_s,
        ),
    )


def _verdict(check: OverlapCheck, report: OverlapReport) -> str:
    if report.caution:
        return ""
    return ": holds" if check.holds else ": missed" if check.possible else ": not to be had with these times"
