"""How much stages slow one another down beyond sharing cores fairly, out of the pair measurements: pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import msgspec

from edged.dispatch.leases import Mode
from edged.placement import fairness
from edged.placement.cores import mask
from edged.placement.prices import Prices
from edged.placement.table import Form, Pair, Point, Table

Excess = Callable[[Form, Form], float]
"""`excess(a, b)`: by what factor `a` needs longer beside `b`, fair sharing of cores aside; at least 1."""


class Interference:
    """Excess slowdowns of forms by what they run beside.

    A pair that was not measured is taken to behave as the nearest that was: the same stages on the same
    backends with the same threads, else the same stages; else nothing is added. Called, it
    answers for forms with all their threads.
    """

    def __init__(self, table: Table, prices: Prices, cores: int) -> None:
        self._prices = prices
        self._cores = cores
        self._found: dict[tuple[object, ...], list[float]] = defaultdict(list)
        for pair in table.pairs:
            self._add(pair)
        self._known = {key: statistics.median(values) for key, values in self._found.items()}
        self._cache: dict[tuple[Form, Form], float] = {}
        self._single: dict[tuple[Form, Form], float] = {}

    @property
    def nothing_known(self) -> bool:
        """Whether no pair was measured."""
        return not self._known

    def __call__(self, form: Form, beside: Form) -> float:
        """See `Excess`."""
        key = (form, beside)
        if key not in self._cache:
            found = (self._known[near] for near in _nearness(form, beside) if near in self._known)
            self._cache[key] = next(found, 1.0)
        return self._cache[key]

    def on_single_cores(self, form: Form, beside: Form) -> float:
        """The same when both run on one thread: what threads that fight for cores have shown says nothing."""
        key = (form, beside)
        if key not in self._single:
            *same_threads, _ = _nearness(_of_one_thread(form), _of_one_thread(beside))
            self._single[key] = next((self._known[near] for near in same_threads if near in self._known), 1.0)
        return self._single[key]

    def under(self, mode: Mode) -> Excess:
        """What holds in a lease mode."""
        return self.on_single_cores if mode == "single" else self

    def _add(self, pair: Pair) -> None:
        first_fair, second_fair = self._fair(pair)
        for form, beside, slowdown, fair in (
            (pair.first, pair.second, pair.first_slowdown, first_fair),
            (pair.second, pair.first, pair.second_slowdown, second_fair),
        ):
            for near in _nearness(form, beside):
                self._found[near].append(max(1.0, slowdown / fair))

    def _fair(self, pair: Pair) -> list[float]:
        """The slowdowns when two just divide the cores that they share."""
        masks = [mask(form.device, self._cores) for form in (pair.first, pair.second)]
        if not masks[0] & masks[1]:
            return [1.0, 1.0]
        wanted = (self._busy(pair.first, pair.first_batch), self._busy(pair.second, pair.second_batch))
        return fairness.slowdowns(wanted, masks)

    def _busy(self, form: Form, batch: int) -> float:
        """Cores that a form keeps busy, on average over a batch."""
        point = _nearest(self._prices.siblings(form).get(form.threads, {}), batch)
        return point.cpu_s / point.wall_s if point else float(max(form.threads, 1))


def excesses(excess: Excess, forms: Sequence[Form]) -> list[list[float]]:
    """The matrix of `excess(a, b) - 1` of some forms; 0 on the diagonal."""
    return [
        [0.0 if row == column else excess(a, b) - 1 for column, b in enumerate(forms)]
        for row, a in enumerate(forms)
    ]


def _of_one_thread(form: Form) -> Form:
    return msgspec.structs.replace(form, threads=1) if form.threads else form


def _nearness(form: Form, beside: Form) -> tuple[tuple[object, ...], ...]:
    """Keys from the very pair to the two stages as such."""
    kind = (form.stage, form.backend, form.threads, beside.stage, beside.backend, beside.threads)
    return (form, beside), kind, (form.stage, beside.stage)


def _nearest(points: Mapping[int, Point], batch: int) -> Point | None:
    return min(points.values(), key=lambda point: abs(point.batch - batch), default=None)
