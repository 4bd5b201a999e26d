"""How hot a device is and will be: filter, prediction, and how far predictions were off: pure."""

from __future__ import annotations

from collections import deque
from math import exp, isfinite
from statistics import median_low
from typing import TYPE_CHECKING

from edged.governor.trust import PLAUSIBLE_C

if TYPE_CHECKING:
    from edged.governor.fitting import Fit

HORIZONS_S = (10.0, 20.0, 30.0)
FIT_S = 3.0
"""Shortest step of the fit: half of the cost of a sample was here, and no time constant is shorter."""
FILTER_S = 2.0
"""Time constant of the low pass behind a median of three: a single bad reading is not seen at all, noise of a
degree is halved, a rise is shown three samples late."""
GAP_S = 60.0
"""After so long without a reading the filter begins anew."""
LONGEST_STEP_S = 86_400.0
"""Behind which nothing of what was is left."""
ERROR_S = 10.0
"""The prediction that is compared with what came: that of so long ago."""
ERROR_MEMORY_S = 60.0


class ThermalModel:
    """One device: feed it with `observe`; everything else reads."""

    def __init__(self) -> None:
        from edged.governor.fitting import Fitting  # numpy: a daemon without sensors starts without it

        self.celsius: float | None = None
        """Filtered; the last one for `GAP_S` after readings end, then None."""
        self.error_c: float | None = None
        """What is, less what was predicted for now `ERROR_S` ago; None before there was such a prediction."""
        self.mean_error_c: float | None = None
        """The same without its sign, averaged over a minute."""
        self._at_s: float | None = None
        self._seen_s = 0.0
        self._load: float | None = None
        self._span_s = self._work_s = 0.0
        self._latest: deque[float] = deque(maxlen=3)
        self._predictions: deque[tuple[float, float]] = deque(maxlen=256)
        self._fitting = Fitting()

    @property
    def fit(self) -> Fit | None:
        """What it has learnt; None until the load has moved for long enough."""
        return self._fitting.fit

    def observe(self, at_s: float, celsius: float | None, load: float | None) -> None:
        """Take note of a sample: a believed temperature or None, and the load since the sample before, 0..1.

        What is not finite counts as None; a sample that is not newer than the last is ignored.
        """
        if not isfinite(at_s) or (self._at_s is not None and at_s <= self._at_s):
            return
        elapsed_s = 0.0 if self._at_s is None else min(at_s - self._at_s, LONGEST_STEP_S)
        self._at_s = at_s
        self._pass_time(_share(load), elapsed_s)
        if celsius is None or not isfinite(celsius):
            self._outlive(at_s)
            return
        celsius = _plausible(celsius)
        self._learn(celsius)
        self._filter(celsius, at_s)
        self._compare(at_s)
        if load is not None and self.fit is not None:
            self._predictions.append((at_s + ERROR_S, self._ahead(ERROR_S, load, self.fit)))

    def predict(self, horizon_s: float, load: float) -> float | None:
        """Temperature in so many seconds if the load is this, 0..1; None while it is unknown or not fitted.

        Lies between the present temperature and where it would settle; never falls when the load rises.
        """
        if self.fit is None or self.celsius is None:
            return None
        return self._ahead(horizon_s, load, self.fit)

    def _ahead(self, horizon_s: float, load: float, fit: Fit) -> float:
        settles_c = _plausible(fit.ambient_c + fit.rise_c * (_share(load) or 0.0))
        now_c = settles_c if self.celsius is None else self.celsius
        ahead_c = settles_c + (now_c - settles_c) * exp(-max(horizon_s, 0.0) / fit.tau_s)
        return min(max(ahead_c, min(now_c, settles_c)), max(now_c, settles_c))  # rounding leads out of them

    def _pass_time(self, load: float | None, elapsed_s: float) -> None:
        self._load = self._load if load is None else load
        self._span_s += elapsed_s
        if self._load is not None:
            self._work_s += self._load * elapsed_s

    def _learn(self, celsius: float) -> None:
        """Hand on what has gathered since the last time, in one step."""
        if self._load is None or 0 < self._span_s < FIT_S:
            return
        mean = self._work_s / self._span_s if self._span_s > 0 else self._load
        self._fitting.pass_time(mean, self._span_s)
        self._fitting.learn(celsius, min(self._span_s, GAP_S))
        self._span_s = self._work_s = 0.0

    def _filter(self, celsius: float, at_s: float) -> None:
        elapsed_s = min(at_s - self._seen_s, LONGEST_STEP_S)
        if self.celsius is None or elapsed_s > GAP_S:
            elapsed_s = 0.0
            self._latest.clear()
            self.celsius = celsius
        self._latest.append(celsius)
        self.celsius += (median_low(self._latest) - self.celsius) * (1.0 - exp(-elapsed_s / FILTER_S))
        self._seen_s = at_s

    def _outlive(self, at_s: float) -> None:
        if at_s - self._seen_s > GAP_S:
            self.celsius = None
            self._predictions.clear()

    def _compare(self, at_s: float) -> None:
        """With the newest prediction that is due; ones from before a pause are dropped."""
        due = None
        while self._predictions and self._predictions[0][0] <= at_s:
            due = self._predictions.popleft()
        if due is None or self.celsius is None or at_s - due[0] > ERROR_S:
            return
        self.error_c = self.celsius - due[1]
        size = abs(self.error_c)
        before = size if self.mean_error_c is None else self.mean_error_c
        self.mean_error_c = before + (size - before) / ERROR_MEMORY_S


def _share(load: float | None) -> float | None:
    return None if load is None or not isfinite(load) else min(max(load, 0.0), 1.0)


def _plausible(celsius: float) -> float:
    low, high = PLAUSIBLE_C
    return min(max(celsius, low), high)
