"""Core leases through the dispatcher's decisions: what workers are told when, and that nothing gets stuck."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.dispatch.admission import admit, enqueue
from edged.dispatch.decide import decide
from edged.dispatch.events import Command, Deliver, Send, Spoke, Ticked, Waited
from edged.dispatch.leases import PATIENCE_S, PAUSE_S, STANDSTILL_S, TURN_S, Mode
from edged.dispatch.ledger import Ledger, Slots, Stage, Worker
from edged.dispatch.requests import Submission
from edged.messages import Batch, Cores, Done, Priority, Ready, Tokens, Work

RANK, SPEAK = "rank", "speak"
ROUTE = (RANK, SPEAK)
TICK_S = 0.1


class Bench:
    """A batch stage and a token stage on two shared cores."""

    def __init__(
        self, mode: Mode, cores: int = 2, devices: tuple[str, str] = ("cpu", "cpu"), credit: int = 2
    ) -> None:
        self.now = 0.0
        self.ledger = Ledger(Slots(0, 8))
        self.ledger.leases.mode = mode
        self.ledger.leases.cores = frozenset(range(cores))
        self.inbox: dict[str, list[Work]] = {}
        self.told: list[tuple[str, int]] = []
        self.lease: dict[str, int] = {}
        self.finished = 0
        for number, name in enumerate(ROUTE, start=1):
            stage = Stage(name, Slots(number, 4), 2, streaming=name == SPEAK)
            self.ledger.stages[name] = stage
            self.join(name, name, credit=credit, device=devices[number - 1])

    def join(self, worker: str, stage: str, *, credit: int = 2, device: str = "cpu", lanes: int = 1) -> None:
        """A worker of a stage becomes ready."""
        self.inbox[worker], self.lease[worker] = [], len(self.ledger.leases.cores)
        self.ledger.stages[stage].workers.add(worker)
        self.ledger.workers[worker] = Worker(worker, stage, 0.0, 0.0, device=device)
        self.event(Spoke(worker, Ready(credit, 1, 0.0, {}, lanes)))

    def event(self, event: Spoke | Ticked) -> None:
        self.do(decide(self.ledger, event, self.now))

    def do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(worker, Batch(items)):
                    self.inbox[worker].extend(items)
                case Send(worker, Cores(count)):
                    self.told.append((worker, count))
                    self.lease[worker] = count
                case Deliver():
                    self.finished += 1

    def submit(self, route: tuple[str, ...] = ROUTE, priority: Priority = "interactive") -> None:
        asked = Submission(route=route, operation="chat", payload=b"", deadline_s=1e9, priority=priority)
        request = admit(self.ledger, asked, self.now)
        enqueue(self.ledger, request, request.source, self.now)
        self.event(Waited())

    def done(self, worker: str) -> None:
        work = self.inbox[worker].pop(0)
        self.event(Spoke(worker, Done(work.request, work.attempt, work.target, 0.5, 1)))

    def say(self, worker: str) -> None:
        """One more token for each answer of a worker."""
        for work in self.inbox[worker]:
            first = len(self.ledger.requests[work.request].tokens)
            self.event(Spoke(worker, Tokens(work.request, work.attempt, first, (7,), "x")))

    def tick(self, seconds: float = TICK_S) -> None:
        self.now += seconds
        self.event(Ticked())


def test_alone_a_worker_keeps_everything_and_is_told_nothing():
    bench = Bench("split")
    bench.submit()
    bench.done(RANK)
    bench.done(SPEAK)
    assert (bench.finished, bench.told) == (1, [])


def test_split_shares_while_both_have_work_and_gives_back_at_once():
    bench = Bench("split")
    bench.submit((SPEAK,))
    bench.submit((RANK,))
    assert bench.lease == {RANK: 1, SPEAK: 1}
    bench.done(RANK)
    assert bench.lease[SPEAK] == 2
    bench.submit((RANK,))
    assert bench.lease == {RANK: 1, SPEAK: 1}


def test_in_single_a_reranked_question_goes_on_before_the_next_is_reranked():
    bench = Bench("single")
    bench.join("rank2", RANK)
    bench.join("speak2", SPEAK)
    for _ in range(3):
        bench.submit()
    bench.done(RANK)
    bench.done("rank2")
    assert len(bench.inbox[SPEAK]) == len(bench.inbox["speak2"]) == 1
    assert (bench.inbox[RANK], bench.inbox["rank2"]) == ([], []), "neither on an old lease nor on a new one"
    assert (bench.lease[SPEAK], bench.lease["speak2"]) == (1, 1)
    bench.say(SPEAK)
    assert len(bench.inbox[RANK] + bench.inbox["rank2"]) == 1


def test_in_single_a_worker_that_says_so_spreads_a_question_until_a_first_token_is_due():
    bench = Bench("single")
    bench.join("rank, roomier", RANK, credit=4, lanes=2)
    bench.submit((SPEAK,))
    bench.say(SPEAK)
    bench.submit((RANK,))
    assert len(bench.inbox["rank, roomier"]) == 1
    bench.tick()
    assert (bench.lease["rank, roomier"], bench.lease[SPEAK]) == (2, 0)
    bench.submit((SPEAK,))
    bench.tick()
    assert (bench.lease["rank, roomier"], bench.lease[SPEAK]) == (1, 1)


def test_in_single_a_batch_that_waits_to_be_full_stops_no_streams():
    bench = Bench("single")
    bench.join("rank, roomier", RANK, credit=4, lanes=2)
    bench.ledger.stages[RANK].max_wait_s = 0.5
    bench.submit((SPEAK,))
    bench.say(SPEAK)
    bench.submit((RANK,))
    assert bench.inbox["rank, roomier"] == []
    assert bench.lease[SPEAK] == 1
    bench.tick(0.6)
    bench.tick()
    assert (bench.lease["rank, roomier"], bench.lease[SPEAK]) == (2, 0)


def test_in_single_a_backlog_of_batch_work_does_not_hold_up_a_first_token():
    bench = Bench("single", cores=1)
    for _ in range(5):
        bench.submit((RANK,), priority="batch")
    bench.tick(PATIENCE_S + 1)
    bench.done(RANK)
    assert len(bench.inbox[RANK]) == 2, "the next batch"
    bench.submit((SPEAK,))
    bench.done(RANK)
    bench.done(RANK)
    assert (bench.lease[SPEAK], bench.inbox[RANK]) == (1, []), "the two that are left have waited as long"


def test_in_single_who_asked_first_has_the_first_token_first_however_long_the_stages_before_took():
    bench = Bench("single", cores=1)
    bench.join("speak2", SPEAK)
    bench.submit()
    bench.now += 0.1
    bench.submit((SPEAK,))
    assert len(bench.inbox[SPEAK]) == 1
    bench.now += 0.1
    bench.done(RANK)
    assert len(bench.inbox["speak2"]) == 1
    bench.tick()
    assert bench.lease == {RANK: 1, SPEAK: 0, "speak2": 1}


def test_in_single_a_token_worker_that_has_no_room_owes_nothing():
    bench = Bench("single", cores=1, credit=4)
    for _ in range(3):
        bench.submit((SPEAK,))
    assert len(bench.inbox[SPEAK]) == 2, "the stage's limit, not the worker's credit"
    bench.say(SPEAK)
    bench.submit((RANK,))
    assert len(bench.inbox[RANK]) == 1


@pytest.mark.parametrize("mode", ["turns", "single"])
def test_in_a_rest_no_batch_goes_to_a_worker_on_an_old_lease(mode):
    bench = Bench(mode)
    bench.submit((RANK,))
    bench.join("rank, roomier", RANK, credit=4)
    bench.ledger.duty.share, bench.ledger.duty.resting = 0.5, True
    bench.done(RANK)
    bench.submit((RANK,))
    assert (bench.inbox[RANK], bench.inbox["rank, roomier"]) == ([], [])


def test_an_old_lease_elsewhere_is_no_reason_to_leave_work_lying():
    """Two workers of a stage on cores of their own: one is named first, and its core is taken."""
    bench = Bench("single", devices=("cpu:0", "cpu:0"))
    bench.join("rank2", RANK, device="cpu:1")
    bench.submit((SPEAK,))
    bench.submit((RANK,))
    assert bench.inbox[RANK] or bench.inbox["rank2"]


def test_together_nobody_is_told_anything_until_a_neighbour_takes_a_core():
    bench = Bench("together")
    bench.submit((SPEAK,))
    bench.submit((RANK,))
    assert bench.told == []
    bench.ledger.leases.taken = 1
    bench.tick()
    assert bench.lease == {RANK: 1, SPEAK: 1}
    bench.ledger.leases.taken = 0
    bench.tick()
    assert bench.lease == {RANK: 2, SPEAK: 2}


def test_in_turns_a_batch_waits_for_the_streams_turn_and_then_stops_them_for_a_moment():
    bench = Bench("turns")
    bench.submit((SPEAK,))
    bench.submit((RANK,))
    assert (bench.lease, bench.inbox[RANK]) == ({RANK: 0, SPEAK: 2}, [])
    bench.tick(TURN_S + 0.01)
    assert bench.lease == {RANK: 2, SPEAK: 0}
    assert len(bench.inbox[RANK]) == 1
    bench.tick(PAUSE_S / 2)
    assert bench.lease[SPEAK] == 0
    bench.tick(PAUSE_S)
    assert bench.lease == {RANK: 2, SPEAK: 1}
    bench.done(RANK)
    assert bench.lease[SPEAK] == 2


@pytest.mark.parametrize("mode", ["turns", "single"])
def test_a_token_is_enough_for_a_lease_to_end_by_the_clock(mode):
    """Nothing waits and nothing is done: between two ticks the only thing that comes is a token."""
    bench = Bench(mode, cores=1)
    bench.submit((SPEAK,))
    bench.say(SPEAK)
    bench.submit((RANK,))
    bench.tick(TURN_S + 0.01)
    bench.tick(TURN_S + 0.01)
    assert (bench.lease[SPEAK], len(bench.inbox[RANK])) == (0, 1)
    bench.now += 2 * STANDSTILL_S
    bench.say(SPEAK)
    assert bench.lease[SPEAK] == 1


def test_stages_on_cores_of_their_own_do_not_meet():
    bench = Bench("turns", devices=("cpu:0", "cpu:1"))
    bench.submit((SPEAK,))
    bench.submit((RANK,))
    assert bench.told == []
    assert len(bench.inbox[RANK]) == 1


def test_accelerators_and_machines_without_a_core_set_are_left_alone():
    for bench in (Bench("turns", devices=("igpu", "igpu")), Bench("turns", cores=0)):
        bench.submit((SPEAK,))
        bench.submit((RANK,))
        bench.ledger.leases.taken = 1
        bench.tick()
        assert bench.told == []


def test_a_batch_stage_that_cannot_put_its_result_anywhere_holds_up_nobody():
    bench = Bench("turns")
    for _ in range(8):
        bench.submit()
    while len(bench.inbox[SPEAK]) < 2 or bench.ledger.stages[RANK].slots.used < 4:
        if bench.inbox[RANK]:
            bench.done(RANK)
        bench.tick()
    bench.tick(PAUSE_S)
    bench.tick(PAUSE_S)
    assert bench.lease[SPEAK] > 0


def test_a_new_mode_wakes_who_was_paused():
    bench = Bench("turns")
    bench.submit((SPEAK,))
    bench.submit((RANK,))
    bench.tick(TURN_S + 0.01)
    assert bench.lease[SPEAK] == 0
    bench.ledger.leases.mode = "together"
    bench.tick()
    assert bench.lease == {RANK: 2, SPEAK: 2}


@pytest.mark.parametrize("mode", ["split", "turns"])
def test_work_that_may_lease_no_slot_takes_no_cores(mode):
    """Batch work leaves a quarter of the slots free, so its queue is not empty and yet has nobody to send."""
    bench = Bench(mode)
    for _ in range(5):
        bench.submit(priority="batch")
        while bench.inbox[RANK] and bench.lease[RANK]:
            bench.done(RANK)
        bench.tick()
    stage = bench.ledger.stages[RANK]
    assert (len(stage.queue), stage.slots.used, bench.inbox[RANK]) == (2, 3, [])
    for _ in range(10):
        bench.say(SPEAK)
        bench.tick(TURN_S)
        assert bench.lease[SPEAK] == 2


@pytest.mark.parametrize("mode", ["split", "turns"])
def test_the_batch_goes_to_the_worker_that_has_the_cores_for_it(mode):
    bench = Bench(mode)
    bench.join("rank, roomier", RANK, credit=4)
    bench.submit((SPEAK,))
    bench.say(SPEAK)
    bench.tick(TURN_S + 0.01)
    bench.submit((RANK,))
    assert (bench.inbox[RANK], len(bench.inbox["rank, roomier"])) == ([], 1)
    assert bench.lease["rank, roomier"] == {"split": 1, "turns": 2}[mode]
    assert bench.lease[SPEAK] == {"split": 1, "turns": 0}[mode]


def test_in_turns_nobody_takes_the_batch_of_the_worker_that_waits_for_its_turn():
    bench = Bench("turns")
    bench.join("rank, roomier", RANK, credit=4)
    bench.submit((SPEAK,))
    bench.submit((RANK,))
    assert (bench.inbox[RANK], bench.inbox["rank, roomier"]) == ([], [])
    assert (bench.lease["rank, roomier"], bench.lease[SPEAK]) == (0, 2)
    bench.tick(TURN_S + 0.01)
    assert (bench.inbox[RANK], len(bench.inbox["rank, roomier"])) == ([], 1)


def test_in_turns_the_worker_whose_turn_it_is_gets_the_next_batch_at_once():
    bench = Bench("turns")
    rankers = ("rank, roomier", RANK)
    bench.join(rankers[0], RANK, credit=4)
    bench.submit((SPEAK,))
    for _ in range(7):
        bench.submit((RANK,))
    bench.tick(TURN_S + 0.01)
    for _ in range(4):
        ((ranker, batch),) = ((worker, bench.inbox[worker]) for worker in rankers if bench.inbox[worker])
        assert bench.lease[ranker] == 2
        for _ in tuple(batch):
            bench.done(ranker)
        bench.say(SPEAK)
    assert bench.finished == 7


def test_in_turns_two_token_workers_do_not_keep_the_batch_waiting():
    bench = Bench("turns")
    bench.join("speak 2", SPEAK)
    for _ in range(4):
        bench.submit((SPEAK,))
    speakers = (SPEAK, "speak 2")
    for _ in range(50):  # answers that run for five seconds: longer than anybody's patience
        bench.tick()
        for worker in speakers:
            bench.say(worker)
    assert [len(bench.inbox[worker]) for worker in speakers] == [2, 2]
    bench.submit((RANK,))
    for _ in range(3):
        bench.tick()
        for worker in speakers:
            bench.say(worker)
    assert len(bench.inbox[RANK]) == 1


steps = st.lists(st.sampled_from(["submit", "batch", "speak", "tick", "neighbour", "rank"]), max_size=40)


@settings(max_examples=60)
@given(
    steps,
    st.sampled_from(get_args(Mode)),
    st.integers(1, 3),
    st.sets(st.sampled_from(ROUTE)),
    st.integers(1, 3),
)
@pytest.mark.parametrize("patience_ticks", [200])
def test_whatever_happens_everything_is_finished(patience_ticks, history, mode, cores, doubled, lanes):
    bench = Bench(mode, cores)
    for stage in sorted(doubled):
        bench.join(f"{stage} 2", stage, credit=3, lanes=lanes)
    submitted = 0
    for step in history:
        match step:
            case "submit" | "batch" if bench.ledger.entry.used < 6:
                bench.submit(priority="batch" if step == "batch" else "interactive")
                submitted += 1
            case "neighbour":
                bench.ledger.leases.taken = 1 - bench.ledger.leases.taken
            case "rank" | "speak" if bench.inbox[step] and bench.lease[step]:
                bench.done(step)
            case _:
                bench.tick()
    for _ in range(patience_ticks):
        for worker in bench.inbox:
            if bench.inbox[worker] and bench.lease[worker]:
                bench.done(worker)
        bench.tick()
    assert bench.finished == submitted
    assert not bench.ledger.requests
