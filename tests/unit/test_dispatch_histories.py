"""Random histories of the dispatcher: what holds after any order of events."""

from __future__ import annotations

import itertools
from collections import Counter
from math import nan

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from edged.dispatch.batching import dispatch
from edged.dispatch.events import (
    GiveUpAsked,
    IdleAsked,
    Left,
    ReplaceAsked,
    ScaleAsked,
    Send,
    SkippingAsked,
    Spoke,
    Ticked,
    TrialAsked,
)
from edged.dispatch.passing import Rule
from edged.errors import EdgedError
from edged.messages import (
    Failed,
    Gone,
    Judgement,
    Work,
)

from .dispatch_world import ROUTE, World


class Histories(RuleBasedStateMachine):
    """Any order of submissions, progress, deaths, departures and swaps keeps the books straight."""

    works = Bundle("works")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(slots=3, max_batch=2)
        self.scaled: set[str] = set()

    def _pick(self, index: int) -> tuple[str, Work] | None:
        held = [(worker, work) for worker, works in sorted(self.world.inbox.items()) for work in works]
        return held[index % len(held)] if held else None

    @rule(length=st.integers(1, 3))
    def submit(self, length: int) -> None:
        try:
            self.world.submit(ROUTE[3 - length :])
        except EdgedError:
            assert self.world.ledger.entry.used == 3 or any(
                stage.failed for stage in self.world.ledger.stages.values()
            )

    @precondition(lambda self: self.world.waiting)
    @rule(lives=st.booleans())
    def spawn(self, lives: bool) -> None:
        if (worker := self.world.spawn_if_wanted()) and lives:
            self.world.ready(worker)

    @rule(stage=st.sampled_from(ROUTE), who=st.sampled_from(["everything", "benefit", ""]))
    def let_pass(self, stage: str, who: str) -> None:
        rule = Rule(keep=4, everything=who == "everything", from_margin=0.5, sample_every=2)
        self.world.event(SkippingAsked(stage, rule if who else None))

    @rule(index=st.integers(0, 99), fails=st.booleans(), margin=st.sampled_from([None, 0.1, 0.9, nan]))
    def finish(self, index: int, fails: bool, margin: float | None) -> None:
        if (picked := self._pick(index)) is None:
            return
        worker, work = picked
        if (worker, work.request, work.attempt) in self.world.cancelled and fails:
            self.world.inbox[worker].remove(work)
            self.world.event(Spoke(worker, Gone(work.request, work.attempt)))
        elif fails:
            self.world.inbox[worker].remove(work)
            self.world.event(Spoke(worker, Failed(work.request, work.attempt, "bad_request", "no")))
        else:
            self.world.done(worker, work, Judgement(margin, 1, margin))

    @rule(index=st.integers(0, 99), text=st.sampled_from(["a", "bc", ""]))
    def stream(self, index: int, text: str) -> None:
        if (picked := self._pick(index)) and picked[0].startswith("speak"):
            worker, work = picked
            request = self.world.ledger.requests.get(work.request)
            if request is not None and request.worker == worker:
                self.world.say(worker, work, len(request.tokens), text)
                commands = dispatch(self.world.ledger, self.world.now)
                assert not [command for command in commands if isinstance(command, Send)]

    @rule(index=st.integers(0, 99), killed=st.booleans())
    def die(self, index: int, killed: bool) -> None:
        if workers := sorted(self.world.ledger.workers):
            self.world.die(workers[index % len(workers)], killed=killed)

    @rule(index=st.integers(0, 99))
    def leave(self, index: int) -> None:
        if present := sorted(self.world.ledger.requests):
            request = present[index % len(present)]
            if self.world.ledger.requests[request].phase != "leaving":
                self.world.left.add(request)
            self.world.event(Left(request))

    @rule(stage=st.sampled_from(ROUTE))
    def replace(self, stage: str) -> None:
        self.world.event(ReplaceAsked(stage))

    @rule(stage=st.sampled_from(ROUTE))
    def idle(self, stage: str) -> None:
        self.world.event(IdleAsked(stage, "nothing fits", 1))

    @rule(stage=st.sampled_from(ROUTE), alone=st.booleans(), workers=st.integers(1, 2))
    def try_out(self, stage: str, alone: bool, workers: int) -> None:
        if workers >= self.world.ledger.stages[stage].desired:
            self.scaled.add(stage)
            self.world.event(
                TrialAsked(stage=stage, workers=workers, max_batch=2, alone=alone, guarded=False)
            )

    @rule(stage=st.sampled_from(ROUTE), workers=st.integers(1, 3))
    def scale(self, stage: str, workers: int) -> None:
        if not self.world.ledger.stages[stage].idle:
            self.scaled.add(stage)
            self.world.event(ScaleAsked(stage, workers))

    @rule(stage=st.sampled_from(ROUTE))
    def give_up(self, stage: str) -> None:
        self.world.event(GiveUpAsked(stage, "it takes too long"))

    @rule(seconds=st.sampled_from([0.1, 7.0, 31.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.event(Ticked())

    @invariant()
    def at_most_one_terminal_event(self) -> None:
        assert all(count == 1 for count in self.world.terminals.values())
        assert not set(self.world.terminals) & self.world.left

    @invariant()
    def none_lost(self) -> None:
        known = set(self.world.ledger.requests) | set(self.world.terminals) | self.world.left
        assert self.world.accepted <= known

    @invariant()
    def slots_are_held_by_requests_and_nobody_else(self) -> None:
        held = Counter(
            ref.arena
            for request in self.world.ledger.requests.values()
            for ref in (request.source, request.target)
            if ref is not None
        )
        assert held[0] == self.world.ledger.entry.used
        for stage in self.world.ledger.stages.values():
            assert held[stage.slots.arena] == stage.slots.used <= stage.slots.count

    @invariant()
    def credit_never_exceeds_what_was_announced(self) -> None:
        for worker in self.world.ledger.workers.values():
            assert worker.credit >= 0
            assert worker.credit + len(worker.held) <= 2 or worker.state != "ready"

    @invariant()
    def a_request_is_queued_exactly_where_its_phase_says(self) -> None:
        queued = Counter(itertools.chain.from_iterable(s.queue for s in self.world.ledger.stages.values()))
        for request in self.world.ledger.requests.values():
            assert queued[request.id] == (request.phase == "queued")

    @invariant()
    def an_idle_stage_starts_nobody(self) -> None:
        for stage in self.world.ledger.stages.values():
            states = {
                w.state for name in stage.workers if not (w := self.world.ledger.workers[name]).retiring
            }
            assert not (stage.idle and states & {"starting", "ready"})

    @invariant()
    def no_more_workers_than_wanted(self) -> None:
        for stage in self.world.ledger.stages.values():
            alive = [self.world.ledger.workers[name] for name in stage.workers]
            serving = [w for w in alive if not w.retiring and w.state in {"starting", "ready"}]
            spawning = 0 if stage.name in self.scaled else stage.starting  # one too many is called off later
            assert len(serving) + spawning <= stage.desired

    @invariant()
    def one_copy_means_one(self) -> None:
        for stage in self.world.ledger.stages.values():
            if stage.trial is not None and stage.trial.alone:
                states = {self.world.ledger.workers[name].state for name in stage.workers}
                assert not {"starting", "stopping"} <= states

    def teardown(self) -> None:
        """Heal, then everything that was accepted must come to its end."""
        world = self.world
        for _ in range(2000):
            world.now += 40.0 if not world.waiting and not any(world.inbox.values()) else 0.0
            world.event(Ticked())
            while world.waiting:
                if worker := world.spawn_if_wanted():
                    world.ready(worker)
            for worker in sorted(world.ledger.workers):
                if worker in world.killed or (worker in world.stopped and not world.inbox[worker]):
                    world.die(worker)
                elif world.ledger.workers[worker].state == "starting":
                    world.ready(worker)
            if (picked := self._pick(0)) is not None:
                world.done(*picked)
            if not world.ledger.requests:
                break
        assert world.ledger.requests == {}
        assert world.accepted == set(world.terminals) | world.left
        assert world.ledger.entry.used == 0


TestHistories = Histories.TestCase
