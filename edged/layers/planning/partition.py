"""Which stage gets how many layers: evenly, or as suits the devices. Pure and exact."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heapreplace
from math import inf
from typing import NamedTuple

import msgspec

from edged.errors import ConfigError
from edged.layers.planning.bubble import around_s, period_s
from edged.layers.planning.costs import LayerCosts, Sizes
from edged.layers.schedule import Mode
from edged.layers.share import Share

EPSILON = 1e-9
"""Relative difference below which two times are one."""
MAX_CANDIDATES = 64
MAX_TRIED = 100_000
"""Layers times devices squared, which the search's time grows with: some seconds."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A device that may get a stage."""

    id: str
    speed: float = 1.0
    """Relative: a layer takes `LayerCosts.layer_s / speed` there."""
    memory_bytes: int = 0
    """What weights and KV cache may take there; 0 is unknown, and then nothing is refused."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition is judged by beside costs and sizes."""

    mode: Mode = "ring"
    micro_batches: int = 1
    """How many are under way when they are judged: no more than there are requests for."""
    sequences: int = 1
    """That have a KV cache at the same time."""


class Placed(NamedTuple):
    """A stage on its device."""

    place: int
    """Of the device among the candidates, of which several may have one name."""
    candidate: Candidate
    share: Share


def even(layers: int, stages: int) -> tuple[Share, ...]:
    """Give every stage as many layers as the others, and the first `layers mod stages` one more.

    Raises `ConfigError` when there are fewer layers than stages.

    >>> [share.layers for share in even(30, 4)], [share.layers for share in even(10, 3)]
    ([8, 8, 7, 7], [4, 3, 3])
    """
    if not 1 <= stages <= layers:
        raise ConfigError(
            f"stages = {stages} is not possible with {layers} layers: every stage needs one; "
            f"take 1 to {layers} stages",
            param="stages",
        )
    size, more = divmod(layers, stages)
    return shares([size + (stage < more) for stage in range(stages)])


def shares(sizes: Sequence[int]) -> tuple[Share, ...]:
    """Lay stages of these sizes one behind the other: embedding in the first, head in the last."""
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return tuple(
        Share(first=end - size, end=end, embedding=index == 0, head=index == len(sizes) - 1)
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )


def stage_bytes(share: Share, sizes: Sizes, sequences: int) -> int:
    """Weights and KV cache of a stage."""
    return sizes.weights(share) + share.layers * sequences * sizes.cache_bytes


def stage_seconds(placed: Placed, costs: LayerCosts) -> float:
    """Seconds of one micro-batch in one decode step."""
    share = placed.share
    return costs.seconds(share.layers, embedding=share.embedding, head=share.head) / placed.candidate.speed


def weighted(
    sizes: Sizes, costs: LayerCosts, candidates: Sequence[Candidate], load: Load
) -> tuple[Placed, ...]:
    """Find the partition with the least time per micro-batch and token; devices stay in their order.

    With as many micro-batches as stages, or more, that time is the busiest stage's: the least maximum. With
    fewer, the way through all stages counts, and with `flush` a mixture. A device without which that time is
    no longer is left out, the slowest first. Of equals the one with fewer stages wins, then the shorter way.

    Raises `ConfigError` when the model fits no partition, with what is missing.
    """
    if not 1 <= len(candidates) <= MAX_CANDIDATES:
        raise ConfigError(
            f"{len(candidates)} devices cannot be planned; give 1 to {MAX_CANDIDATES}", param="devices"
        )
    if sizes.layers * len(candidates) ** 2 > MAX_TRIED:
        raise ConfigError(
            f"{sizes.layers} layers over {len(candidates)} devices take too long to be weighed against each "
            "other; split evenly, or name fewer devices",
            param="devices",
        )
    search = _Search(sizes, costs, candidates, load)
    found = search.best(range(len(candidates)))
    if found is None:
        raise ConfigError(_missing(sizes, candidates, load.sequences), param="devices")
    for place in sorted(found.counts, key=lambda place: candidates[place].speed):
        without = search.best([other for other in found.counts if other != place])
        if without and without.key[0] <= found.key[0] * (1 + EPSILON):
            found = without
    laid = shares(list(found.counts.values()))
    return tuple(
        Placed(place, candidates[place], share) for place, share in zip(found.counts, laid, strict=True)
    )


class _Row(NamedTuple):
    """A device in one assignment of the ends: what it takes at least, and a layer."""

    place: int
    base_s: float
    layer_s: float
    least: int
    most: int
    """By memory and the number of layers."""

    def most_within(self, limit_s: float) -> int:
        """How many layers keep the stage within `limit_s`."""
        if self.layer_s <= 0:
            return self.most if self.base_s <= limit_s * (1 + EPSILON) else 0
        return min(self.most, int((limit_s * (1 + EPSILON) - self.base_s) / self.layer_s))


