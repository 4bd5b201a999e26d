"""How much of a pipeline stands still: formulas for whole schedules, and what was measured. Pure.

A bubble is the share of all stage seconds in which a stage computes nothing. With N stages that take equally
long, M micro-batches and G tokens a sequence:

- flushed at every token: (N - 1) / (N - 1 + M)
- ring, M >= N: (N - 1) / (N - 1 + M G); ring, M < N: 1 - M G / (G N + M - 1)
- one micro-batch at a time (naive): (N - 1) / N

`span_s` is the general form behind them, for stages that take unequally long. A micro-batch's turn begins on
a stage when it has left the stage before and the stage has done the micro-batch before; in a ring its last
token has to be back too. The longest path through these constraints passes k of the G - 1 returns, and its
length is linear in k, so one end is longest: all wait for the busiest stage, or for the way round.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.layers.schedule import Mode


def flushed(stages: int, micro_batches: int) -> float:
    """Bubble of equal stages when the pipeline runs empty behind every token.

    >>> flushed(4, 4)
    0.42857142857142855
    >>> flushed(1, 3)
    0.0
    """
    return (stages - 1) / (stages - 1 + micro_batches)


def ring(stages: int, micro_batches: int, tokens: int) -> float:
    """Bubble of equal stages when tokens go straight back to the first stage and nothing is flushed.

    >>> round(ring(4, 8, 4), 3), round(ring(4, 2, 4), 3)
    (0.086, 0.529)
    """
    work = micro_batches * tokens
    if micro_batches >= stages:
        return (stages - 1) / (stages - 1 + work)
    return 1 - work / (tokens * stages + micro_batches - 1)


def naive(stages: int) -> float:
    """Bubble of equal stages when one micro-batch is under way at a time.

    >>> naive(4)
    0.75
    """
    return (stages - 1) / stages


def formula(mode: Mode, stages: int, micro_batches: int, tokens: int) -> float:
    """Bubble of equal stages in a mode; `seed` is a ring with at most as many micro-batches as stages."""
    if mode == "flush":
        return flushed(stages, micro_batches)
    return naive(stages) if mode == "naive" else ring(stages, micro_batches, tokens)


def period_s(mode: Mode, around_s: float, busiest_s: float, micro_batches: int) -> float:
    """Seconds in which every micro-batch gets one more token, once the pipeline is full.

    `around_s` is what one micro-batch needs alone, from its start on the first stage until its ids are back.

    >>> period_s("ring", 4.0, 1.0, 8), period_s("ring", 4.0, 1.0, 2), period_s("flush", 4.0, 1.0, 2)
    (8.0, 4.0, 5.0)
    """
    if mode == "naive":
        return micro_batches * around_s
    if mode == "flush":
        return around_s + (micro_batches - 1) * busiest_s
    return max(around_s, micro_batches * busiest_s)


def around_s(stage_s: Sequence[float], hop_s: float = 0.0) -> float:
    """Seconds of a micro-batch through all stages and back to the first, alone.

    >>> around_s((2.0, 1.0), hop_s=0.25), around_s((3.0,), hop_s=0.25)
    (3.5, 3.0)
    """
    return sum(stage_s) + (len(stage_s) * hop_s if len(stage_s) > 1 else 0.0)


def span_s(
    mode: Mode, stage_s: Sequence[float], micro_batches: int, tokens: int, hop_s: float = 0.0
) -> float:
    """Seconds from the first start to the last end: `tokens` tokens of each of `micro_batches` micro-batches.

    `stage_s` is the time of a micro-batch on each stage; `hop_s` that from one stage to the next, and of the
    ids back to the first, which holds up nobody else.

    >>> span_s("ring", (1, 1, 1, 1), micro_batches=2, tokens=4)
    17.0
    >>> span_s("flush", (1, 3), micro_batches=2, tokens=2)
    14.0
    """
    way_s, busiest_s = around_s(stage_s, hop_s), max(stage_s)
    every_s = period_s(mode, way_s, busiest_s, micro_batches)
    back_s = hop_s if len(stage_s) > 1 else 0.0
    once_s = micro_batches * way_s if mode == "naive" else way_s + (micro_batches - 1) * busiest_s
    return float((tokens - 1) * every_s + once_s - back_s)


def steady(mode: Mode, stage_s: Sequence[float], micro_batches: int, hop_s: float = 0.0) -> float:
    """Bubble of a pipeline that has run for long, with so many micro-batches that have work.

    What `predicted` comes to when `tokens` grow without end: what a daemon is held against, whose answers
    join and leave without the pipeline ever being filled or emptied.

    >>> steady("ring", (1, 1), 1), steady("ring", (1, 1), 2), steady("flush", (1, 1, 1), 2)
    (0.5, 0.0, 0.5)
    """
    every_s = period_s(mode, around_s(stage_s, hop_s), max(stage_s), micro_batches)
    return measured([each * micro_batches for each in stage_s], every_s)


def predicted(
    mode: Mode, stage_s: Sequence[float], micro_batches: int, tokens: int, hop_s: float = 0.0
) -> float:
    """Bubble of stages that take these times; `formula` where they are equal and hops cost nothing."""
    busy_s = [each * micro_batches * tokens for each in stage_s]
    return measured(busy_s, span_s(mode, stage_s, micro_batches, tokens, hop_s))


def measured(busy_s: Sequence[float], elapsed_s: float) -> float:
    """Bubble from the seconds that each stage computed in a time that is the same for all of them.

    Clocks of several processes disagree a little: the result is kept between 0 and 1. Nothing elapsed is 0.

    >>> measured((6.0, 2.0), 8.0)
    0.5
    """
    if elapsed_s <= 0 or not busy_s:
        return 0.0
    return min(1.0, max(0.0, 1 - sum(busy_s) / (len(busy_s) * elapsed_s)))
