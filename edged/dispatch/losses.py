"""Which of its devices a stage works on, and when a lost one is tried again: pure.

The devices of a stage are places in a list, the one that it belongs on first. A loss moves it to the first
place that is not known to be lost; a lost place above the present one is tried with growing pauses, and the
stage returns to it when it works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import msgspec

JITTER = 0.1
"""Each pause is longer by up to this share, so that stages that lost one device do not try it together."""


class Patience(msgspec.Struct, frozen=True):
    """The pauses between the tries of a lost place."""

    first_s: float = 5.0
    """A driver resets a device in seconds."""
    longest_s: float = 600.0
    """What the pause doubles up to; each try loads a model."""
    forgiven_s: float = 600.0
    """A place that has worked for so long since its return is sound: its next loss begins with the first
    pause (the ten minutes after which a kubelet forgives a container its crashes)."""

    def pause_s(self, tries: int, luck: float) -> float:
        """How long to wait for the next try after so many.

        >>> [Patience().pause_s(tries, luck=0.0) for tries in (0, 1, 2, 20)]
        [5.0, 10.0, 20.0, 600.0]
        """
        return min(self.longest_s, self.first_s * 2.0 ** min(tries, 32)) * (1 + JITTER * luck)


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A place that was lost."""

    since: float
    why: str
    tries: int
    """Since it was last sound."""
    again_at: float
    returned_at: float | None = None
    """None while it is lost."""


class State(msgspec.Struct, frozen=True):
    """Where a stage is, and what it knows of its places."""

    at: int = 0
    losses: dict[int, Loss] = {}
    trying: int | None = None

    def lost(self, place: int) -> bool:
        """Whether a place is known to be lost now."""
        return place in self.losses and self.losses[place].returned_at is None


class Lost(msgspec.Struct, frozen=True):
    """A worker found the device of a place gone."""

    place: int
    why: str
    barred: frozenset[int] = frozenset()
    """Places whose device other stages have found gone."""


class Looked(msgspec.Struct, frozen=True):
    """Time passed, and a place may be tried if one is due."""


class Served(msgspec.Struct, frozen=True):
    """A worker is ready on a place, and new work goes to it."""

    place: int


class Failed(msgspec.Struct, frozen=True):
    """The try of a place ended without a worker that is ready."""

    place: int
    why: str


class Disturbed(msgspec.Struct, frozen=True):
    """The try of a place was broken off for somebody else's sake."""

    place: int


Event = Lost | Looked | Served | Failed | Disturbed


class Move(msgspec.Struct, frozen=True):
    """Have new work done on this place from now on, and what the lost one held."""

    place: int


class Try(msgspec.Struct, frozen=True):
    """Load beside what serves, on this place; switch to it if it works."""

    place: int


Command = Move | Try


class Rules(msgspec.Struct, frozen=True):
    """What a decision goes by besides the state."""

    places: int
    patience: Patience
    luck: float
    """0..1, chooses the pause within its jitter."""


def decide(state: State, event: Event, now: float, rules: Rules) -> tuple[State, Command | None]:
    """Apply an event: what a stage knows from now on, and what to do about it."""
    match event:
        case Lost():
            return _lost(state, event, now, rules)
        case Looked():
            return _looked(state, now)
        case Served(place):
            return _served(state, place, now), None
        case Failed(place, why):
            loss = _failed(state.losses[place], why, now, rules)
            return msgspec.structs.replace(_with(state, place, loss), trying=None), None
        case Disturbed(place):
            again_at = now + rules.patience.pause_s(state.losses[place].tries, rules.luck)
            loss = msgspec.structs.replace(state.losses[place], again_at=again_at)
            return msgspec.structs.replace(_with(state, place, loss), trying=None), None
        case _:
            assert_never(event)


def sound(state: State, now: float, patience: Patience) -> bool:
    """Whether a stage is where it belongs and has nothing to remember."""
    forgiven = (_forgiven(loss, now, patience) for loss in state.losses.values())
    return state.at == 0 and all(forgiven)


def _forgiven(loss: Loss, now: float, patience: Patience) -> bool:
    return loss.returned_at is not None and now - loss.returned_at >= patience.forgiven_s


def _lost(state: State, event: Lost, now: float, rules: Rules) -> tuple[State, Command | None]:
    if event.place != state.at and state.lost(event.place):
        return state, None  # one more worker of a device that the stage has left
    state = _with(state, event.place, _renewed(state.losses.get(event.place), event.why, now, rules))
    if event.place != state.at:
        return state, None
    free = (place for place in range(rules.places) if not state.lost(place) and place not in event.barred)
    place = next(free, None)
    if place is None:
        return state, None
    return msgspec.structs.replace(state, at=place), Move(place)


def _renewed(known: Loss | None, why: str, now: float, rules: Rules) -> Loss:
    """A loss goes on where the last one of a device ended that has not held since."""
    if known is not None and known.returned_at is None:
        return msgspec.structs.replace(known, why=why)
    tries = 0 if known is None or _forgiven(known, now, rules.patience) else known.tries
    return Loss(since=now, why=why, tries=tries, again_at=now + rules.patience.pause_s(tries, rules.luck))


def _looked(state: State, now: float) -> tuple[State, Command | None]:
    if state.trying is not None:
        return state, None
    stranded = state.lost(state.at)
    due = [
        place
        for place in sorted(state.losses)
        if state.lost(place)
        and state.losses[place].again_at <= now
        and (place < state.at or (stranded and place != state.at))
    ]
    if not due:
        return state, None
    return msgspec.structs.replace(state, trying=due[0]), Try(due[0])


def _served(state: State, place: int, now: float) -> State:
    trying = None if state.trying == place else state.trying
    if state.lost(place):
        known = state.losses[place]
        tries = known.tries + (state.trying == place)
        state = _with(state, place, msgspec.structs.replace(known, tries=tries, returned_at=now))
    return msgspec.structs.replace(state, at=place, trying=trying)


def _failed(loss: Loss, why: str, now: float, rules: Rules) -> Loss:
    tries = loss.tries + 1
    again_at = now + rules.patience.pause_s(tries, rules.luck)
    return msgspec.structs.replace(loss, tries=tries, why=why or loss.why, again_at=again_at)


def _with(state: State, place: int, loss: Loss) -> State:
    losses: Mapping[int, Loss] = state.losses | {place: loss}
    return msgspec.structs.replace(state, losses=dict(losses))


def is_accelerator(device: str) -> bool:
    """Whether a device can be lost while the machine lives; a CPU, or a server's, cannot.

    >>> [is_accelerator(device) for device in ("igpu", "cuda:0", "cpu:0-1", "remote", "sim:gpu", "sim:cpu")]
    [True, True, False, False, True, False]
    """
    kind, _, rest = device.partition(":")
    return kind not in {"cpu", "remote"} and (kind, rest) != ("sim", "cpu")
