"""How many requests per second an assignment carries: pure.

The model (decision 0017). A pipeline sends every request once through every stage, so its rate X is bounded
by

- each stage: X <= workers * batch / wall seconds of a batch;
- each accelerator: it does one batch at a time, so X * (sum of wall seconds per request on it) <= 1;
- the CPU: X * (core-seconds per request of all stages) <= cores. What a request costs there depends on who
  decides which stage runs, the lease mode (`edged/dispatch/leases.py`):

`together`: the kernel shares cores fairly, a stage takes its CPU seconds c(s). A stage is met by stage j
during the share min(1, X w(j)) of its time, w(j) being the seconds per request of j alone, and is slowed then
by the excess e(s, j) that the pair measurement shows over fair sharing. So c(s) counts
1 + sum over j of min(1, X w(j)) (e(s, j) - 1) times, and X solves the equation: both sides are monotone, so
bisection does. With core sets, every union of sets bounds the stages that are confined to it; by Hall's
theorem these bounds together are exact for work that can be divided.

`single`: as `together`, but each worker has one core and one thread, so that a request costs the CPU seconds
of one thread, and no more workers run than there are cores; an encoder that spreads its batches costs its CPU
seconds on all its threads. On the k - 1 other cores stage j is met for its share of their time,
min(1, X c(j) (k - 1) / k), and e(s, j) counts where forms of one thread were measured side by side. Planned
for stages with a worker for every core, or one that spreads its batches over them (`modes.py`).

`turns`: one worker runs at a time on k cores, the others stand still: X * (sum of w(s)) <= 1, without
contention. A batch of at most `SHORT_S` runs beside and takes its CPU seconds only.

`split`: the stage with most work, g, never stops. While another stage runs on n = max(1, k // 2) cores, g has
the other m = k - n; alone it has all k. With R = the seconds per request of the others on n cores, a request
takes T = R + (1 - R / w_g(m)) w_g(k), or, when the others have more to do in sum than g,
T = w_g(m) + (1 - w_g(m) / R) * (R on k cores); X = 1 / T. On one core T is the sum. Pairs are measured with
both stages on all cores, which says nothing about stages on cores of their own: contention is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import combinations
from operator import or_

import msgspec

from edged.dispatch.leases import Mode
from edged.placement.cores import mask
from edged.placement.interference import Excess, Interference, excesses
from edged.placement.modes import least_core_seconds, met_s, most_per_s, one_core_s, short
from edged.placement.prices import Option

BISECTIONS = 40
SHORT_OF = 0.999
"""Stands for any rate below the one that was asked for."""


class Flow(msgspec.Struct, frozen=True):
    """The rate of an assignment, which stage sets it, and how long each holds work."""

    rate_per_s: float
    bottleneck: int
    utilisation: tuple[float, ...]


class _Demands(msgspec.Struct, frozen=True, kw_only=True):
    """Of a group in which the kernel, or a lease of a core each, divides the cores; entries by stage."""

    masks: Sequence[int]
    cost: Sequence[float]
    """Core-seconds per request."""
    caps: Sequence[float]
    met: Sequence[float]
    """Seconds per request in which others find the stage beside them."""


def flow(
    options: Sequence[Option],
    mode: Mode,
    cores: int,
    interference: Interference,
    at_least_per_s: float = 0.0,
) -> Flow:
    """The rate at saturation, by the model; any smaller one where it does not reach `at_least_per_s`."""
    rates = [*_accelerator_rates(options), _host_rate(options, mode, cores)]
    caps = [most_per_s(option, mode) for option in options]
    busy = [1 / cap for cap in caps]
    for members in _groups(options, cores):
        group = [options[index] for index in members]
        rate, seconds = _group_flow(group, mode, cores, interference.under(mode), at_least_per_s)
        rates.append(rate)
        for index, each in zip(members, seconds, strict=True):
            busy[index] = max(busy[index], each)
    if mode != "turns":
        rates += caps
    rate = min(rates)
    bottleneck = max(range(len(options)), key=lambda index: busy[index])
    scale = max(rate, 1 / busy[bottleneck] if len(options) > 1 else rate)
    return Flow(rate, bottleneck, tuple(min(1.0, scale * each) for each in busy))


def _accelerator_rates(options: Sequence[Option]) -> Iterator[float]:
    seconds: dict[str, float] = {}
    for option in options:
        if not option.form.device.startswith("cpu"):
            seconds[option.form.device] = seconds.get(option.form.device, 0.0) + option.core_s[0]
    yield from (1 / each for each in seconds.values())


def _host_rate(options: Sequence[Option], mode: Mode, cores: int) -> float:
    """Accelerators are fed by the CPU; their share of it is missing elsewhere."""
    wanted = sum(least_core_seconds(option, mode, cores) for option in options)
    return cores / wanted if wanted else float("inf")


def _groups(options: Sequence[Option], cores: int) -> list[list[int]]:
    """Places of the stages on the CPU, joined where their core sets overlap."""
    groups: list[tuple[int, list[int]]] = []
    for index, option in enumerate(options):
        own = mask(option.form.device, cores)
        if not own:
            continue
        touching = [group for group in groups if group[0] & own]
        joined = reduce(or_, (theirs for theirs, _ in touching), own)
        members = [*(place for _, places in touching for place in places), index]
        groups = [group for group in groups if not group[0] & own] + [(joined, members)]
    return [members for _, members in groups]


def _group_flow(
    group: Sequence[Option], mode: Mode, cores: int, excess: Excess, at_least_per_s: float
) -> tuple[float, Sequence[float]]:
    """The rate of a group, and by stage the seconds per request in which it holds work."""
    masks = [mask(option.form.device, cores) for option in group]
    width = reduce(or_, masks).bit_count()
    match mode:
        case "together" | "single":
            matrix = excesses(excess, [option.form for option in group])
            return _shared(_demands(group, masks, mode), matrix, at_least_per_s)
        case "turns":
            return _turns(group, width)
        case "split":
            return _split(group, masks, width)


def _demands(group: Sequence[Option], masks: Sequence[int], mode: Mode) -> _Demands:
    width = reduce(or_, masks).bit_count()
    return _Demands(
        masks=masks,
        cost=[one_core_s(option) if mode == "single" else option.cpu_s for option in group],
        caps=[most_per_s(option, mode) for option in group],
        met=[met_s(option, mode, width) for option in group],
    )


def _shared(
    demands: _Demands, matrix: Sequence[Sequence[float]], at_least_per_s: float
) -> tuple[float, Sequence[float]]:
    cost, caps, masks = demands.cost, demands.caps, demands.masks
    sets = sorted(set(masks))
    unions = {reduce(or_, some) for size in range(1, len(sets) + 1) for some in combinations(sets, size)}
    most = _uncontended(cost, caps, masks, unions)

    def carries(rate: float) -> bool:
        factors = _factors(matrix, [min(1.0, rate * each) for each in demands.met])
        slowed = [each * factor for each, factor in zip(cost, factors, strict=True)]
        slower = [cap / factor for cap, factor in zip(caps, factors, strict=True)]
        return _uncontended(slowed, slower, masks, unions) >= rate

    if most < at_least_per_s or carries(most):
        return most, cost
    if not carries(at_least_per_s):
        return at_least_per_s * SHORT_OF, cost
    return _last(carries, at_least_per_s, most), cost


def _last(carries: Callable[[float], bool], low: float, high: float) -> float:
    """The largest rate that is carried, between one that is and one that is not."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if carries(middle) else (low, middle)
    return low