class _Found(NamedTuple):
    """A partition, and what it is judged by: the smaller the better."""

    key: tuple[float, ...]
    """Seconds per micro-batch and token, number of stages, the way through them, unevenness."""
    counts: dict[int, int]
    """Layers of each device that has any."""


class _Search:
    """All pairs of a first and a last device; between them a device may stay without layers."""

    def __init__(self, sizes: Sizes, costs: LayerCosts, candidates: Sequence[Candidate], load: Load) -> None:
        self._sizes, self._costs, self._candidates, self._load = sizes, costs, candidates, load
        self._best: _Found | None = None

    def best(self, places: Sequence[int]) -> _Found | None:
        """Return the best partition over these devices; None when nothing fits."""
        self._best = None
        for begin, first in enumerate(places):
            for end, last in enumerate(places[begin:], begin + 1):
                self._consider(
                    [self._row(place, place == first, place == last) for place in places[begin:end]]
                )
        return self._best

    def _row(self, index: int, embedding: bool, head: bool) -> _Row:  # noqa: FBT001 - which ends it holds
        candidate = self._candidates[index]
        room = _room(self._sizes, candidate, self._load.sequences, embedding=embedding, head=head)
        return _Row(
            place=index,
            base_s=self._costs.seconds(0, embedding=embedding, head=head) / candidate.speed,
            layer_s=self._costs.layer_s / candidate.speed,
            least=int(embedding or head),
            most=min(room, self._sizes.layers),
        )

    def _consider(self, rows: list[_Row]) -> None:
        counts = _balanced(rows, self._sizes.layers)
        if counts is None:
            return
        self._judge(rows, counts)
        shortest = _shortest_way(rows, [row.most for row in rows], self._sizes.layers, self._costs.hop_s)
        if shortest is None:
            return
        self._judge(rows, shortest)
        used_s = _used(rows, shortest)
        least_s = around_s(used_s, self._costs.hop_s)
        limits = sorted({row.base_s + count * row.layer_s for row in rows for count in _counts(row)})
        begin = bisect_left(limits, max(_used(rows, counts)) * (1 - EPSILON))
        for limit_s in limits[begin : bisect_left(limits, max(used_s))]:  # from there on it is `shortest`
            if self._hopeless(least_s, limit_s):
                return
            most = [row.most_within(limit_s) for row in rows]
            found = _shortest_way(rows, most, self._sizes.layers, self._costs.hop_s)
            if found is not None:
                self._judge(rows, found)

    def _judge(self, rows: list[_Row], counts: list[int]) -> None:
        used_s = _used(rows, counts)
        through_s = sum(used_s)
        spread = sum(each * each for each in used_s)
        key = (self._price(used_s), float(len(used_s)), through_s, spread)
        if self._best is None or _less(key, self._best.key):
            held = {row.place: count for row, count in zip(rows, counts, strict=True) if count}
            self._best = _Found(key, held)

    def _price(self, used_s: Sequence[float]) -> float:
        return self._period(around_s(used_s, self._costs.hop_s), max(used_s))

    def _period(self, way_s: float, busiest_s: float) -> float:
        load = self._load
        return period_s(load.mode, way_s, busiest_s, load.micro_batches) / load.micro_batches

    def _hopeless(self, least_s: float, limit_s: float) -> bool:
        """Whether no partition that takes `limit_s` on its busiest stage, `least_s` at best, can win."""
        least = self._period(max(least_s, limit_s), limit_s)
        return self._best is not None and least > self._best.key[0] * (1 + EPSILON)


def _counts(row: _Row) -> Iterable[int]:
    return range(row.least, row.most + 1)


def _used(rows: Sequence[_Row], counts: Sequence[int]) -> list[float]:
    """Return the seconds of each stage; a device without layers is none."""
    return [row.base_s + count * row.layer_s for row, count in zip(rows, counts, strict=True) if count]


def _balanced(rows: Sequence[_Row], layers: int) -> list[int] | None:
    """Give layer after layer to the device that has then the shortest stage; None when they do not fit.

    Equal jobs on unlike machines: the greedy choice has the least maximum.
    """
    counts = [row.least for row in rows]
    if any(row.most < row.least for row in rows if row.least) or sum(counts) > layers:
        return None
    if sum(max(row.most, 0) for row in rows) < layers:
        return None
    heap = [(after, place) for place, after in _offers(rows, counts)]
    heapify(heap)
    for _ in range(layers - sum(counts)):
        _, place = heap[0]
        counts[place] += 1
        row = rows[place]
        full = counts[place] >= row.most
        after = inf if full else row.base_s + (counts[place] + 1) * row.layer_s
        heapreplace(heap, (after, place))
    return counts


