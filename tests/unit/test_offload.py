"""What is made by which peer: decisions over a ledger, without processes, clocks or sockets."""

from __future__ import annotations

import pytest

from edged.dispatch.events import Died, Returned, Spoke
from edged.dispatch.offload import worthwhile
from edged.errors import StageUnavailable
from edged.messages import Tokens
from tests.unit.peer_site import AWAY, CALM, URGENT, Site, offer


@pytest.fixture
def site() -> Site:
    return Site()


def test_work_stays_at_home_while_there_is_room(site):
    site.join("b")
    assert [site.where(site.ask()) for _ in range(2)] == ["home", "home"]


def test_a_full_home_hands_on_what_would_wait(site):
    site.join("b")
    assert [site.where(site.ask()) for _ in range(5)] == ["home", "home", "b", "b", "queue"]


def test_a_hot_home_hands_on_everything_new(site):
    site.join("b")
    site.press(AWAY)
    assert [site.where(site.ask()) for _ in range(3)] == ["b", "b", "home"]


def test_a_hot_peer_gets_nothing(site):
    site.join("b", offer(hot=True))
    site.press(AWAY)
    assert [site.where(site.ask()) for _ in range(3)] == ["home", "home", "queue"]


def test_what_came_from_a_peer_goes_no_further(site):
    site.join("b")
    site.press(URGENT)
    numbers = [site.ask(hops=1) for _ in range(3)]
    assert [site.where(number) for number in numbers] == ["home", "home", "queue"]
    site.say(numbers[0])
    site.press(URGENT)
    assert not any(site.request(number).recalled for number in numbers)


def test_the_quicker_peer_is_asked(site):
    site.join("slow", offer(service_s=9.0))
    site.join("quick", offer(service_s=1.0))
    site.press(AWAY)
    assert site.where(site.ask()) == "quick"


def test_a_slow_peer_gets_what_would_wait_longer_than_it_takes(site):
    stage = site.world.ledger.stages["speak"]
    stage.services, stage.service_s, stage.item_s = 10, 2.0, 1.0
    site.join("slow", offer(free=4, service_s=5.0))
    numbers = [site.ask() for _ in range(7)]
    # at home the place k of the queue is finished after (k + 1) + 2 s; there after 5 s
    assert [site.where(number) for number in numbers[:2]] == ["home", "home"]
    assert [site.where(number) for number in numbers[2:5]] == ["queue"] * 3
    assert "slow" in [site.where(number) for number in numbers[5:]]


def test_batch_work_leaves_some_of_a_peer_to_interactive_work(site):
    site.join("b", offer(free=2))
    site.press(AWAY)
    assert [site.where(site.ask(priority="batch")) for _ in range(2)] == ["b", "home"]
    assert site.where(site.ask()) == "b"


def test_what_the_slots_of_a_peer_do_not_hold_stays(site):
    site.join("b", offer(most_bytes=-1))
    site.press(AWAY)
    assert site.where(site.ask()) == "home"


def test_a_suspect_stays(site):
    site.join("b", offer(hot=True))
    site.press(AWAY)
    number = site.ask()
    site.world.die(site.home)
    site.offers(next(iter(site.world.ledger.stages["speak"].remotes)), offer())
    assert site.request(number).suspicion
    assert site.where(number) == "queue"


def test_the_answer_of_a_lost_peer_goes_on_at_home_behind_its_tokens(site):
    worker = site.join("b")
    site.press(AWAY)
    number = site.ask()
    site.say(number, 3)
    site.press(CALM)
    site.world.inbox.pop(worker)
    site.world.event(Died(worker, "silent", killed=False))
    assert site.where(number) == "home"
    _, work = site.work(number)
    assert (work.resume_tokens, work.resume_characters) == ((0, 1, 2), 3)
    assert (site.request(number).suspicion, site.request(number).deaths) == (0, 0)
    assert not site.world.waiting, "a peer is not replaced by a process"


