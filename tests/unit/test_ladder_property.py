"""What holds for every history of readings, and of answers to what was commanded."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.config import Governor
from edged.governor.bands import Reading, policy_of
from edged.governor.events import (
    AnyEvent,
    Command,
    Confirmed,
    GoTo,
    Offered,
    Pinned,
    Refused,
    Released,
    Sampled,
)
from edged.governor.ladder import State, decide
from tests.unit.governing import CPU, POLICY, World

RUNGS = len(POLICY.rungs)
celsius = st.one_of(
    st.none(),
    st.floats(30, 100),
    st.sampled_from([limit.enter for limit in CPU.limits] + [limit.leave for limit in CPU.limits]),
    st.sampled_from([-89.7, 151.0, float("nan"), CPU.critical]),
)
shares = st.one_of(st.none(), st.floats(0, 1), st.just(7.0))
readings = st.builds(Reading, celsius, celsius)
pressures = st.one_of(st.none(), st.builds(Reading, shares))


@st.composite
def histories(draw: st.DrawFn) -> list[AnyEvent]:
    """Samples that stay for a while, operators who interfere, and rungs that are or are not to be had."""
    events: list[AnyEvent] = []
    now = 0.0
    rung = st.integers(0, RUNGS - 1)
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.sampled_from(["sampled"] * 6 + ["pinned", "released", "offered"]))
        now += draw(st.sampled_from([0.5, 1.0, 5.0, 200.0]))
        if kind == "pinned":
            events.append(Pinned(at_s=now, rung=draw(rung)))
        elif kind == "released":
            events.append(Released(at_s=now))
        elif kind == "offered":
            events.append(Offered(at_s=now, rung=draw(rung), available=draw(st.booleans())))
        else:
            temperatures = draw(st.dictionaries(st.sampled_from(["cpu", "igpu", "nvme0"]), readings))
            load, memory = draw(pressures), draw(pressures)
            for _ in range(draw(st.sampled_from([1, 2, 40]))):
                now += 1.0
                events.append(Sampled(at_s=now, temperatures=temperatures, load=load, memory=memory))
    return events


answers = st.sampled_from(["confirmed", "confirmed", "refused", "silence"])


def lived(events: list[AnyEvent], policy, answer) -> list[tuple[State, Command]]:
    """Every command with the state that it was given in; commands are answered as `answer` says."""
    state, said = State(), []
    for event in events:
        before = state
        state, commands = decide(policy, state, event)
        for command in commands:
            said.append((before, command))
            if isinstance(command, GoTo) and (reply := answer()) != "silence":
                kind = Confirmed if reply == "confirmed" else Refused
                more = {} if kind is Confirmed else {"why": "so"}
                state, _ = decide(policy, state, kind(at_s=event.at_s, rung=command.rung, **more))
    return said


def steps(said: list[tuple[State, Command]]) -> list[tuple[State, GoTo]]:
    return [(state, command) for state, command in said if isinstance(command, GoTo)]


@given(histories(), st.data())
@settings(max_examples=100, deadline=None)
def test_at_most_one_step_per_dwell_and_one_rung_at_a_time(events, data):
    taken = steps(lived(events, POLICY, lambda: data.draw(answers)))
    changes = [pair for number, pair in enumerate(taken) if not number or pair[1] != taken[number - 1][1]]
    urgent = {"critical", "pinned"}
    for (_, first), (state, second) in pairwise(changes):
        if second.cause.why not in urgent:
            assert second.at_s - first.at_s >= POLICY.dwell_s
            # From where it is under way to: a climb that nobody has confirmed yet may be taken back.
            between = range(min(state.heading, second.rung) + 1, max(state.heading, second.rung))
            assert all(rung in state.barred for rung in between)


@given(histories(), st.data(), st.sampled_from(POLICY.rungs))
@settings(max_examples=100, deadline=None)
def test_never_below_the_floor(events, data, floor):
    policy = policy_of(Governor(floor=floor))
    taken = steps(lived(events, policy, lambda: data.draw(answers)))
    assert all(0 <= step.rung <= policy.floor for _, step in taken)


@given(histories(), st.data())
@settings(max_examples=60, deadline=None)
def test_it_always_returns_to_the_best_rung_after_cooling(events, data):
    world = World()
    for event in events:
        world.hear(event)
        world.now = event.at_s
    world.hear(Released(at_s=world.now))
    for rung in range(RUNGS):
        world.hear(Offered(at_s=world.now, rung=rung, available=True))
    known = {name.partition(".")[2] for name in world.state.standings if "." in name}
    cool = {device: Reading(30.0, 31.0) for device in known}
    for _ in range(int(POLICY.retry_s + (RUNGS + 1) * (POLICY.climb_after_s + 10)) // 10):
        world.now += 10
        calm = Reading(0.1)
        world.hear(Sampled(at_s=world.now, temperatures=cool, load=calm, memory=calm, stall=calm))
    assert world.rung == POLICY.rungs[0]


@given(histories(), st.data())
@settings(max_examples=100, deadline=None)
def test_commands_are_idempotent_and_decisions_repeatable(events, data):
    drawn = [data.draw(answers) for _ in range(8)]

    def run(times: int) -> bytes:
        replies = iter(drawn * 1000)
        state, said = State(), []
        for event in events:
            state, commands = decide(POLICY, state, event)
            said += commands
            for command in commands:
                if isinstance(command, GoTo) and next(replies) == "confirmed":
                    for _ in range(times):
                        state, more = decide(POLICY, state, Confirmed(at_s=event.at_s, rung=command.rung))
                        assert not more
        return msgspec.json.encode(said)

    assert run(1) == run(1) == run(3)


@given(
    st.sampled_from(CPU.limits),
    st.booleans(),
    st.lists(st.floats(-2, 2), min_size=20, max_size=60),
    st.sampled_from([None, 0.0, 5.0]),
    st.sampled_from([30.0, 90.0]),
)
@settings(max_examples=40, deadline=None)
def test_hovering_at_a_limit_for_an_hour_causes_two_changes_at_most(limit, upper, noise, ahead, before):
    """From whichever side: two changes behind the way to the rung that belongs to the limit."""
    centre = limit.enter if upper else limit.leave
    world = World()
    world.feel(centre - 2.5 if before < centre else centre + 2.5, 3600, step=5)
    world.said.clear()
    for second in range(3600):
        celsius = centre + noise[second % len(noise)]
        world.feel(celsius, predicted=None if ahead is None else celsius + ahead / 5)
    assert len(world.steps) <= 2


@given(histories(), st.sampled_from([-89.7, 151.0, float("nan"), None]), st.integers(60, 1200))
@settings(max_examples=60, deadline=None)
def test_an_absurd_or_missing_reading_changes_nothing(events, bad, seconds):
    world = World()
    samples = [event for event in events if isinstance(event, Sampled)]
    for event in samples:
        world.hear(event)
        world.now = event.at_s
    settle = {"cpu": Reading(72.0), "igpu": Reading(72.0), "nvme0": Reading(30.0)}
    for _ in range(600):
        world.now += 10
        world.hear(Sampled(at_s=world.now, temperatures=settle))
    world.said.clear()
    for _ in range(0, seconds, 5):
        world.now += 5
        world.hear(Sampled(at_s=world.now, temperatures=dict.fromkeys(settle, Reading(bad))))
    assert not world.steps
    assert {report.what for report in world.reports} >= {"temperature.cpu", "temperature.igpu"}
