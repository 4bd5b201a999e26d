"""A first-order thermal model fitted to temperatures and loads as they come: pure.

A device is taken as one heat capacity with one resistance to its surroundings,

    dT/dt = (T_amb + R P - T) / tau

with the load (0..1) as P, so that R is the rise at full load. For a given tau this says T = T_amb + R x, and
x is the load behind a first-order low pass of that time constant: a straight line, fitted by recursive least
squares with forgetting (as discounted sums) for each tau of a grid side by side; the one with the smallest
error counts. T_amb may drift with time. Unlike a regression on differences of T, noise of the sensor does not
bias it, and no fit can be unstable. While the load does not move, R and tau stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, expm1

import msgspec
import numpy as np
import numpy.typing as npt

MEMORY_S = 900.0
"""Time constant of forgetting: the sun moves, a fan fails, a door opens."""
TAUS_S = tuple(4.0 * 1.5**step for step in range(13))
"""4 s (a bare die) to 520 s (a closed cabinet)."""
MOST_RISE_C = 120.0
"""From the coldest surroundings to where silicon switches itself off."""
MOVED, LAGGED = 0.02, 0.002
"""Least variance of the load, and of the load behind a low pass, from which anything is learnt about R. The
first is that of half load for a tenth of the time."""
ENOUGH_S = 60.0
"""Least time before there is a fit."""
DEVIATION_S = 60.0
OUTLIER = 3.0
"""An error of more deviations than this counts in proportion to its first power (Huber's weights)."""
LEAST_DEVIATION_C = 0.5
"""Half a step of a sensor that knows whole degrees."""

_AT_ONCE_S = 1e-3

Floats = npt.NDArray[np.float64]


class Fit(msgspec.Struct, frozen=True):
    """The model in numbers."""

    ambient_c: float
    """Where the device settles without load."""
    rise_c: float
    """By how much more at full load."""
    tau_s: float
    deviation_c: float
    """Of readings from the model, on average."""


class Fitting:
    """Feed it with `pass_time` and `learn`, in this order; `fit` reads."""

    def __init__(self, taus_s: Sequence[float] = TAUS_S) -> None:
        self._taus_s: Floats = np.asarray((_AT_ONCE_S, *taus_s))
        self._load: float | None = None
        self._lagged: Floats = np.zeros(len(taus_s) + 1)
        """The load behind each low pass; the first does not hold it up."""
        self._deviation_c = LEAST_DEVIATION_C
        self._weight = 0.0
        self._mean_y = 0.0
        self._mean_x: Floats = np.zeros(len(taus_s) + 1)
        self._yy = 0.0
        """Discounted sums of squares and products round the means."""
        self._xx: Floats = np.zeros(len(taus_s) + 1)
        self._xy: Floats = np.zeros(len(taus_s) + 1)
        self._xt: Floats = np.zeros(len(taus_s) + 1)
        """The same against the time, whose mean lies `_age_s` back: the surroundings may drift."""
        self._yt = self._tt = self._age_s = 0.0
        self._rise: Floats = np.zeros(len(taus_s) + 1)
        self._best: int | None = None
        self.fit: Fit | None = None
        """None until the load has moved for long enough."""

    def pass_time(self, load: float | None, elapsed_s: float) -> None:
        """A step of constant load, 0..1; None: that of the step before."""
        load = self._load if load is None else load
        if load is None:
            return
        if self._load is None:
            self._lagged[:] = load
        self._load = load
        self._lagged += (load - self._lagged) * -np.expm1(-elapsed_s / self._taus_s)

    def learn(self, celsius: float, elapsed_s: float) -> None:
        """A temperature at the end of the step; bad ones count little."""
        if self._load is None or elapsed_s <= 0:
            return
        keep = exp(-elapsed_s / MEMORY_S)
        weight = elapsed_s * self._believed(celsius, elapsed_s)
        self._weight = self._weight * keep + weight
        share = weight / self._weight
        dx, dy = self._lagged - self._mean_x, celsius - self._mean_y
        dt_s = self._age_s = self._age_s + elapsed_s
        rest = weight * (1.0 - share)
        self._tt = self._tt * keep + rest * dt_s * dt_s
        self._yt = self._yt * keep + rest * dt_s * dy
        self._xt = self._xt * keep + rest * dt_s * dx
        self._age_s -= share * dt_s
        self._xx = self._xx * keep + rest * dx * dx
        self._xy = self._xy * keep + rest * dx * dy
        self._yy = self._yy * keep + rest * dy * dy
        self._mean_x += share * dx
        self._mean_y += share * dy
        self._settle()

    def _believed(self, celsius: float, elapsed_s: float) -> float:
        """Huber's weight of a reading by its distance from the fit; far ones do not move the scale."""
        if self.fit is None or self._best is None:
            return 1.0
        expected_c = self.fit.ambient_c + self.fit.rise_c * float(self._lagged[self._best])
        error_c, allowed_c = abs(celsius - expected_c), OUTLIER * self._deviation_c
        step = (min(error_c, allowed_c) - self._deviation_c) * -expm1(-elapsed_s / DEVIATION_S)
        self._deviation_c = max(LEAST_DEVIATION_C, self._deviation_c + step)
        return min(1.0, allowed_c / max(error_c, allowed_c))

    def _settle(self) -> None:
        """Draw the lines anew where the load has moved, and choose the best of those."""
        if self._tt <= 0:
            return
        # What is left of each when a straight drift over time is taken out.
        xx = self._xx - self._xt * self._xt / self._tt
        xy = self._xy - self._xt * self._yt / self._tt
        moved = (xx >= LAGGED * self._weight) & (xx[0] >= MOVED * self._weight)
        moved[0] = False
        rises = np.divide(xy, xx, out=self._rise.copy(), where=moved)
        self._rise = np.clip(rises, 0.0, MOST_RISE_C)
        squares = -self._rise * (2.0 * xy - self._rise * xx)
        if moved.any() and (self._weight >= ENOUGH_S or self.fit is not None):
            self._best = int(np.argmin(np.where(moved, squares, np.inf)))
        if self._best is not None:
            self.fit = self._line(self._best)

    def _line(self, best: int) -> Fit:
        rise_c = float(self._rise[best])
        drift_c_per_s = (self._yt - rise_c * float(self._xt[best])) / self._tt
        settled_c = self._mean_y - rise_c * float(self._mean_x[best])
        return Fit(
            ambient_c=settled_c + drift_c_per_s * self._age_s,
            rise_c=rise_c,
            tau_s=float(self._taus_s[best]),
            deviation_c=self._deviation_c,
        )
