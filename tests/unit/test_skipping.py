"""Stages that requests pass by: which do, what becomes of those that wait, what is learnt from the others."""

from __future__ import annotations

from math import inf, nan

import pytest

from edged.dispatch.events import SkippingAsked
from edged.dispatch.passing import Judged, Rule
from edged.errors import StageUnavailable
from edged.messages import Batch, ChatTask, Judgement, Message, Passage, SlotRef, Work, decoder, encode
from edged.stages.keeping import kept, kept_payload

from .dispatch_world import World

EVERYTHING = Rule(keep=4, everything=True)
BENEFIT = Rule(keep=4, from_margin=0.6, sample_every=4)


def ready_world(rule: Rule | None) -> World:
    world = World()
    world.all_ready()
    world.event(SkippingAsked("rank", rule))
    return world


def retrieved(world: World, judgement: Judgement | None) -> int:
    """Submit a chat and let the retriever finish it."""
    request = world.submit()
    worker = world.worker("embed")
    (work,) = world.inbox[worker]
    world.done(worker, work, judgement)
    return request


def work_at(world: World, stage: str) -> list[Work]:
    return world.inbox[world.worker(stage)]


def passes(rule: Rule, judgement: Judgement | None) -> bool:
    world = ready_world(rule)
    retrieved(world, judgement)
    return not work_at(world, "rank")


def test_who_passes_takes_the_slot_of_the_stage_before_along():
    world = ready_world(EVERYTHING)
    request = retrieved(world, None)
    (work,) = work_at(world, "speak")
    ledger = world.ledger
    assert (work.source.arena, work.keep) == (ledger.stages["embed"].slots.arena, 4)
    assert ledger.stages["rank"].slots.used == 0
    commands = world.done(world.worker("speak"), work)
    (deliver,) = [each for each in commands if type(each).__name__ == "Deliver"]
    assert deliver.skipped == ("rank",)
    assert [timing.stage for timing in deliver.timings] == ["embed", "speak"]
    assert world.terminals[request] == 1
    assert ledger.stages["embed"].slots.used == 0


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.6, True), (0.59, False), (None, False), (nan, False), (-inf, False), (1e300, True)],
)
def test_benefit_is_a_matter_of_the_margin(margin, expected):
    assert passes(BENEFIT, Judgement(margin, 1)) == expected


def test_without_a_judgement_nothing_passes_for_benefit():
    assert not passes(BENEFIT, None)


def test_what_was_learnt_counts_for_its_generation_only():
    rule = Rule(keep=4, from_margin=0.9, own_from_margin=0.3, own_generation=7)
    assert passes(rule, Judgement(0.5, 7))
    assert not passes(rule, Judgement(0.5, 8))
    assert not passes(Rule(keep=4, from_margin=0.9, own_from_margin=0.3), Judgement(0.5, 0))


def test_one_in_so_many_is_reranked_all_the_same():
    world = ready_world(BENEFIT)
    for _ in range(8):
        retrieved(world, Judgement(0.9, 1))
        for stage in ("rank", "speak"):
            for work in list(work_at(world, stage)):
                world.done(world.worker(stage), work)
        for work in list(work_at(world, "speak")):
            world.done(world.worker("speak"), work)
    passing = world.ledger.stages["rank"].passing
    assert (passing.skipped, passing.eligible, passing.stayed) == (6, 8, 2)


def test_who_waits_goes_on_when_everything_may_and_stays_otherwise():
    world = ready_world(None)
    for _ in range(4):
        retrieved(world, Judgement(0.9, 1))
    waiting = len(world.ledger.stages["rank"].queue)
    in_work = len(work_at(world, "rank"))
    assert waiting
    world.event(SkippingAsked("rank", BENEFIT))
    assert len(world.ledger.stages["rank"].queue) == waiting
    world.event(SkippingAsked("rank", EVERYTHING))
    assert not world.ledger.stages["rank"].queue
    assert len(work_at(world, "rank")) == in_work
    for stage in ("rank", "speak"):
        while works := list(work_at(world, stage)):
            world.done(world.worker(stage), works[0])
    assert all(world.terminals[request] == 1 for request in world.accepted)
    assert world.ledger.stages["embed"].slots.used == 0


def test_the_last_stage_and_other_operations_are_never_passed_by():
    world = ready_world(EVERYTHING)
    world.submit(("rank",))
    assert len(work_at(world, "rank")) == 1


def test_a_stage_that_everybody_passes_by_may_be_down():
    world = ready_world(None)
    world.ledger.stages["rank"].failed = "no weights"
    with pytest.raises(StageUnavailable):
        world.submit()
    world.event(SkippingAsked("rank", BENEFIT))
    with pytest.raises(StageUnavailable):
        world.submit()
    world.event(SkippingAsked("rank", EVERYTHING))
    retrieved(world, None)
    assert len(work_at(world, "speak")) == 1


def test_judgements_meet_the_margin_that_they_are_about():
    world = ready_world(BENEFIT)
    retrieved(world, Judgement(0.2, 3))
    (work,) = work_at(world, "rank")
    world.done(world.worker("rank"), work, Judgement(missed=0.25))
    retrieved(world, Judgement(0.9, 3))
    assert list(world.ledger.stages["rank"].passing.judged) == [Judged(3, 0.2, 0.25), Judged(3, 0.9, None)]


def test_a_work_that_was_skipped_to_is_done_again_with_its_passages():
    world = ready_world(EVERYTHING)
    retrieved(world, None)
    first = world.worker("speak")
    world.die(first, killed=True)
    world.ready(world.spawn("speak"))
    (work,) = work_at(world, "speak")
    assert (work.keep, work.attempt) == (4, 3)
    assert not work_at(world, "rank")


def test_what_is_new_in_messages_is_optional_on_the_wire():
    world = ready_world(EVERYTHING)
    retrieved(world, None)
    (work,) = work_at(world, "speak")
    assert decoder(Batch)(encode(Batch((work,)))).items == (work,)


def task(keep: int = 0, *, grounded: bool = True) -> ChatTask:
    passages = tuple(Passage(id=number, text="x", source="s") for number in range(6))
    return ChatTask(messages=(Message("user", "?"),), grounded=grounded, passages=passages, keep=keep)


@pytest.mark.parametrize(
    ("asked", "keep", "left"), [(0, 4, 4), (2, 4, 2), (5, 4, 5), (0, 0, 6), (3, 0, 6), (9, 4, 6)]
)
def test_as_many_passages_are_used_as_the_reranker_would_have_kept(asked, keep, left):
    found = kept(task(asked), keep).passages
    assert [passage.id for passage in found] == list(range(left))
    assert decoder(ChatTask)(kept_payload(encode(task(asked)), keep)).passages == found


def test_a_peer_gets_no_more_passages_than_a_worker_uses():
    from edged.dispatch.remotes import Remotes

    class Read:
        def read(self, _ref: SlotRef) -> memoryview:
            return memoryview(encode(task()))

    remotes = Remotes(World().ledger, Read(), lambda _: None)  # type: ignore[arg-type]
    work = Work(1, 1, "chat", SlotRef(1, 0, 1), SlotRef(2, 0, 1), 1000, keep=4)
    payload, _ = remotes.task(work)
    assert len(decoder(ChatTask)(payload).passages) == 4