def _offers(rows: Sequence[_Row], counts: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Yield each device and how long its stage would be with one layer more."""
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        full = count >= row.most
        yield place, inf if full else row.base_s + (count + 1) * row.layer_s


def _shortest_way(rows: Sequence[_Row], most: Sequence[int], layers: int, hop_s: float) -> list[int] | None:
    """Return how many layers each device takes, so that all stages together take the least time.

    Exact: after each device, the least time is known for every number of layers that are laid by then. Only
    the ends need a stage; a device without one costs nothing. None when `most` of each is too little.
    """
    costs_s = [0.0] + [inf] * layers
    choices: list[list[int]] = []
    for row, top in zip(rows, most, strict=True):
        costs_s, taken = _with(row, top, costs_s, hop_s)
        choices.append(taken)
    if costs_s[layers] == inf:
        return None
    counts: list[int] = []
    for taken in reversed(choices):
        counts.append(taken[layers])
        layers -= taken[layers]
    return counts[::-1]


def _with(row: _Row, most: int, costs_s: list[float], hop_s: float) -> tuple[list[float], list[int]]:
    """Let one more device take 0 to `most` layers: the least time by layers laid, and how many it takes then.

    A window holds the numbers of layers before it from which it can still be reached, the cheapest first.
    """
    after_s = [inf] * len(costs_s) if row.least else list(costs_s)
    taken = [0] * len(costs_s)
    window: deque[tuple[float, int]] = deque()
    for laid in range(1, len(costs_s)):
        value_s = costs_s[laid - 1] - (laid - 1) * row.layer_s
        while window and window[-1][0] >= value_s:
            window.pop()
        window.append((value_s, laid - 1))
        while window and window[0][1] < laid - most:
            window.popleft()
        if window and (total_s := window[0][0] + laid * row.layer_s + row.base_s + hop_s) < after_s[laid]:
            after_s[laid], taken[laid] = total_s, laid - window[0][1]
    return after_s, taken


def _less(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether one key is smaller, by more than rounding, where they first differ."""
    for mine, theirs in zip(one, other, strict=True):
        if abs(mine - theirs) > EPSILON * max(abs(mine), abs(theirs)):
            return mine < theirs
    return False


def _room(sizes: Sizes, candidate: Candidate, sequences: int, *, embedding: bool, head: bool) -> int:
    """Layers that fit beside the ends that a device holds; negative when the ends alone do not fit."""
    each = sizes.layer_bytes + sequences * sizes.cache_bytes
    if not candidate.memory_bytes or not each:
        return sizes.layers
    return (candidate.memory_bytes - sizes.ends(embedding=embedding, head=head)) // each


def _missing(sizes: Sizes, candidates: Sequence[Candidate], sequences: int) -> str:
    each = sizes.layer_bytes + sequences * sizes.cache_bytes
    held, rooms = max(
        _held(sizes, candidates[first : last + 1], sequences)
        for first in range(len(candidates))
        for last in range(first, len(candidates))
    )
    missing = (sizes.layers - held) * each
    taken = ", ".join(rooms)
    return (
        f"{sizes.layers} layers of {mib(each)} (weights, and KV cache for {sequences} sequences), an "
        f"embedding of {mib(sizes.embedding_bytes)} and a head of {mib(sizes.head_bytes)} do not fit: {taken}"
        f"; about {mib(missing)} are missing: add a device, or take a smaller context, fewer or smaller "
        f"micro-batches, or a narrower dtype"
    )


def _held(sizes: Sizes, used: Sequence[Candidate], sequences: int) -> tuple[int, list[str]]:
    """Layers that these devices hold between them; ends that do not fit count as layers owed."""
    rooms = [
        _room(sizes, each, sequences, embedding=place == 0, head=place == len(used) - 1)
        for place, each in enumerate(used)
    ]
    held = sum(room if place in {0, len(used) - 1} else max(room, 0) for place, room in enumerate(rooms))
    words = [
        f"{each.id} ({mib(each.memory_bytes)}) takes {max(room, 0)}"
        for each, room in zip(used, rooms, strict=True)
    ]
    return held, words


def mib(count: int) -> str:
    """Write a size in MiB.

    >>> mib(3 << 20)
    '3.0 MiB'
    """
    return f"{count / (1 << 20):,.1f} MiB"