def _factors(matrix: Sequence[Sequence[float]], presence: Sequence[float]) -> list[float]:
    return [1 + sum(e * p for e, p in zip(row, presence, strict=True)) for row in matrix]


def _uncontended(
    cost: Sequence[float], caps: Sequence[float], masks: Sequence[int], unions: set[int]
) -> float:
    wanted = {
        union: sum(each for each, own in zip(cost, masks, strict=True) if own | union == union)
        for union in unions
    }
    return min(*caps, *(union.bit_count() / each for union, each in wanted.items() if each), float("inf"))


def _turns(group: Sequence[Option], width: int) -> tuple[float, Sequence[float]]:
    seconds = [option.cpu_s / width if short(option) else option.batch_s / option.batch for option in group]
    return 1 / sum(seconds), seconds


def _split(group: Sequence[Option], masks: Sequence[int], width: int) -> tuple[float, Sequence[float]]:
    share = max(1, width // 2)
    alone = [_on(option, own, width) for option, own in zip(group, masks, strict=True)]
    shared = [_on(option, own, share) for option, own in zip(group, masks, strict=True)]
    if width == 1 or len(group) == 1:
        return 1 / sum(alone), alone
    main = max(range(len(group)), key=lambda index: shared[index])
    rest_s = sum(shared) - shared[main]
    main_s = _on(group[main], masks[main], width - share)
    if rest_s <= main_s:
        return 1 / (rest_s + (1 - rest_s / main_s) * alone[main]), shared
    return 1 / (main_s + (1 - main_s / rest_s) * (sum(alone) - alone[main])), shared


def _on(option: Option, own: int, cores: int) -> float:
    return option.core_s[min(cores, own.bit_count()) - 1]
