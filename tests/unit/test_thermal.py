"""The thermal model against a plant whose truth is known: it converges, stays sane, and follows the load."""

from __future__ import annotations

from copy import deepcopy
from math import exp, inf, isfinite, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.governor.thermal import GAP_S, HORIZONS_S, ThermalModel
from edged.governor.trust import PLAUSIBLE_C

LOW_C, HIGH_C = PLAUSIBLE_C


class Plant:
    """One heat capacity: dT/dt = (ambient + rise P - T) / tau, exact for a constant load in a step."""

    def __init__(self, ambient_c: float, rise_c: float, tau_s: float) -> None:
        self.ambient_c, self.rise_c, self.tau_s = ambient_c, rise_c, tau_s
        self.celsius = ambient_c

    def step(self, load: float, seconds: float) -> float:
        settles_c = self.ambient_c + self.rise_c * load
        self.celsius = settles_c + (self.celsius - settles_c) * exp(-seconds / self.tau_s)
        return self.celsius


def follow(
    model: ThermalModel, plant: Plant, seconds: int, seed: int, *, noise_c: float = 1.0, lies: float = 0.0
) -> list[float]:
    """Loads that change every 37 s, whole degrees, noise; the errors of the second half."""
    draw = np.random.default_rng(seed)
    errors: list[float] = []
    load = 0.0
    for second in range(seconds):
        if second % 37 == 0:
            load = float(draw.random())
        celsius = round(plant.step(load, 1.0) + draw.normal(0, noise_c))
        if draw.random() < lies:
            celsius = draw.uniform(LOW_C, HIGH_C)
        model.observe(float(second), float(celsius), load)
        if second > seconds / 2 and model.error_c is not None:
            errors.append(model.error_c)
    return errors


def test_it_finds_the_truth_behind_noise():
    """Half an hour of a noisy sensor of whole degrees settles most plants, not each: a load that happens to
    rise all the time looks like surroundings that warm up."""
    draw = np.random.default_rng(4)
    errors_c, ratios = [], []
    for seed in range(40):
        ambient_c, rise_c, tau_s = draw.uniform(0, 55), draw.uniform(15, 45), draw.uniform(15, 90)
        model = ThermalModel()
        follow(model, Plant(ambient_c, rise_c, tau_s), 1800, seed)
        fit = model.fit
        assert fit is not None
        errors_c.append(
            max(abs(fit.ambient_c - ambient_c + (fit.rise_c - rise_c) * load) for load in (0.2, 0.8))
        )
        ratios.append(fit.tau_s / tau_s)
    assert np.median(errors_c) < 1.5
    assert np.quantile(errors_c, 0.9) < 4.0
    assert np.median(ratios) == pytest.approx(1.0, rel=0.1)
    assert np.quantile(ratios, 0.05) > 0.5
    assert np.quantile(ratios, 0.95) < 1.5


@pytest.mark.parametrize("tau_s", [30.0, 120.0, 300.0])
@pytest.mark.parametrize("lies", [0.0, 0.03])
def test_predictions_of_ten_seconds_are_right_within_two_degrees(tau_s, lies):
    errors = follow(ThermalModel(), Plant(45.0, 30.0, tau_s), 1800, 1, lies=lies)
    assert np.sqrt(np.mean(np.square(errors))) < 2.0
    assert abs(np.mean(errors)) < 0.75


def test_surroundings_that_warm_up_are_not_taken_for_the_load():
    model, plant = ThermalModel(), Plant(40.0, 30.0, 60.0)
    draw, load = np.random.default_rng(2), 0.0
    for second in range(3600):
        load = float(draw.random()) if second % 41 == 0 else load
        plant.ambient_c = 40.0 + second / 240
        model.observe(float(second), plant.step(load, 1.0), load)
    assert model.fit.rise_c == pytest.approx(30, abs=3)
    assert model.fit.ambient_c == pytest.approx(55, abs=2)


def test_what_was_learnt_outlives_hours_without_load():
    model, plant = ThermalModel(), Plant(40.0, 30.0, 60.0)
    follow(model, plant, 1800, 3)
    before = model.fit
    for second in range(1800, 1800 + 4 * 3600):
        model.observe(float(second), round(plant.step(0.02, 1.0)), 0.02)
    assert model.fit.rise_c == pytest.approx(before.rise_c, rel=0.1)
    assert model.fit.tau_s == before.tau_s
    assert model.predict(1e6, 1.0) == pytest.approx(70, abs=6)


def test_without_a_load_that_moves_it_predicts_nothing():
    model = ThermalModel()
    for second in range(600):
        model.observe(float(second), 50.0, 0.3)
    assert (model.celsius, model.fit, model.predict(10.0, 1.0)) == (50.0, None, None)
    assert model.error_c is None


def test_one_bad_sample_is_not_seen_and_a_long_gap_forgets_the_temperature():
    model = ThermalModel()
    for second in range(20):
        model.observe(float(second), 90.0 if second == 10 else 50.0, 0.3)
        assert model.celsius == 50.0
    model.observe(25.0, None, 0.3)
    assert model.celsius == 50.0
    model.observe(26.0 + GAP_S, None, 0.3)
    assert model.celsius is None
    model.observe(27.0 + GAP_S, 40.0, 0.3)
    assert model.celsius == 40.0


number = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([nan, inf, -inf, 1e308]))
samples = st.lists(
    st.tuples(
        st.one_of(st.floats(0.05, 5), number), st.one_of(st.none(), number), st.one_of(st.none(), number)
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def taught() -> ThermalModel:
    model = ThermalModel()
    follow(model, Plant(45.0, 25.0, 60.0), 600, 4)
    return model


@settings(max_examples=150, deadline=None)
@given(samples, st.booleans(), st.floats(0, 300), number)
def test_no_samples_make_it_predict_nonsense(taught, samples, trained, horizon_s, load):
    model, now = (deepcopy(taught), 600.0) if trained else (ThermalModel(), 0.0)
    for step_s, celsius, share in samples:
        now += step_s
        model.observe(now, celsius, share)
        predicted = model.predict(horizon_s, load)
        for value in (model.celsius, predicted, model.error_c, model.mean_error_c):
            assert value is None or isfinite(value)
        assert predicted is None or LOW_C <= predicted <= HIGH_C
        if trained and model.celsius is not None:
            assert isfinite(model.fit.ambient_c)
            assert model.fit.rise_c >= 0


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(HORIZONS_S))
def test_more_load_is_never_cooler_and_a_prediction_lies_on_the_way(taught, one, other, horizon_s):
    model = taught
    less, more = sorted((one, other))
    assert model.predict(horizon_s, less) <= model.predict(horizon_s, more) + 1e-9
    settles_c, now_c = model.predict(1e9, more), model.celsius
    low, high = sorted((settles_c, now_c))
    assert low - 1e-9 <= model.predict(horizon_s, more) <= high + 1e-9
    assert abs(model.predict(0.0, more) - now_c) < 1e-9
