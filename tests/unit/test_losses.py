"""Which device a stage works on: properties that hold whatever is lost when, and the pauses between tries."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.dispatch.losses import (
    JITTER,
    Disturbed,
    Failed,
    Looked,
    Lost,
    Move,
    Patience,
    Rules,
    Served,
    State,
    Try,
    decide,
    sound,
)

PLACES = 3
PATIENCE = Patience()
FIRST_RETRY_S, MOST_RETRY_S, HOLD_S = PATIENCE.first_s, PATIENCE.longest_s, PATIENCE.forgiven_s
LOOK_S = 1.0
HOUR_S = 3600.0
MOST_TRIES = 30
"""Of a place within an hour: five or six between two spells of `HOLD_S`, which is what a device needs to be
forgiven."""


class World:
    """A stage with places that are there or not, and a hand that does what is decided."""

    def __init__(self, places: int = PLACES, luck: float = 0.0) -> None:
        self.places, self.luck = places, luck
        self.present = [True] * places
        self.state = State()
        self.now = 0.0
        self.moves: list[tuple[float, int]] = []
        self.tries: list[tuple[float, int]] = []

    def tell(self, event) -> Move | Try | None:
        before = self.state
        self.state, command = decide(self.state, event, self.now, Rules(self.places, PATIENCE, self.luck))
        match command:
            case Move(place):
                assert not before.lost(place)
                assert self.state.at == place
                self.moves.append((self.now, place))
            case Try(place):
                assert before.lost(place)
                assert before.trying is None
                self.tries.append((self.now, place))
        if not isinstance(command, Move) and not isinstance(event, Served):
            assert self.state.at == before.at
        return command

    def work(self) -> None:
        """What serves finds out whether its device is there; what is tried shows whether it works."""
        for _ in range(self.places):
            if self.present[self.state.at]:
                break
            self.tell(Lost(self.state.at, "gone"))
        else:
            return
        if self.state.lost(self.state.at):
            self.tell(Served(self.state.at))
        command = self.tell(Looked())
        if isinstance(command, Try):
            works = self.present[command.place]
            self.tell(Served(command.place) if works else Failed(command.place, "gone"))

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += LOOK_S
            self.work()


HISTORY = st.lists(
    st.tuples(st.integers(0, PLACES - 2), st.booleans(), st.floats(1, 2000)), min_size=1, max_size=12
)


@given(HISTORY, st.floats(0, 1))
def test_it_always_returns_is_never_on_a_lost_place_and_tries_with_measure(history, luck) -> None:
    world = World(luck=luck)
    for place, present, seconds in history:
        world.present[place] = present
        world.pass_time(seconds)
        assert world.present[world.state.at], "the last place is always there"
    world.present = [True] * PLACES
    world.pass_time(MOST_RETRY_S * (1 + JITTER) + 2 * LOOK_S)
    assert world.state.at == 0
    for place in range(PLACES):
        times = [at for at, tried in world.tries if tried == place]
        assert all(sum(at <= other < at + HOUR_S for other in times) <= MOST_TRIES for at in times)


@given(st.lists(st.floats(1, HOLD_S / 2), min_size=1, max_size=8))
def test_a_device_that_flaps_is_tried_ever_more_seldom(ups) -> None:
    """However often it works for a while: the pause grows with each loss, and from none to the next."""
    world = World()
    for up_s in ups:
        world.present[0] = False
        world.work()
        world.present[0] = True
        while world.state.at:
            world.now += LOOK_S
            world.work()
        world.now += up_s
    left = [at for at, place in world.moves if place]
    pauses = [back - gone for gone, (back, _) in zip(left, world.tries, strict=True)]
    assert pauses[0] == pytest.approx(FIRST_RETRY_S, abs=LOOK_S)
    assert all(later >= min(2 * earlier, MOST_RETRY_S) - 3 * LOOK_S for earlier, later in pairwise(pauses))


def test_pauses_double_up_to_the_longest() -> None:
    world = World(places=2)
    world.present[0] = False
    world.pass_time(3 * HOUR_S)
    pauses = [later - earlier for (earlier, _), (later, _) in pairwise(world.tries)]
    expected = [min(MOST_RETRY_S, FIRST_RETRY_S * 2 ** (1 + n)) for n in range(len(pauses))]
    assert pauses == pytest.approx(expected, abs=LOOK_S)
    assert pauses[-1] == pytest.approx(MOST_RETRY_S, abs=LOOK_S)


def test_a_device_that_has_held_is_forgiven() -> None:
    world = World(places=2)
    world.present[0] = False
    world.pass_time(60.0)
    world.present[0] = True
    world.pass_time(120.0)
    assert world.state.at == 0
    world.pass_time(HOLD_S)
    assert sound(world.state, world.now, PATIENCE)
    world.present[0] = False
    world.pass_time(FIRST_RETRY_S + LOOK_S)
    again = [at for at, _ in world.tries][-1]
    assert again - world.moves[-1][0] == pytest.approx(FIRST_RETRY_S, abs=LOOK_S)


def test_places_that_others_have_lost_are_passed_over() -> None:
    world = World()
    assert world.tell(Lost(0, "gone", barred=frozenset({1}))) == Move(2)


def test_the_second_word_about_a_loss_says_nothing_new() -> None:
    world = World()
    world.tell(Lost(0, "gone"))
    known = world.state
    assert world.tell(Lost(0, "gone too")) is None
    assert world.state == known


def test_with_every_place_lost_it_stays_and_goes_where_one_comes_back() -> None:
    world = World(places=2)
    world.tell(Lost(0, "gone"))
    assert world.tell(Lost(1, "gone")) is None
    world.now = 2 * FIRST_RETRY_S
    assert world.tell(Looked()) == Try(0)
    world.tell(Served(0))
    assert (world.state.at, world.state.lost(0), world.state.lost(1)) == (0, False, True)


def test_a_better_place_is_returned_to_before_the_best() -> None:
    world = World()
    world.tell(Lost(0, "gone"))
    world.tell(Lost(1, "gone"))
    world.present = [False, True, True]
    world.pass_time(2 * FIRST_RETRY_S)
    assert world.state.at == 1
    world.present[0] = True
    world.pass_time(4 * FIRST_RETRY_S)
    assert world.state.at == 0


def test_a_try_that_somebody_else_ends_is_no_failure_of_the_device() -> None:
    world = World(places=2)
    world.tell(Lost(0, "gone"))
    world.now = FIRST_RETRY_S
    assert world.tell(Looked()) == Try(0)
    assert world.tell(Looked()) is None
    world.tell(Disturbed(0))
    assert (world.state.trying, world.state.losses[0].tries) == (None, 0)
    world.now = 2 * FIRST_RETRY_S
    assert world.tell(Looked()) == Try(0)


def test_the_luck_only_lengthens_a_pause() -> None:
    lucky, unlucky = World(luck=0.0), World(luck=1.0)
    for world in (lucky, unlucky):
        world.tell(Lost(0, "gone"))
    assert lucky.state.losses[0].again_at == FIRST_RETRY_S
    assert unlucky.state.losses[0].again_at == pytest.approx(FIRST_RETRY_S * (1 + JITTER))
