"""Traces and the simulated cabinet: the same decisions every time, and what they are worth."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edged.cli.governor import NAMES, PLANTS
from edged.config import Governor
from edged.config.tables import Rung
from edged.errors import BadRequest
from edged.governor.bands import Reading, policy_of
from edged.governor.effects import effects, settings
from edged.governor.events import AnyEvent, GoTo, Pinned, Refused, Report, Sampled
from edged.governor.ladder import without
from edged.governor.plant import SCENARIOS, Fault, Plant, Scenario
from edged.governor.simulate import Kind, Rehearsal, rehearse
from edged.governor.trace import Raw, judged, read_lines, replay, write_lines
from tests.unit.governing import CPU, POLICY, sampled

GOVERNOR = Governor()
SHORT = replace(SCENARIOS[0], duration_s=3600.0, fan_fails_s=900.0)
NO_PEER = ("peer",)


@cache
def rehearsed(scenario: Scenario = SHORT) -> Rehearsal:
    return rehearse(GOVERNOR, scenario, NO_PEER)


def test_the_command_line_knows_the_plants_and_the_rivals():
    assert tuple(scenario.name for scenario in SCENARIOS) == PLANTS
    assert tuple(NAMES) == get_args(Kind)


def test_a_hot_cabinet_stays_below_the_limit_and_answers_more_than_one_that_pauses():
    outcomes = rehearsed().outcomes
    assert outcomes["none"].above_limit_s > 600
    assert outcomes["ladder"].above_limit_s == 0
    assert outcomes["ladder"].answers > 1.2 * outcomes["pause"].answers
    assert outcomes["ladder"].changes <= outcomes["pause"].changes
    assert outcomes["ladder"].quality < 1
    assert sum(outcomes["ladder"].on_rung_s.values()) == SHORT.duration_s


def test_a_saved_run_is_replayed_to_the_same_decisions():
    lines = list(write_lines(rehearsed().trace))
    events = [*without(POLICY, NO_PEER), *judged(read_lines(lines, "t"), GOVERNOR.horizon_s)]
    first, second = (msgspec.json.encode(replay(POLICY, events).commands) for _ in range(2))
    assert first == second == msgspec.json.encode(rehearsed().commands)


def test_a_simulated_run_repeats_bit_for_bit_and_another_seed_does_not():
    short = replace(SHORT, duration_s=600.0)
    first, again, other = (rehearse(GOVERNOR, each) for each in (short, short, replace(short, seed=2)))
    assert msgspec.json.encode(first) == msgspec.json.encode(again)
    assert first.trace != other.trace


@pytest.mark.parametrize("kind", ["absurd", "frozen", "vanished"])
def test_a_sensor_that_fails_changes_nothing(kind):
    calm = replace(SHORT, duration_s=1500.0, offered=0.5, ambient_c=40.0, sun_c=0.0, swing=0.0)
    broken = replace(calm, faults=(Fault(kind, 600.0, 1200.0),))
    commands = rehearsed(broken).commands
    assert not [each for each in commands if isinstance(each, GoTo) and 600 <= each.at_s <= 1210]
    if kind != "frozen":  # a standing value can only be told from a cool box when the load moves
        assert [bool(each.why) for each in commands if isinstance(each, Report)] == [True, False]


def test_the_plant_settles_where_its_resistances_say():
    box = replace(SCENARIOS[-1], duration_s=20000.0, fan_fails_s=10000.0)
    plant = Plant(box)
    for end_s, factor in ((9000.0, 1.0), (19000.0, box.fan_failed)):
        while plant.at_s < end_s:
            plant.run(0.5)
        power_w = box.idle_w + 0.5 * box.busy_w
        expected_c = box.ambient_c + power_w * (box.sink_k_per_w * factor + box.die_k_per_w)
        assert plant.die_c == pytest.approx(expected_c, abs=0.1)


def test_rungs_add_up_and_those_that_are_missing_do_not():
    ladder = GOVERNOR.ladder
    whole = settings(ladder, 8)
    assert (whole.candidates, whole.keep, whole.bypass_rerank, whole.peer, whole.busy_share) == (
        10,
        2,
        True,
        True,
        0.15,
    )
    assert not settings(ladder, 8, without=[5]).peer
    costs = [effect.cost for effect in effects(ladder)]
    assert costs == sorted(costs, reverse=True)
    assert (costs[0], effects(ladder)[0].quality) == (1.0, 1.0)


def test_measured_figures_come_before_estimates():
    ladder = (Rung(name="a"), Rung(name="b", keep=1, cost=0.5), Rung(name="c", bypass_rerank=True))
    found = effects(ladder)
    assert (found[1].cost, found[1].estimated) == (0.5, ("quality",))
    assert found[2].estimated == ("cost", "quality")


def test_estimates_go_on_from_the_last_figure_that_is_known():
    ladder = Governor().ladder
    guessed = effects(ladder)
    known = (*ladder[:2], replace(ladder[2], cost=0.84, quality=0.836), *ladder[3:])
    found = effects(known)
    assert found[:2] == guessed[:2]
    for before, then in pairwise(found[2:]):
        assert then.cost <= before.cost
        assert then.quality <= before.quality
    for ours, theirs in zip(found[2:], guessed[2:], strict=True):
        assert ours.cost / theirs.cost == pytest.approx(0.84 / guessed[2].cost)
        assert ours.quality / theirs.quality == pytest.approx(0.836 / guessed[2].quality)


HOT = CPU.limits[0].enter + 1


@pytest.mark.parametrize(
    "lines",
    [
        ["at_s,cpu,busy,load", f"1,{HOT},0.5,0.1", "", f"2,{HOT},,", "3,,,"],
        [
            f'{{"at_s": 1, "temperatures": {{"cpu": {HOT}}}, "busy": 0.5, "load": 0.1}}',
            "",
            f'{{"at_s": 2, "temperatures": {{"cpu": {HOT}}}}}',
            '{"at_s": 3, "temperatures": {"cpu": null}}',
        ],
    ],
)
def test_both_forms_of_a_trace_mean_the_same(lines):
    raw = list(read_lines(lines, "t"))
    assert raw == [
        Raw(at_s=1, temperatures={"cpu": HOT}, busy=0.5, load=0.1),
        Raw(at_s=2, temperatures={"cpu": HOT}),
        Raw(at_s=3, temperatures={"cpu": None}),
    ]
    found = replay(POLICY, list(judged(raw, 20.0)))
    assert [type(command) for command in found.commands] == [Report, GoTo, Report]
    assert (found.samples, found.duration_s, found.changes) == (3, 2.0, 1)


@given(st.lists(st.builds(sampled, st.floats(0, 1e6), st.floats(-50, 160)), max_size=20))
def test_logged_events_are_replayed_as_they_are(events):
    lines = [msgspec.json.encode(event).decode() for event in events]
    assert list(judged(read_lines(lines, "t"), 20.0)) == events if lines else True


def test_a_trace_that_holds_answers_is_not_confirmed_on_top():
    hot = [sampled(float(second), HOT) for second in range(1, 40)]
    events: list[AnyEvent] = [*hot, Refused(at_s=40.0, rung=1, why="no memory")]
    found = replay(POLICY, events)
    assert [type(command) for command in found.commands] == [GoTo, Report]
    assert found.on_rung_s == {"full": 38.0}


def test_a_mean_trace_of_shares_moves_the_ladder():
    lines = ["at_s,load,memory,stall", *(f"{second},0.99,0.5,0.0" for second in range(300))]
    found = replay(POLICY, list(judged(read_lines(lines, "t"), 20.0)))
    names = [command.name for command in found.commands if isinstance(command, GoTo)]
    assert names[-1] == "shed-batch"


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "t is empty"),
        (["", " "], "t is empty"),
        (["cpu,load", "1,2"], "no column at_s"),
        (["at_s,cpu", "1,hot"], "t, line 2: cpu = 'hot'"),
        (["at_s,cpu", ",50"], "t, line 2: at_s is empty"),
        (['{"at_s": 1}', '{"at_s": 2, "cpu": 3}'], "t, line 2"),
        (['{"at_s": 1}', "{"], "t, line 2"),
        (['{"event": "exploded", "at_s": 1}'], "t, line 1"),
        (['{"temperatures": {}}'], "t, line 1"),
    ],
)
def test_a_bad_line_is_named(lines, named):
    with pytest.raises(BadRequest, match=named):
        list(read_lines(lines, "t"))


@pytest.mark.parametrize("rung", [-1, 99])
def test_a_rung_that_the_ladder_lacks_is_refused(rung):
    with pytest.raises(BadRequest, match=f"pinned rung {rung}"):
        replay(POLICY, [Pinned(at_s=1.0, rung=rung)])


def test_a_floor_holds_in_the_cabinet_too():
    found = rehearse(Governor(floor="fewer-passages"), SHORT, NO_PEER)
    assert set(found.outcomes["ladder"].on_rung_s) == {"full", "fewer-passages"}


def test_ladder_without_bands_never_moves():
    policy = policy_of(Governor(temperature={}, load=(), memory=(), stall=()))
    hot = Sampled(at_s=1.0, temperatures={"cpu": Reading(140.0)}, load=Reading(1.0))
    assert not replay(policy, [hot, replace(hot, at_s=2.0)]).commands
