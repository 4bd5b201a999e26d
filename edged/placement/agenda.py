"""What to measure next, from what is known already: pure.

Three passes. `coarse`: every form at batch 1, and at batch 8 unless it is dominated. `pairs`: the cheapest
and the quickest form of each stage beside those of the other stages, all on all cores and all on one core.
`fine`: the promising forms at every batch and at other lengths, in more rounds.

There is no state but the table, so an interrupted calibration goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations, product

import msgspec

from edged.placement.forms import Candidate
from edged.placement.table import Failure, Form, Pair, Point, Table, Weight, Work

COARSE_BATCHES = (1, 8)
FINE_BATCHES = (1, 2, 4, 8, 16)
FINE_ROUNDS = 3
OTHER_LENGTHS: tuple[Work, ...] = ("short", "long")
DOMINATED = 2.0
"""A form is dominated by one with the same weights, options and kind of silicon that needs less than half
the time and less than half the CPU at every batch that both have run, and not twice the memory."""
PROMISING = 1.5
"""A form is refined when it is within this factor of its stage's best on the same kind of silicon, in time
of a single request, or in CPU seconds or time per request at its best batch."""
COARSE_SHARE = 0.6
"""Of the budget: then pairs go before the rest of the coarse pass, so that a short budget has some."""


class Cell(msgspec.Struct, frozen=True):
    """A batch of one kind of requests, to be run in at least so many rounds."""

    batch: int
    work: Work = "typical"
    rounds: int = 1


class Solo(msgspec.Struct, frozen=True):
    """Measure a form by itself."""

    candidate: Candidate
    cells: tuple[Cell, ...]


class Duo(msgspec.Struct, frozen=True):
    """Measure two forms of different stages side by side."""

    first: Candidate
    second: Candidate
    first_batch: int
    second_batch: int


Task = Solo | Duo
Measure = Callable[[Collection[Point]], float]


class Known:
    """The table by form: what the decisions look up."""

    def __init__(self, table: Table) -> None:
        self.points: dict[Form, dict[tuple[int, Work], Point]] = {}
        for point in table.points:
            self.points.setdefault(point.form, {})[point.batch, point.work] = point
        self.weights: Mapping[Form, Weight] = {weight.form: weight for weight in table.weights}
        self.failures: dict[Form, list[Failure]] = {}
        for failure in table.failures:
            self.failures.setdefault(failure.form, []).append(failure)
        self.pairs = {_key(pair) for pair in table.pairs}

    def broken(self, form: Form) -> bool:
        """Whether the form does not run at all."""
        return any(not failure.batch for failure in self.failures.get(form, ()))

    def fails(self, form: Form, cell: Cell) -> bool:
        """Whether this batch, or a smaller one of the same requests, has failed."""
        failures = self.failures.get(form, ())
        return any(failure.work == cell.work and failure.batch <= cell.batch for failure in failures)

    def typical(self, form: Form) -> dict[int, Point]:
        """Points of typical work by batch."""
        return {batch: p for (batch, work), p in self.points.get(form, {}).items() if work == "typical"}


def agenda(candidates: Sequence[Candidate], table: Table, spent_share: float = 0.0) -> list[Task]:
    """Everything that is still to be measured, in order; `spent_share` of the budget is used up."""
    known = Known(table)
    alive = [candidate for candidate in candidates if not known.broken(candidate.form)]
    coarse, pairs = list(_coarse(alive, known)), list(_pairs(alive, known))
    first = [*pairs, *coarse] if spent_share >= COARSE_SHARE else [*coarse, *pairs]
    return [*first, *_fine(alive, known)]


def _coarse(alive: Sequence[Candidate], known: Known) -> Iterator[Task]:
    """By place in their stage's list, so that every stage has its likeliest form measured soon."""
    for candidate in _interleaved(alive):
        have = known.points.get(candidate.form, {})
        wanted = COARSE_BATCHES[:1] if dominated(candidate, alive, known) else COARSE_BATCHES
        cells = [Cell(n) for n in _possible(candidate, wanted) if (n, "typical") not in have]
        yield from _solo(candidate, cells, known)


def _fine(alive: Sequence[Candidate], known: Known) -> Iterator[Task]:
    promising = [c for c in alive if _promising(c, alive, known) and not dominated(c, alive, known)]
    for candidate in sorted(promising, key=lambda c: _cheapest(known.typical(c.form).values())):
        have = known.points.get(candidate.form, {})
        cells = [Cell(batch, "typical", FINE_ROUNDS) for batch in _possible(candidate, FINE_BATCHES)]
        cells += [
            Cell(batch, work) for work in OTHER_LENGTHS for batch in _possible(candidate, COARSE_BATCHES)
        ]
        missing = [cell for cell in cells if _rounds(have, cell) < cell.rounds]
        yield from _solo(candidate, missing, known)


def _solo(candidate: Candidate, cells: Sequence[Cell], known: Known) -> Iterator[Task]:
    possible = tuple(cell for cell in cells if not known.fails(candidate.form, cell))
    if possible:
        yield Solo(candidate, possible)


