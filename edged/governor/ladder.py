"""Which rung of the quality ladder: `decide(policy, state, event) -> state, commands`, pure.

One rung at a time and `dwell_s` apart; at once and to the floor only above a critical temperature. Down as
soon as a signal asks for it, up after all have allowed it for `climb_after_s`; a climb that is not confirmed
yet holds up no descent. A climb that had to be taken back is not repeated for `retry_s`, unless the reading
that undid it is clearly lower than it was then: where the load of a rung heats by more than a band is wide,
this is what ends the swinging.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

import msgspec
from msgspec.structs import replace

from edged.governor.bands import Policy, Reading, Scale, Standing, hear, reachable, scale_of
from edged.governor.events import (
    AnyEvent,
    Cause,
    Command,
    Confirmed,
    GoTo,
    Offered,
    Pinned,
    Refused,
    Released,
    Report,
    Sampled,
)

UNDONE_S = 900.0
"""A descent so soon after a climb undoes it: a heat sink is half way to its new level in 5-10 minutes."""
REFUSED_S, LONGEST_REFUSED_S = 300.0, 3600.0
"""How long a rung that was refused is left out: twice as long after every further refusal, up to an hour."""
REPEAT_S = 60.0
"""A command that nobody confirmed is said again."""
GAP_S = 30.0
"""Samples further apart than this say nothing about the time between them: the machine slept."""


class Climb(msgspec.Struct, frozen=True):
    """The last step up, and the highest readings of the calm time that allowed it."""

    rung: int
    at_s: float
    peaks: dict[str, float]


class Proof(msgspec.Struct, frozen=True):
    """What has to be different before `rung` or a better one is tried again."""

    rung: int
    signal: str
    below: float
    until_s: float


class Refusal(msgspec.Struct, frozen=True):
    """A rung could not be taken, and is left out for a while."""

    until_s: float
    out_s: float
    """How long: the next time twice as long."""
    why: str


class State(msgspec.Struct, frozen=True):
    """All that decisions depend on."""

    rung: int = 0
    """In force, as far as is known."""
    asked: GoTo | None = None
    """What nobody has confirmed yet."""
    said_at_s: float = -math.inf
    """When `asked` was said last."""
    at_s: float = -math.inf
    """Of the last sample."""
    stepped_at_s: float = -math.inf
    """Of the last change, or of its confirmation."""
    calm_since_s: float | None = None
    """Since when all signals allow a better rung."""
    peaks: dict[str, float] = {}
    """The highest reading of each signal since then."""
    pin: int | None = None
    standings: dict[str, Standing] = {}
    unavailable: frozenset[int] = frozenset()
    """Rungs that nobody can take here."""
    refusals: dict[int, Refusal] = {}
    """The last one of each rung since it was in force."""
    signal: str = ""
    """The one that caused the last descent."""
    climb: Climb | None = None
    proof: Proof | None = None

    @property
    def heading(self) -> int:
        """The rung that is in force, or that was asked for."""
        return self.rung if self.asked is None else self.asked.rung

    @property
    def barred(self) -> frozenset[int]:
        """Rungs that are not taken now."""
        refused = {rung for rung, each in self.refusals.items() if each.until_s > self.at_s}
        return self.unavailable | refused


Decision = tuple[State, tuple[Command, ...]]


def carried(state: State, before: Policy, after: Policy) -> State:
    """Go on under another policy: on the rung of the same name, else of the same number; all else is new."""
    name = before.rungs[state.rung] if state.rung < len(before.rungs) else ""
    rung = after.rungs.index(name) if name in after.rungs else min(state.rung, len(after.rungs) - 1)
    return State(
        rung=rung, at_s=state.at_s, stepped_at_s=state.stepped_at_s, pin=_renamed(state.pin, before, after)
    )


def _renamed(pin: int | None, before: Policy, after: Policy) -> int | None:
    name = before.rungs[pin] if pin is not None else ""
    return min(after.rungs.index(name), after.floor) if name in after.rungs else None


def without(policy: Policy, rungs: Iterable[str]) -> tuple[Offered, ...]:
    """What has to be heard first where these rungs cannot be taken."""
    return tuple(Offered(at_s=0.0, rung=policy.rungs.index(name), available=False) for name in rungs)


def decide(policy: Policy, state: State, event: AnyEvent) -> Decision:
    """Apply one event, and return what to do about it."""
    match event:
        case Sampled():
            return _sampled(policy, state, event)
        case Pinned():
            return _pinned(policy, state, event)
        case Released():
            known = {name: each for name, each in state.standings.items() if not each.unknown}
            return replace(state, pin=None, proof=None, calm_since_s=None, standings=known), ()
        case Offered(rung=rung):
            others = state.unavailable - {rung}
            return replace(state, unavailable=others if event.available else others | {rung}), ()
        case Confirmed():
            return _confirmed(state, event), ()
        case Refused():
            return _refused(policy, state, event)
        case _:
            assert_never(event)


def _pinned(policy: Policy, state: State, event: Pinned) -> Decision:
    rung = min(max(event.rung, 0), policy.floor)
    state = replace(state, pin=rung, calm_since_s=None, climb=None, refusals={})
    if rung == state.heading:
        return state, ()
    return _go(policy, state, rung, Cause("pinned"), event.at_s)


def _confirmed(state: State, event: Confirmed) -> State:
    if event.whole:
        done = {*range(event.rung + 1)} - state.barred
        refusals = {each: refusal for each, refusal in state.refusals.items() if each not in done}
        state = replace(state, refusals=refusals)
    if state.asked is None or state.asked.rung != event.rung:
        return replace(state, rung=event.rung)
    stepped_at_s = max(state.stepped_at_s, event.at_s)
    return replace(state, rung=event.rung, asked=None, stepped_at_s=stepped_at_s)


def _refused(policy: Policy, state: State, event: Refused) -> Decision:
    asked = None if state.asked and state.asked.rung == event.rung else state.asked
    last = state.refusals.get(event.rung)
    out_s = min(2 * last.out_s, LONGEST_REFUSED_S) if last else REFUSED_S
    refusals = state.refusals | {event.rung: Refusal(event.at_s + out_s, out_s, event.why)}
    known = 0 <= event.rung < len(policy.rungs)
    report = Report(f"rung {policy.rungs[event.rung] if known else event.rung}", event.why, event.at_s)
    return replace(state, asked=asked, refusals=refusals), (report,)


def _sampled(policy: Policy, state: State, sample: Sampled) -> Decision:
    now = sample.at_s
    if not state.at_s < now < math.inf:
        return state, ()
    standings = _heard(policy, state, sample)
    reports = tuple(
        Report(name, standing.unknown, now)
        for name, standing in standings.items()
        if bool(standing.unknown) != bool(state.standings.get(name, Standing()).unknown)
    )
    slept = now - state.at_s > GAP_S
    state = replace(state, at_s=now, standings=standings)
    state, commands = _step(policy, _calmed(policy, state, slept=slept), now)
    return state, (*reports, *commands)


def _calmed(policy: Policy, state: State, *, slept: bool) -> State:
    if state.pin is not None or _goal(policy, state) >= state.heading:
        return replace(state, calm_since_s=None, peaks={})
    values = {name: each.value for name, each in state.standings.items() if each.value is not None}
    if slept or state.calm_since_s is None:
        return replace(state, calm_since_s=state.at_s, peaks=values)
    peaks = {name: max(value, state.peaks.get(name, value)) for name, value in values.items()}
    return replace(state, peaks=state.peaks | peaks)


def _scale(policy: Policy, state: State, signal: str) -> Scale | None:
    """The limits of a signal that count: of a refused rung they do, for that one is tried again soon."""
    scale = scale_of(policy, signal)
    return reachable(scale, state.unavailable, policy.floor) if scale else None


def _heard(policy: Policy, state: State, sample: Sampled) -> dict[str, Standing]:
    readings = {f"temperature.{device}": reading for device, reading in sample.temperatures.items()}
    shares = (("load", sample.load), ("memory", sample.memory), ("stall", sample.stall))
    readings |= {name: reading for name, reading in shares if reading is not None}
    found, before = {}, state.standings
    for name in sorted(readings.keys() | before.keys()):
        scale = _scale(policy, state, name)
        if scale is not None:
            reading = readings.get(name, Reading(why="the reading has vanished"))
            found[name] = hear(scale, before.get(name, Standing()), reading)
    return found


def _step(policy: Policy, state: State, now: float) -> Decision:
    urgent = _urgent(policy, state, now)
    if urgent is not None:
        return urgent
    waited = now - state.stepped_at_s >= policy.dwell_s
    if state.asked is not None:
        begun = replace(state, rung=state.asked.rung, asked=None)
        if waited and _taken_back(policy, state, begun):
            return _towards(policy, begun, _goal(policy, begun), now)
        return _again(state, state.asked, now)
    if not waited:
        return state, ()
    if state.pin is not None:
        back = state.rung != state.pin and state.pin not in state.barred
        return _go(policy, state, state.pin, Cause("pinned"), now) if back else (state, ())
    return _towards(policy, state, _goal(policy, state), now)


def _taken_back(policy: Policy, before: State, begun: State) -> bool:
    """Whether heat asks for less than the climb that has begun, and that nobody has confirmed yet."""
    return begun.pin is None and begun.rung < before.rung and _goal(policy, begun) > begun.rung


def _urgent(policy: Policy, state: State, now: float) -> Decision | None:
    """What does not wait: a rung that the operator forbids, and a critical temperature."""
    if state.heading > policy.floor:
        return _go(policy, state, policy.floor, Cause("floor"), now)
    critical = next((name for name, each in state.standings.items() if each.critical), "")
    if not critical or state.pin is not None:
        return None
    lowest = _lowest(policy, state)
    return _down(policy, state, lowest, critical, now) if lowest > state.heading else None


def _towards(policy: Policy, state: State, goal: int, now: float) -> Decision:
    if goal <= state.rung:
        return _up(policy, state, goal, now) if goal < state.rung else (state, ())
    rung = next(each for each in range(state.rung + 1, goal + 1) if each not in state.barred)
    return _down(policy, state, rung, _loudest(state), now)


def _again(state: State, asked: GoTo, now: float) -> Decision:
    if now - state.said_at_s < REPEAT_S:
        return state, ()
    return replace(state, said_at_s=now), (asked,)


def _goal(policy: Policy, state: State) -> int:
    """The best rung that all signals permit and that can be taken, else the lowest better one that can."""
    wanted = min(max((each.rung for each in state.standings.values()), default=0), policy.floor)
    candidates = (*range(wanted, policy.floor + 1), *range(wanted - 1, -1, -1))
    possible = (rung for rung in candidates if rung not in state.barred)
    return next(possible, min(state.rung, policy.floor))


def _lowest(policy: Policy, state: State) -> int:
    possible = (rung for rung in range(policy.floor, -1, -1) if rung not in state.barred)
    return next(possible, state.heading)


def _loudest(state: State) -> str:
    return max(state.standings, key=lambda name: state.standings[name].rung, default="")


def _down(policy: Policy, state: State, rung: int, signal: str, now: float) -> Decision:
    climb, proof = state.climb, state.proof
    if climb and rung > climb.rung and now - climb.at_s <= UNDONE_S:
        scale = _scale(policy, state, signal)
        below = climb.peaks.get(signal, -math.inf) - (scale.margin if scale else 0.0)
        proof = Proof(climb.rung, signal, below, now + policy.retry_s)
    state = replace(state, climb=None, proof=proof, signal=signal)
    return _go(policy, state, rung, _why_down(policy, state, signal), now)


def _why_down(policy: Policy, state: State, signal: str) -> Cause:
    standing, scale = state.standings.get(signal, Standing()), _scale(policy, state, signal)
    limits = scale.limits if scale else ()
    limit = max((each.enter for each in limits if each.rung <= standing.rung), default=None)
    if standing.rung <= state.heading or limit is None:
        return Cause("unavailable", signal, standing.value, standing.predicted)
    if standing.critical and scale:
        return Cause("critical", signal, standing.value, standing.predicted, scale.critical)
    entered = standing.value is not None and standing.value >= limit
    return Cause("entered" if entered else "predicted", signal, standing.value, standing.predicted, limit)


def _up(policy: Policy, state: State, goal: int, now: float) -> Decision:
    if state.calm_since_s is None or now - state.calm_since_s < policy.climb_after_s:
        return state, ()
    rung = next(
        each for each in range(state.rung - 1, goal - 1, -1) if each == goal or each not in state.barred
    )
    if state.proof and not _proven(state, state.proof, rung, now):
        return replace(state, calm_since_s=None, peaks={}), ()
    proof = None if state.proof and rung <= state.proof.rung else state.proof
    state = replace(state, climb=Climb(rung, now, state.peaks), proof=proof, calm_since_s=None)
    return _go(policy, state, rung, _why_up(policy, state), now)


def _proven(state: State, proof: Proof, rung: int, now: float) -> bool:
    if rung > proof.rung or now >= proof.until_s:
        return True
    known = state.standings.get(proof.signal, Standing()).value is not None
    return known and state.peaks.get(proof.signal, math.inf) <= proof.below


def _why_up(policy: Policy, state: State) -> Cause:
    signal = state.signal if state.signal in state.standings else next(iter(state.standings), "")
    standing, scale = state.standings.get(signal, Standing()), _scale(policy, state, signal)
    limits = scale.limits if scale else ()
    left = min((each.leave for each in limits if each.rung > standing.rung), default=None)
    return Cause("left", signal, standing.value, standing.predicted, left)


def _go(policy: Policy, state: State, rung: int, cause: Cause, now: float) -> Decision:
    command = GoTo(rung, policy.rungs[rung], state.rung, now, cause)
    return replace(state, asked=command, said_at_s=now, stepped_at_s=now), (command,)
