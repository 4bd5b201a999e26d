"""The dispatcher's decisions, without processes: a test for each rule, random histories for invariants."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.deaths import start, wanted
from edged.dispatch.decide import decide
from edged.dispatch.events import (
    Command,
    Deliver,
    Died,
    IdleAsked,
    Kill,
    Left,
    Refuse,
    ReplaceAsked,
    Send,
    Spawn,
    Spoke,
    Stream,
    Ticked,
    Waited,
)
from edged.dispatch.forecast import wait_s
from edged.dispatch.ledger import Ledger, Slots, Stage, Worker
from edged.dispatch.requests import Submission
from edged.errors import EdgedError, Overloaded, StageUnavailable
from edged.messages import (
    Batch,
    Cancel,
    Done,
    Failed,
    Fault,
    Gone,
    Priority,
    Ready,
    SlotRef,
    Stop,
    Tokens,
    Work,
)

ROUTE = ("embed", "rank", "speak")


class World:
    """A ledger with three stages, and hands that do what the commands say."""

    def __init__(self, slots: int = 4, max_batch: int = 2) -> None:
        self.now = 0.0
        self.ledger = Ledger(Slots(0, slots))
        self.inbox: dict[str, list[Work]] = {}
        self.cancelled: set[tuple[str, int, int]] = set()
        self.stopped: set[str] = set()
        self.killed: set[str] = set()
        self.waiting: list[str] = []
        self.terminals: Counter[int] = Counter()
        self.streams: dict[int, str] = {}
        self.refusals: dict[int, str] = {}
        self.accepted: set[int] = set()
        self.left: set[int] = set()
        for number, name in enumerate(ROUTE, start=1):
            stage = Stage(name, Slots(number, slots), max_batch, streaming=name == "speak")
            self.ledger.stages[name] = stage
            self.do(start(self.ledger, stage))

    def do(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            match command:
                case Send(worker, Batch(items)):
                    self.inbox[worker].extend(items)
                case Send(worker, Cancel(request, attempt)):
                    self.cancelled.add((worker, request, attempt))
                case Send(worker, Stop()):
                    self.stopped.add(worker)
                case Kill(worker, _):
                    self.killed.add(worker)
                case Spawn(stage, _):
                    self.waiting.append(stage)
                case Stream(request, text, _):
                    self.streams[request] = self.streams.get(request, "") + text
                case Deliver(request):
                    self.terminals[request] += 1
                case Refuse(request, error):
                    self.terminals[request] += 1
                    self.refusals[request] = error.code
        return commands

    def event(self, event: object) -> list[Command]:
        return self.do(decide(self.ledger, event, self.now))  # type: ignore[arg-type]

    def spawn(self, stage: str | None = None) -> str:
        """Start the process of a `Spawn` and let it announce itself."""
        name = self.waiting.pop(0 if stage is None else self.waiting.index(stage))
        self.ledger.last_worker += 1
        worker = f"{name}-{self.ledger.last_worker}"
        self.ledger.workers[worker] = Worker(worker, name, heard_at=self.now, started_at=self.now)
        self.ledger.stages[name].workers.add(worker)
        self.ledger.stages[name].starting -= 1
        self.inbox[worker] = []
        return worker

    def spawn_if_wanted(self) -> str | None:
        """The same for the next one, unless it is called off."""
        name = self.waiting[0]
        if wanted(self.ledger, self.ledger.stages[name]):
            return self.spawn()
        self.waiting.pop(0)
        return None

    def ready(self, worker: str, credit: int = 2) -> None:
        self.event(Spoke(worker, Ready(credit, 1, 0.0, {})))

    def submit(
        self,
        route: tuple[str, ...] = ROUTE,
        deadline_s: float = 1e9,
        *,
        priority: Priority = "interactive",
        firm: bool = False,
    ) -> int:
        asked = Submission(
            route=route,
            operation="chat",
            payload=b"",
            deadline_s=deadline_s,
            priority=priority,
            firm=firm,
        )
        request = admit(self.ledger, asked, self.now)
        self.accepted.add(request.id)
        enqueue(self.ledger, request, request.source, self.now)
        self.event(Waited())
        return request.id

    def done(self, worker: str, work: Work) -> list[Command]:
        self.inbox[worker].remove(work)
        return self.event(Spoke(worker, Done(work.request, work.attempt, work.target, 0.01, 1)))

    def say(self, worker: str, work: Work, first: int, text: str) -> None:
        tokens = tuple(range(first, first + len(text)))
        self.event(Spoke(worker, Tokens(work.request, work.attempt, first, tokens, text)))

    def die(self, worker: str, *, killed: bool = False) -> list[Command]:
        self.inbox.pop(worker)
        return self.event(Died(worker, "test", killed))

    def worker(self, stage: str) -> str:
        return next(iter(self.ledger.stages[stage].workers))

    def all_ready(self) -> None:
        while self.waiting:
            self.ready(self.spawn())


@pytest.fixture
def world() -> World:
    world = World()
    world.all_ready()
    return world


def test_a_request_walks_its_route_and_gives_every_slot_back(world: World) -> None:
    request = world.submit()
    for stage in ROUTE:
        worker = world.worker(stage)
        (work,) = world.inbox[worker]
        assert work.request == request
        world.done(worker, work)
    assert world.terminals == {request: 1}
    assert world.ledger.entry.used == 0
    assert all(stage.slots.used == 0 for stage in world.ledger.stages.values())


def test_a_full_entry_refuses_with_a_predicted_wait() -> None:
    world = World(slots=2)
    world.submit(), world.submit()
    with pytest.raises(Overloaded) as refused:
        world.submit()
    assert refused.value.retry_after_s == 1.0  # nothing was measured yet
    assert world.ledger.entry.used == 2
    assert world.ledger.rejected == {"overloaded": 1}


def test_a_stage_that_nobody_will_start_promises_no_return() -> None:
    world = World()
    stage = world.ledger.stages["rank"]
    stage.failed, stage.retry_at = "it is switched off", float("inf")
    with pytest.raises(StageUnavailable, match="switched off") as refused:
        world.submit()
    assert refused.value.retry_after_s is None
    world.submit(("embed",))


def test_the_predicted_wait_counts_what_is_ahead(world: World) -> None:
    worker = world.worker("speak")
    for _ in range(3):
        world.submit(("speak",))
    work = world.inbox[worker][0]
    world.event(Spoke(worker, Done(work.request, work.attempt, work.target, 4.0, 1)))
    assert wait_s(world.ledger, ("speak",)) == pytest.approx(2 * 4.0 / 2)


def test_no_free_output_slot_means_no_dispatch() -> None:
    world = World(slots=1, max_batch=1)
    world.all_ready()
    world.submit()
    worker = world.worker("embed")
    world.done(worker, world.inbox[worker][0])
    world.submit()
    rank = world.worker("rank")
    assert world.inbox[worker] == []  # its one output slot waits for `rank`
    world.done(rank, world.inbox[rank][0])
    assert len(world.inbox[worker]) == 1


def test_waiting_items_form_one_batch_when_the_worker_is_free(world: World) -> None:
    worker = world.worker("embed")
    first = world.submit()
    others = [world.submit(), world.submit()]
    assert [work.request for work in world.inbox[worker]] == [first]
    sent = world.done(worker, world.inbox[worker][0])
    batches = [
        c.message for c in sent if isinstance(c, Send) and isinstance(c.message, Batch) and c.worker == worker
    ]
    assert [[work.request for work in batch.items] for batch in batches] == [others]


def test_work_of_a_dead_worker_goes_on_in_order_at_the_head(world: World) -> None:
    first = world.submit()
    world.submit(), world.submit()
    world.die(world.worker("embed"), killed=True)
    assert world.ledger.stages["embed"].queue.first() == first
    replacement = world.spawn()
    world.ready(replacement)
    assert world.inbox[replacement][0].request == first
    assert world.inbox[replacement][0].attempt == 2


def test_words_of_the_dead_change_nothing(world: World) -> None:
    world.submit()
    worker = world.worker("embed")
    work = world.inbox[worker][0]
    world.die(worker, killed=True)
    assert world.event(Spoke(worker, Done(work.request, work.attempt, work.target, 0.0, 1))) == []
    assert world.ledger.stale == 1


def test_a_result_under_another_generation_is_dropped(world: World) -> None:
    world.submit()
    worker = world.worker("embed")
    work = world.inbox[worker][0]
    forged = SlotRef(work.target.arena, work.target.slot, work.target.generation + 1)
    world.event(Spoke(worker, Done(work.request, work.attempt, forged, 0.0, 1)))
    assert world.ledger.stale == 1
    assert world.ledger.requests[work.request].stage == "embed"


def at_generator(world: World) -> tuple[int, str, Work]:
    request = world.submit()
    for stage in ROUTE[:2]:
        worker = world.worker(stage)
        world.done(worker, world.inbox[worker][0])
    worker = world.worker("speak")
    return request, worker, world.inbox[worker][-1]


def test_an_answer_is_continued_from_the_tokens_already_sent(world: World) -> None:
    request, worker, work = at_generator(world)
    world.say(worker, work, 0, "abc")
    world.die(worker, killed=True)
    replacement = world.spawn()
    world.ready(replacement)
    (again,) = world.inbox[replacement]
    assert again.resume_tokens == (0, 1, 2)
    assert again.resume_characters == 3
    world.say(replacement, again, 3, "de")
    (deliver,) = [c for c in world.done(replacement, again) if isinstance(c, Deliver)]
    assert world.streams[request] == "abcde"
    assert deliver.resumed == 1


def test_tokens_out_of_order_cost_the_worker_its_life(world: World) -> None:
    _, worker, work = at_generator(world)
    world.say(worker, work, 1, "x")
    assert worker in world.killed
    assert world.streams == {}


def test_two_crashes_without_progress_poison_a_request(world: World) -> None:
    poison = world.submit()
    for _ in range(2):
        world.die(world.worker("embed"))
        if world.waiting:
            world.ready(world.spawn())
    assert world.refusals == {poison: "poisoned"}


def test_kills_from_outside_hardly_count(world: World) -> None:
    request = world.submit()
    for _ in range(15):
        world.die(world.worker("embed"), killed=True)
        world.ready(world.spawn())
    assert world.terminals[request] == 0
    world.die(world.worker("embed"), killed=True)
    assert world.refusals == {request: "poisoned"}


def test_a_suspect_runs_alone_and_the_innocent_survive(world: World) -> None:
    worker = world.worker("embed")
    blocker = world.submit()
    innocent, poison = world.submit(), world.submit()
    world.done(worker, world.inbox[worker][0])
    assert [work.request for work in world.inbox[worker]] == [innocent, poison]
    world.die(worker)
    replacement = world.spawn()
    world.ready(replacement)
    assert [work.request for work in world.inbox[replacement]] == [innocent]
    world.done(replacement, world.inbox[replacement][0])
    assert [work.request for work in world.inbox[replacement]] == [poison]
    world.die(replacement)
    assert world.refusals == {poison: "poisoned"}
    assert blocker in world.ledger.requests


def test_a_crash_loop_gives_up_refuses_and_tries_again_later() -> None:
    world = World()
    waiting = world.submit()
    for _ in range(6):
        world.die(world.spawn("embed"))
    assert world.ledger.stages["embed"].failed
    assert world.refusals == {waiting: "stage_unavailable"}
    with pytest.raises(StageUnavailable):
        world.submit()
    world.now += 31
    world.event(Ticked())
    assert "embed" in world.waiting
    world.ready(world.spawn("embed"))
    world.submit()


def test_a_fault_that_would_repeat_is_not_repeated() -> None:
    world = World()
    worker = world.spawn("embed")
    world.event(Spoke(worker, Fault("config", "no such device")))
    assert worker in world.killed
    world.die(worker)
    assert world.ledger.stages["embed"].failed == "no such device"
    assert "embed" not in world.waiting


def test_a_replacement_takes_over_when_it_is_ready_and_not_before(world: World) -> None:
    old = world.worker("embed")
    world.event(ReplaceAsked("embed"))
    new = world.spawn("embed")
    world.submit()
    assert len(world.inbox[old]) == 1
    world.ready(new)
    assert old in world.stopped
    world.submit()
    assert len(world.inbox[new]) == 1
    world.done(old, world.inbox[old][0])
    world.die(old)
    assert world.waiting == []


def test_a_replacement_that_never_loads_leaves_the_old_worker_serving(world: World) -> None:
    old = world.worker("embed")
    world.event(ReplaceAsked("embed"))
    for _ in range(6):
        world.die(world.spawn("embed"))
    assert world.waiting == []
    assert not world.ledger.stages["embed"].failed
    assert world.ledger.stages["embed"].trouble
    world.submit()
    assert len(world.inbox[old]) == 1


def test_a_silent_worker_with_work_is_killed(world: World) -> None:
    world.submit()
    world.now += 61
    world.event(Ticked())
    assert world.worker("embed") in world.killed


def test_an_idle_worker_is_asked_for_a_sign_of_life(world: World) -> None:
    world.now += 6
    world.event(Ticked())
    world.now += 61
    world.event(Ticked())
    assert world.killed == set(world.ledger.workers)


def test_a_deadline_ends_a_request_once_and_frees_its_slots_when_the_worker_lets_go(world: World) -> None:
    request = world.submit(deadline_s=5.0)
    worker = world.worker("embed")
    work = world.inbox[worker][0]
    world.now = 6.0
    world.event(Ticked())
    assert world.refusals == {request: "deadline_exceeded"}
    assert world.ledger.entry.used == 1
    world.done(worker, work)
    assert world.terminals[request] == 1
    assert world.ledger.entry.used == 0


def test_a_client_that_leaves_frees_a_queued_request_at_once() -> None:
    world = World()
    request = world.submit()
    world.event(Left(request))
    assert world.ledger.entry.used == 0
    assert world.terminals[request] == 0


class Histories(RuleBasedStateMachine):
    """Any order of submissions, progress, deaths, departures and swaps keeps the books straight."""

    works = Bundle("works")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(slots=3, max_batch=2)

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

    @rule(index=st.integers(0, 99), fails=st.booleans())
    def finish(self, index: int, fails: bool) -> None:
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
            self.world.done(worker, work)

    @rule(index=st.integers(0, 99), text=st.sampled_from(["a", "bc", ""]))
    def stream(self, index: int, text: str) -> None:
        if (picked := self._pick(index)) and picked[0].startswith("speak"):
            worker, work = picked
            request = self.world.ledger.requests.get(work.request)
            if request is not None and request.worker == worker:
                self.world.say(worker, work, len(request.tokens), text)

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
            assert len(serving) + stage.starting <= stage.desired

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
