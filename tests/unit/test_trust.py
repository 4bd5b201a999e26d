"""Which readings are believed: each kind of lie by its name, votes, and nothing believed too early."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.governor.devices import device_of, is_part
from edged.governor.readings import Frequency, Readings, Temperature
from edged.governor.senses import NO_SENSOR, Sensing, hottest, remarks
from edged.governor.trust import AGREE_C, PLAUSIBLE_C, SETTLED, STUCK_AFTER, Judgement, Trust, vote

LONG = STUCK_AFTER["cpu"]


class Box:
    """One device, second by second."""

    def __init__(self, device: str = "cpu") -> None:
        self.trust, self.device, self.now = Trust(), device, 0.0

    def say(self, celsius: float | None, load: float | None = 0.5, *, after_s: float = 1.0) -> Judgement:
        self.now += after_s
        loads = {} if load is None else {"cpu": load}
        there = (Temperature("sensor", self.device, celsius),)
        return self.trust.judge(Readings(at_s=self.now, temperatures=there, load=loads))

    def gone(self) -> Judgement:
        self.now += 1.0
        return self.trust.judge(Readings(at_s=self.now, load={"cpu": 0.5}))


def reason(judgement: Judgement) -> str | None:
    return judgement.ignored[0].reason if judgement.ignored else None


def believed(judgement: Judgement) -> float | None:
    return judgement.votes[0].celsius


@pytest.mark.parametrize("celsius", [-89.7, -40.1, 150.1, 255.0, math.inf, math.nan])
def test_absurd_readings_are_named_and_believed_again_only_after_several_good_ones(celsius):
    box = Box()
    assert believed(box.say(62.0)) == 62.0
    judged = box.say(celsius)
    assert (reason(judged), believed(judged)) == ("absurd", None)
    assert [change.reason for change in judged.changes] == ["absurd"]
    for _ in range(SETTLED - 1):
        judged = box.say(63.0)
        assert (reason(judged), believed(judged), judged.changes) == ("absurd", None, ())
    judged = box.say(63.0)
    assert (believed(judged), [change.reason for change in judged.changes]) == (63.0, [None])


def test_a_sensor_that_lies_every_other_second_changes_its_standing_once():
    box = Box()
    changes = [change for step in range(60) for change in box.say((62.0, -89.7)[step % 2]).changes]
    assert [change.reason for change in changes] == ["absurd"]


def test_a_vanished_or_unreadable_sensor_is_missing_and_one_that_never_spoke_is_not():
    box = Box()
    assert box.say(None).votes == ()
    box.say(62.0)
    assert reason(box.say(None)) == reason(box.gone()) == "missing"
    for _ in range(SETTLED):
        judged = box.say(62.0)
    assert believed(judged) == 62.0


@pytest.mark.parametrize(
    ("device", "step_c", "jumps"), [("cpu", 30, False), ("cpu", 60, True), ("board", 20, True)]
)
def test_heat_moves_only_so_fast_and_a_board_slower_than_a_die(device, step_c, jumps):
    box = Box(device)
    box.say(40.0)
    assert reason(box.say(40.0 + step_c)) == ("jumping" if jumps else None)


def test_five_degrees_in_two_seconds_are_heat_and_not_a_jump():
    box = Box("board")
    assert all(reason(box.say(40.0 + 2.5 * second)) is None for second in range(30))


def test_a_new_level_is_believed_once_it_stays():
    box = Box("board")
    box.say(40.0)
    reasons = [reason(box.say(90.0)) for _ in range(2 * SETTLED)]
    assert reasons[0] == "jumping"
    assert reasons[-1] is None
    assert reason(Box("board").say(90.0)) is None, "the first reading of all has nothing to jump from"


def test_stuck_means_that_the_load_has_moved_and_the_value_has_not():
    box = Box()
    assert all(reason(box.say(62.0, 0.0)) is None for _ in range(500)), "an idle box may stand still"
    reasons = [reason(box.say(62.0, 1.0)) for _ in range(LONG + 20)]
    assert reasons[: LONG - 1] == [None] * (LONG - 1)
    assert reasons[-1] == "stuck"
    assert believed(box.say(63.0, 1.0)) is None
    for _ in range(SETTLED):
        judged = box.say(63.5, 1.0)
    assert believed(judged) == 63.5


@given(st.lists(st.floats(0, 1), min_size=60, max_size=120), st.integers(1, LONG - 1))
def test_a_value_that_moves_now_and_then_is_never_stuck(loads, period):
    box = Box()
    reasons = {reason(box.say(60.0 + (step // period) % 2, load)) for step, load in enumerate(loads)}
    assert reasons == {None}


def test_a_disk_whose_load_nobody_knows_may_stand_still():
    box = Box("nvme0")
    assert {reason(box.say(40.0, float(step > 100))) for step in range(1000)} == {None}


def readings(*celsius: float, part: bool = False) -> list[Temperature]:
    return [Temperature(f"s{number}", "cpu", value, part) for number, value in enumerate(celsius)]


def test_of_two_that_disagree_the_hotter_counts():
    judged = vote("cpu", readings(30.0, 80.0))
    assert (judged.celsius, judged.outvoted) == (80.0, ("s0",))


def test_the_hottest_core_has_one_voice_beside_the_package():
    cores = [
        Temperature(f"core{number}", "cpu", value, part=True) for number, value in enumerate((60, 60, 94))
    ]
    assert vote("cpu", [*readings(95.0), *cores]).celsius == 95.0
    assert vote("cpu", cores).celsius == 94.0


@given(st.lists(st.floats(*PLAUSIBLE_C), min_size=1, max_size=9))
def test_a_vote_is_one_of_the_voices_and_all_outvoted_are_far_from_it(values):
    judged = vote("cpu", readings(*values))
    assert judged.celsius in values
    assert sum(value <= judged.celsius for value in values) * 2 >= len(values)
    for number, value in enumerate(values):
        assert (f"s{number}" in judged.outvoted) == (abs(value - judged.celsius) > AGREE_C)


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), max_size=60), st.floats(0.05, 10))
def test_whatever_a_sensor_says_only_plausible_values_are_believed(values, sample_s):
    box = Box()
    for value in values:
        for said in box.say(value, 0.5, after_s=sample_s).votes:
            assert said.celsius is None or PLAUSIBLE_C[0] <= said.celsius <= PLAUSIBLE_C[1]


@pytest.mark.parametrize(
    ("chip", "label", "unit", "device"),
    [
        ("coretemp", "Package id 0", "", "cpu"),
        ("k10temp", "Tctl", "", "cpu"),
        ("x86_pkg_temp", "", "", "cpu"),
        ("bigcore1-thermal", "", "", "cpu"),
        ("npu-thermal", "", "", "npu"),
        ("gpu-thermal", "", "", "igpu"),
        ("i915", "", "", "igpu"),
        ("amdgpu", "edge", "", "gpu"),
        ("nvme", "Composite", "nvme1", "nvme1"),
        ("nvme", "Composite", "0000:01:00.0", "nvme"),
        ("acpitz", "", "", "board"),
        ("nct6775", "CPUTIN", "", "cpu"),
        ("nct6775", "SYSTIN", "", "board"),
        ("iwlwifi_1", "", "", "wifi"),
        ("spd5118", "", "", "memory"),
        ("somebodys_chip", "", "", "somebodys_chip"),
    ],
)
def test_sensors_belong_to_devices(chip, label, unit, device):
    assert device_of(chip, label, unit) == device


def test_cores_are_parts_and_packages_are_not():
    assert is_part("coretemp", "Core 11")
    assert is_part("nvme", "Sensor 2")
    assert not is_part("nvme", "Composite")
    assert not is_part("k10temp", "Tctl")


def test_senses_count_what_was_ignored_and_say_what_an_operator_should_know():
    sensing = Sensing()
    senses, _ = sensing.take(Readings(at_s=0.0))
    assert (hottest(senses), remarks(senses)) == (None, NO_SENSOR)
    hot = (Temperature("a", "cpu", 60.0), Temperature("b", "cpu", 61.0), Temperature("c", "cpu", 20.0))
    senses, _ = sensing.take(Readings(at_s=1.0, temperatures=hot, frequency=Frequency(1e3, 3e3, 3e3, 7)))
    assert (hottest(senses), remarks(senses)) == (60.0, "c outvoted: cpu is at 60 °C")
    senses, _ = sensing.take(Readings(at_s=2.0, frequency=Frequency(1e3, 2e3, 3e3, 9)))
    assert hottest(senses) is None
    assert senses.ignored_readings == {"absurd": 0, "stuck": 0, "jumping": 0, "missing": 3}
    assert "temperature of cpu is unknown" in remarks(senses)
    assert "slowed itself down for heat 2 times" in remarks(senses)
    assert "clocks are held at 2000 of 3000 MHz" in remarks(senses)
    assert sensing.predict("cpu", 10.0, 1.0) is None