def test_late_words_of_a_lost_peer_match_nothing(site):
    worker = site.join("b")
    site.press(AWAY)
    number = site.ask()
    _, work = site.work(number)
    site.world.event(Died(worker, "silent", killed=False))
    stale = site.world.ledger.stale
    site.world.event(Spoke(worker, Tokens(number, work.attempt, 0, (7,), "late")))
    assert site.world.ledger.stale == stale + 1
    assert not site.request(number).tokens


def test_an_answer_that_began_leaves_a_home_that_sheds(site):
    number = site.ask()
    site.say(number, 2)
    site.join("b")
    site.press(URGENT)
    worker, work = site.work(number)
    assert (worker, number, work.attempt) in site.world.cancelled
    site.say(number, 1)  # it was on its way
    site.dropped(worker, number, work.attempt)
    assert site.where(number) == "b"
    assert site.work(number)[1].resume_tokens == (0, 1, 2)


def test_an_answer_that_began_does_not_go_on_with_another_variant(site):
    begun, fresh = site.ask(), site.ask()
    site.say(begun, 2)
    worker = site.join("b", offer(hot=True))
    remote = site.world.ledger.workers[worker].remote
    remote.same = False
    site.offers(worker, offer())
    site.press(URGENT)
    assert [site.request(number).recalled for number in (begun, fresh)] == [False, True]


def test_a_stage_that_is_down_at_home_works_where_a_peer_does(site):
    site.join("b", offer(free=1))
    site.world.ledger.stages["speak"].failed = "no model"
    site.world.ledger.workers[site.home].state = "dying"
    assert site.where(site.ask()) == "b"
    with pytest.raises(StageUnavailable):
        site.ask()
    with pytest.raises(StageUnavailable):
        site.ask(hops=1)


def test_an_answer_that_is_finished_before_it_is_dropped_is_finished(site):
    number = site.ask()
    site.join("b")
    site.press(URGENT)
    worker, work = site.work(number)
    site.world.done(worker, work)
    assert site.world.terminals[number] == 1


def test_no_more_is_recalled_than_peers_would_begin(site):
    numbers = [site.ask() for _ in range(2)]
    site.join("b", offer(free=1))
    site.press(URGENT)
    site.press(URGENT)
    assert sum(site.request(number).recalled for number in numbers) == 1


def test_what_a_peer_declines_goes_on_at_home(site):
    worker = site.join("b", offer(free=1))
    site.press(AWAY)
    number = site.ask()
    _, work = site.work(number)
    site.offers(worker, offer(free=0))
    site.world.event(Returned(worker, number, work.attempt))
    assert site.where(number) == "home"


def test_an_answer_that_nobody_asked_to_drop_goes_on(site):
    worker = site.join("b")
    site.press(AWAY)
    number = site.ask()
    site.say(number, 2)
    site.press(CALM)
    site.dropped(worker, number, site.work(number)[1].attempt)
    assert site.where(number) == "home"
    assert site.work(number)[1].resume_tokens == (0, 1)


def test_an_answer_goes_out_twice_at_most(site):
    site.press(AWAY)
    number = site.ask()
    places = []
    for name in "bcd":
        worker = site.join(name)
        if site.where(number) == "home":
            site.press(URGENT)
            home, work = site.work(number)
            if site.request(number).recalled:
                site.dropped(home, number, work.attempt)
        places.append(site.where(number))
        if site.request(number).worker == worker:
            site.world.inbox.pop(worker)
            site.world.event(Died(worker, "silent", killed=False))
    assert places == ["b", "c", "home"]


@pytest.mark.parametrize("here_s", [0.5, 2.0, 30.0])
@pytest.mark.parametrize("left_s", [1.0, 60.0])
def test_nothing_leaves_for_a_peer_that_is_no_quicker(here_s, left_s):
    assert not worthwhile(here_s, here_s, left_s)
