"""Histories of boxes that heat up and cool down: no answer goes back and forth, and every one ends well."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edged.dispatch.events import Died, Returned
from edged.dispatch.offload import MOST_TRIPS
from edged.dispatch.peer import Pressure
from edged.messages import Priority
from tests.unit.peer_site import AWAY, CALM, URGENT, Site, offer


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
