"""What is made by which peer: decisions over a ledger, without processes, clocks or sockets."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.events import Died, Joined, Returned, Spoke, Ticked, Waited
from edged.dispatch.ledger import Request
from edged.dispatch.offload import MOST_TRIPS, worthwhile
from edged.dispatch.peer import Offer, Pressure
from edged.dispatch.requests import Submission
from edged.errors import StageUnavailable
from edged.messages import Gone, Priority, Tokens, Work
from tests.unit.dispatch_world import World

AWAY, URGENT, CALM = Pressure(away=True), Pressure(away=True, urgent=True), Pressure()


def offer(free: int = 2, *, hot: bool = False, most_bytes: int = 4096, **more: float) -> Offer:
    known = {"wait_s": 0.0, "service_s": 1.0, "tokens_per_s": 0.0} | more
    return Offer(identity="m", grant=4, free=free, most_bytes=most_bytes, hot=hot, **known)  # type: ignore[arg-type]


@dataclass
class Site:
    """A node with one generator, and peers."""

    world: World = field(default_factory=lambda: World(slots=8, max_batch=2))

    def __post_init__(self) -> None:
        self.world.all_ready()

    @property
    def home(self) -> str:
        return self.world.worker("speak")

    def join(self, peer: str, offered: Offer | None = None) -> str:
        self.world.ledger.last_worker += 1
        worker = f"speak-{self.world.ledger.last_worker}"
        self.world.inbox[worker] = []
        self.world.event(Joined(worker, "speak", peer, 4, ""))
        self.offers(worker, offered or offer())
        return worker

    def offers(self, worker: str, offered: Offer) -> None:
        remote = self.world.ledger.workers[worker].remote
        assert remote is not None
        remote.offer, remote.balance = offered, 0
        self.world.event(Waited())

    def press(self, pressure: Pressure) -> None:
        self.world.ledger.pressure = pressure
        self.world.event(Ticked())

    def ask(self, *, hops: int = 0, priority: Priority = "interactive", tokens: tuple[int, ...] = ()) -> int:
        asked = Submission(
            route=("speak",),
            operation="chat",
            payload=b"",
            deadline_s=1e6,
            priority=priority,
            hops=hops,
            resume_tokens=tokens,
            resume_characters=len(tokens),
        )
        request = admit(self.world.ledger, asked, self.world.now)
        self.world.accepted.add(request.id)
        enqueue(self.world.ledger, request, request.source, self.world.now)
        self.world.event(Waited())
        return request.id

    def request(self, number: int) -> Request:
        return self.world.ledger.requests[number]

    def where(self, number: int) -> str:
        """The peer that has a request, `home`, or `queue`."""
        request = self.request(number)
        if request.phase == "queued":
            return "queue"
        remote = self.world.ledger.workers[request.worker].remote
        return remote.peer if remote else "home"

    def work(self, number: int) -> tuple[str, Work]:
        worker = self.request(number).worker
        return worker, next(work for work in self.world.inbox[worker] if work.request == number)

    def say(self, number: int, count: int = 1) -> None:
        worker, work = self.work(number)
        first = len(self.request(number).tokens)
        ids = tuple(range(first, first + count))
        self.world.event(Spoke(worker, Tokens(number, work.attempt, first, ids, "x" * count)))

    def dropped(self, worker: str, number: int, attempt: int) -> None:
        """A worker obeys a cancel."""
        self.world.inbox[worker] = [work for work in self.world.inbox[worker] if work.request != number]
        self.world.event(Spoke(worker, Gone(number, attempt)))


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


class Heat(RuleBasedStateMachine):
    """Peers come, go, heat up and cool down, and so does the home; workers die; every answer ends well."""

    @initialize()
    def start(self) -> None:
        self.site = Site()
        self.peers: dict[str, str] = {}
        self.number = 0
        self.handed_to_hot = False

    @property
    def ledger(self):
        return self.site.world.ledger

    @rule(hops=st.sampled_from([0, 0, 1]), priority=st.sampled_from(["interactive", "batch"]))
    def ask(self, hops: int, priority: Priority) -> None:
        if self.ledger.entry.room(priority):
            self.site.ask(hops=hops, priority=priority)

    @rule(pressure=st.sampled_from([CALM, AWAY, URGENT]))
    def press(self, pressure: Pressure) -> None:
        self.site.press(pressure)

    @rule(free=st.integers(0, 3), hot=st.booleans())
    def come(self, free: int, hot: bool) -> None:
        if len(self.peers) < 3:
            self.number += 1
            name = f"p{self.number}"
            self.peers[name] = self.site.join(name, offer(free, hot=hot))

    @rule(data=st.data(), free=st.integers(0, 3), hot=st.booleans())
    def offer(self, data: st.DataObject, free: int, hot: bool) -> None:
        if self.peers:
            self.site.offers(self.peers[data.draw(st.sampled_from(sorted(self.peers)))], offer(free, hot=hot))

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        if self.peers:
            worker = self.peers.pop(data.draw(st.sampled_from(sorted(self.peers))))
            self.site.world.inbox.pop(worker)
            self.site.world.event(Died(worker, "silent", killed=False))

    @rule(data=st.data())
    def say(self, data: st.DataObject) -> None:
        running = [r.id for r in self.ledger.requests.values() if r.phase == "running"]
        if running:
            self.site.say(data.draw(st.sampled_from(running)))

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        running = [r.id for r in self.ledger.requests.values() if r.phase == "running"]
        if running:
            worker, work = self.site.work(data.draw(st.sampled_from(running)))
            self.site.world.done(worker, work)

    @rule(data=st.data())
    def decline(self, data: st.DataObject) -> None:
        away = [r for r in self.ledger.requests.values() if r.worker in self.peers.values()]
        if away:
            request = data.draw(st.sampled_from(sorted(away, key=lambda r: r.id)))
            worker, work = self.site.work(request.id)
            self.site.world.inbox[worker].remove(work)
            self.site.world.event(Returned(worker, request.id, work.attempt))

    @rule()
    def obey(self) -> None:
        for worker, number, attempt in sorted(self.site.world.cancelled):
            held = self.ledger.workers.get(worker)
            if held is not None and held.held.get(number) == attempt:
                self.site.dropped(worker, number, attempt)

    @invariant()
    def nothing_goes_back_and_forth(self) -> None:
        if hasattr(self, "site"):
            assert all(r.trips <= (0 if r.hops else MOST_TRIPS) for r in self.ledger.requests.values())

    @invariant()
    def peers_hold_no_more_than_their_credit(self) -> None:
        if hasattr(self, "site"):
            for worker in self.ledger.workers.values():
                assert worker.credit >= 0
                assert worker.remote is None or len(worker.held) + worker.credit <= 4

    @invariant()
    def the_idle_have_no_queue_before_them(self) -> None:
        if hasattr(self, "site"):
            home = self.ledger.workers[self.site.home]
            free = home.credit > 0 and len(home.held) < self.ledger.stages["speak"].limit
            assert not (free and len(self.ledger.stages["speak"].queue))

    def teardown(self) -> None:
        if not hasattr(self, "site"):
            return
        for worker in self.peers.values():
            self.site.world.event(Died(worker, "the end", killed=False))
        while running := [r.id for r in self.ledger.requests.values() if r.phase == "running"]:
            self.site.world.done(*self.site.work(running[0]))
        assert not self.ledger.requests
        assert {n: self.site.world.terminals[n] for n in self.site.world.accepted} == dict.fromkeys(
            self.site.world.accepted, 1
        )
        assert not any(slots.used for slots in self._arenas())

    def _arenas(self):
        return [self.ledger.entry, *(stage.slots for stage in self.ledger.stages.values())]


TestHeat = Heat.TestCase
TestHeat.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