def _rounds(have: Mapping[tuple[int, Work], Point], cell: Cell) -> int:
    point = have.get((cell.batch, cell.work))
    return point.rounds if point else 0


def _possible(candidate: Candidate, batches: Sequence[int]) -> list[int]:
    return [batch for batch in batches if not candidate.most_batch or batch <= candidate.most_batch]


def _interleaved(candidates: Sequence[Candidate]) -> list[Candidate]:
    places: dict[str, int] = {}
    ranked = []
    for candidate in candidates:
        place = places[candidate.form.stage] = places.get(candidate.form.stage, -1) + 1
        ranked.append((place, candidate))
    return [candidate for _, candidate in sorted(ranked, key=lambda pair: pair[0])]


def dominated(candidate: Candidate, alive: Sequence[Candidate], known: Known) -> bool:
    """Whether another form does the same work for less than half in every respect: see `DOMINATED`."""
    mine = known.typical(candidate.form)
    return bool(mine) and any(
        _dominates(known, other.form, candidate.form, mine)
        for other in alive
        if other.silicon == candidate.silicon and _same_work(other.form, candidate.form)
    )


def _same_work(one: Form, other: Form) -> bool:
    """Same answers: another variant or another promise may be wanted for its quality."""
    same = ("stage", "model", "variant", "options")
    return one != other and all(getattr(one, name) == getattr(other, name) for name in same)


def _dominates(known: Known, better: Form, worse: Form, mine: Mapping[int, Point]) -> bool:
    theirs = known.typical(better)
    both = theirs.keys() & mine.keys()
    weights = known.weights.get(better), known.weights.get(worse)
    lean = weights[0] is None or weights[1] is None or _lean(weights[0], weights[1])
    return (
        bool(both)
        and lean
        and all(
            theirs[batch].wall_s * DOMINATED < mine[batch].wall_s
            and theirs[batch].cpu_s * DOMINATED < mine[batch].cpu_s
            for batch in both
        )
    )


def _lean(better: Weight, worse: Weight) -> bool:
    return better.memory_bytes < worse.memory_bytes * DOMINATED


def _promising(candidate: Candidate, alive: Sequence[Candidate], known: Known) -> bool:
    mine = known.typical(candidate.form)
    rivals = [
        known.typical(other.form)
        for other in alive
        if other.form.stage == candidate.form.stage and other.silicon == candidate.silicon
    ]
    measured = [points for points in rivals if points]
    if not mine or not measured:
        return False
    return any(
        measure(mine.values()) <= PROMISING * min(measure(points.values()) for points in measured)
        for measure in (_quickest, _cheapest, _briskest)
    )


def _quickest(points: Collection[Point]) -> float:
    """Seconds of a single request."""
    return min(point.wall_s for point in points if point.batch == min(p.batch for p in points))


def _cheapest(points: Collection[Point]) -> float:
    """CPU seconds of a request at the best batch; on silicon that uses none, seconds."""
    return min(point.cpu_s / point.batch for point in points)


def _briskest(points: Collection[Point]) -> float:
    """Seconds of a request at the best batch."""
    return min(point.wall_s / point.batch for point in points)


def _pairs(alive: Sequence[Candidate], known: Known) -> Iterator[Task]:
    """The cheapest forms of every two stages first, then the quickest beside the cheapest and each other."""
    modes = _thread_modes(alive)
    for which in product((_cheapest, _quickest), repeat=2):
        for mode in modes:
            for one, other in combinations(dict.fromkeys(c.form.stage for c in alive), 2):
                first = _best(alive, known, one, mode, which[0])
                second = _best(alive, known, other, mode, which[1])
                if first and second:
                    duo = Duo(first, second, _best_batch(known, first), _best_batch(known, second))
                    if (first.form, second.form) not in known.pairs:
                        known.pairs.add((first.form, second.form))
                        yield duo


def _thread_modes(alive: Sequence[Candidate]) -> tuple[int, ...]:
    """All cores each, and one core each."""
    counts = {candidate.form.threads for candidate in alive if candidate.form.threads}
    return tuple(sorted({max(counts), min(counts)}, reverse=True)) if counts else (0,)


def _best(
    alive: Sequence[Candidate], known: Known, stage: str, mode: int, measure: Measure
) -> Candidate | None:
    """The best form of a stage among those with so many threads, or none (other silicon)."""
    fitting = [
        candidate
        for candidate in alive
        if candidate.form.stage == stage
        and candidate.form.threads in {0, mode}
        and any(batch in COARSE_BATCHES for batch in known.typical(candidate.form))
    ]
    return min(fitting, key=lambda c: measure(known.typical(c.form).values()), default=None)


def _best_batch(known: Known, candidate: Candidate) -> int:
    """Of the coarse batches the one with the fewest CPU seconds a request."""
    points = known.typical(candidate.form)
    return min((n for n in points if n in COARSE_BATCHES), key=lambda n: points[n].cpu_s / n)


def _key(pair: Pair) -> tuple[Form, Form]:
    return pair.first, pair.second
