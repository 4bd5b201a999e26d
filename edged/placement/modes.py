"""What a lease mode makes of an option, whatever the other stages are: pure. See `flow.py` for the model."""

from __future__ import annotations

from collections.abc import Sequence

from edged.dispatch.leases import SHORT_S, Mode
from edged.placement.cores import mask
from edged.placement.prices import Option

LIGHT_S = 0.02
"""A stage that takes no longer for a request on one core is nobody's bottleneck beside large models."""


def short(option: Option) -> bool:
    """Whether its batches are over before a lease bothers: beside others they have one core."""
    return not option.streaming and option.core_s[0] * option.batch <= SHORT_S


def _spreads(option: Option) -> bool:
    """Whether it has more than one core in `single`."""
    return option.lanes > 1 and not short(option)


def _light(option: Option) -> bool:
    """Whether one worker is more than enough."""
    return option.core_s[0] <= LIGHT_S


def unsuited(option: Option, mode: Mode, cores: int) -> str:
    """Why a planner does not think of an option in a mode; empty where it does.

    `single` is for stages that keep every core busy: with a worker of one thread for each, or with one that
    spreads its batches over all; with less, cores stand idle while work waits, which the model of rates does
    not see. In the other modes a stage with more workers than half of the cores crowds the others: they take
    the caches from each other (measured: docs/decisions/0013-core-leases.md). Light stages and accelerators
    wait for no core, and a number of workers that the operator fixed is his.
    """
    own = mask(option.form.device, cores).bit_count()
    if not own or _light(option):
        return ""
    if mode != "single":
        most = max(1, own // 2)
        if option.fixed or option.workers <= most:
            return ""
        return (
            f"it crowds the other stages: cores are shared {mode}, at most {most} workers each on {own} cores"
        )
    threads = option.form.threads
    if threads == 1 and (option.fixed or option.workers == own):
        return ""
    if _spreads(option) and option.lanes == own and (option.fixed or option.workers == 1):
        return ""
    spread = ", or one that spreads its batches over them" if option.lanes > 1 else ""
    return f"cores are shared single, which wants a worker of one thread for each of {own} cores{spread}"


def suited(offers: Sequence[Sequence[Option]], mode: Mode, cores: int) -> tuple[tuple[Option, ...], ...]:
    """What there is for each stage in a mode."""
    return tuple(tuple(option for option in each if not unsuited(option, mode, cores)) for each in offers)


def one_core_s(option: Option) -> float:
    """Seconds of a core that a request takes when each worker has one core, or spreads over several."""
    return option.cpu_s if option.form.threads == 1 or _spreads(option) else option.core_s[0]


def most_per_s(option: Option, mode: Mode) -> float:
    """Requests per second of a stage that never waits for cores or work."""
    if mode == "single" and option.form.threads:
        width = option.workers * (option.lanes if _spreads(option) else 1)
        return min(option.rate_per_s, width / option.core_s[0])
    return option.rate_per_s


def least_core_seconds(option: Option, mode: Mode, cores: int) -> float:
    """A bound from below on what a request takes of the CPU in this stage, whatever the others are."""
    own = mask(option.form.device, cores).bit_count()
    if not own or mode == "together" or (mode == "turns" and short(option)):
        return option.cpu_s
    if mode == "single":
        return one_core_s(option)
    if mode == "turns":
        return own * option.batch_s / option.batch
    return min(
        n * option.core_s[min(n, own) - 1]
        for width in range(own, cores + 1)
        for n in (width, max(1, width // 2), max(1, width - width // 2))
    )


def met_s(option: Option, mode: Mode, cores: int) -> float:
    """Seconds per request in which a worker of a group of so many cores finds this stage beside it.

    In `single` each of the other cores runs it for its share of the time.
    """
    if mode == "single":
        return one_core_s(option) * (cores - 1) / cores
    return 1 / option.rate_per_s
