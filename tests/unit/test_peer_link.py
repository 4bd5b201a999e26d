"""The way to a peer: its patience, and that nothing is lost on it."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from edged.dispatch.peer import Offer
from edged.errors import ContextOverflow, Overloaded
from edged.messages import (
    Cancel,
    encode,
)
from edged.peers.identity import Kin
from edged.peers.messages import (
    MOST_REMAINING_MS,
    VERSION,
    Answered,
    Declined,
    Drop,
    Dropped,
    Said,
    Take,
)
from edged.peers.quota import READ_AT_ONCE
from tests.unit.peer_bench import ANSWER, OFFER, TASK, Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_peer_that_answers_gets_a_seat_and_work(bench):
    bench.up()
    bench.hand()
    take = bench.line.sent[-1]
    assert isinstance(take, Take)
    assert (take.identity, take.hops, take.tokens, take.characters) == ("model", 1, (7, 8), 2)
    bench.hear(Said(1, 1, 2, (9,), "x"))
    bench.hear(Answered(1, 1, ANSWER, 0.5))
    assert [type(message).__name__ for message in bench.remotes.said] == ["Tokens", "Done"]
    assert bench.link.held == 0


def test_an_offer_does_not_know_of_what_was_sent_after_its_question(bench):
    bench.up()
    bench.look(0.25)  # asks again
    bench.hand(1)
    bench.answer()
    assert bench.remotes.offers[-1] == (OFFER, -1)
    bench.look(0.25)
    bench.answer()
    assert bench.remotes.offers[-1] == (OFFER, 0)


def test_silence_sends_the_work_home_within_its_bound(bench):
    bench.up()
    bench.hand()
    bench.look(0.65)
    assert bench.link.up
    bench.look(0.2)
    assert not bench.link.up
    assert "silent" in bench.remotes.left[0]
    assert not bench.line.open
    assert (bench.link.returned, bench.link.failures) == (1, 1)


@given(st.floats(0.7, 600.0))
def test_a_daemon_that_slept_itself_accuses_nobody(slept_s):
    bench = Bench()
    bench.up()
    bench.hand()
    bench.look(1.0, answered=True)
    bench.now += slept_s  # nothing ran here; the peer said something meanwhile
    bench.line.waiting.append(encode(Said(1, 1, 2, (9,), "x")))
    bench.look(0.3, answered=True)
    assert bench.link.up


def test_a_stalled_answer_is_silence_though_questions_are_answered(bench):
    bench.up()
    bench.hand()
    bench.hear(Said(1, 1, 2, (9,), "x"))
    bench.look(2.4, answered=True)
    assert bench.link.up
    bench.look(0.3, answered=True)
    assert not bench.link.up
    assert "no token" in bench.remotes.left[0]


def test_a_first_token_may_take_longer(bench):
    bench.up()
    bench.hand()
    bench.look(9.9, answered=True)
    assert bench.link.up
    bench.look(0.3, answered=True)
    assert not bench.link.up


def test_a_peer_that_fails_is_left_alone_for_longer_and_longer(bench):
    for waits_s in (1.0, 2.0, 4.0):
        bench.up()
        while bench.link.up:
            bench.look(0.05)
        failed_at, lines = bench.now, len(bench.wires.lines)
        while len(bench.wires.lines) == lines:
            bench.look(0.05)
        assert bench.now - failed_at == pytest.approx(waits_s, abs=0.2)


def test_an_answer_makes_up_for_failures(bench):
    bench.up()
    bench.look(1.0)
    bench.look(1.2)
    bench.up()
    bench.hand()
    bench.hear(Answered(1, 1, ANSWER, 0.5))
    bench.look(1.0)
    assert bench.link.breaker.refusal_s(bench.now) <= 1.0


def test_what_a_peer_says_too_late_is_dropped(bench):
    bench.up()
    bench.hear(Said(5, 1, 0, (1,), "x"))
    bench.hear(Answered(5, 1, b"", 0.0))
    assert not bench.remotes.said
    assert bench.link.stale == 2


def test_a_clients_error_is_told_and_any_other_brings_the_work_home(bench):
    bench.up()
    work = bench.hand(1)
    bench.hear(Declined(1, 1, Overloaded.code, "full"))
    assert bench.remotes.returned == [work]
    bench.hand(2)
    bench.hear(Declined(2, 1, ContextOverflow.code, "too long"))
    assert [type(message).__name__ for message in bench.remotes.said] == ["Failed"]


def test_a_cancel_waits_for_its_answer(bench):
    bench.up()
    bench.hand()
    assert bench.remotes.mailbox is not None
    bench.remotes.mailbox(Cancel(1, 1))
    assert isinstance(bench.line.sent[-1], Drop)
    assert not bench.remotes.said
    bench.hear(Dropped(1, 1))
    assert [type(message).__name__ for message in bench.remotes.said] == ["Gone"]


def test_an_answer_that_is_dropped_unasked_comes_home(bench):
    bench.up()
    bench.hand()
    bench.hear(Dropped(1, 1))
    assert not bench.remotes.said
    assert bench.remotes.left == ["it dropped an answer that somebody waits for"]
    assert bench.link.returned == 1


@pytest.mark.parametrize("said", [Said(1, 1, 0, (), ""), Said(1, 1, 2, (9,), "x"), Said(1, 1, 5, (9,), "")])
def test_a_peer_that_talks_on_instead_of_dropping_is_gone(bench, said):
    bench.up()
    bench.hand()
    assert bench.remotes.mailbox is not None
    bench.remotes.mailbox(Cancel(1, 1))
    for _ in range(12):
        assert bench.link.up
        bench.look(0.2, answered=True)
        bench.hear(said)
        bench.remotes.mailbox(Cancel(1, 1))
    bench.look(0.2, answered=True)
    assert not bench.link.up
    assert not bench.remotes.said


def test_words_without_a_token_are_no_progress(bench):
    bench.up()
    bench.hand()
    bench.hear(Said(1, 1, 2, (9,), "x"))
    for _ in range(12):
        assert bench.link.up
        bench.look(0.2, answered=True)
        bench.hear(Said(1, 1, 3, (), ""))
    bench.look(0.2, answered=True)
    assert not bench.link.up


@pytest.mark.parametrize(("ids", "text"), [(range(31), "x"), ((9,), "x" * 5000), ((), "x" * 5000)])
def test_an_answer_out_of_proportion_ends_the_link(bench, ids, text):
    bench.up()
    bench.hand()  # with two tokens that are known
    bench.hear(Said(1, 1, 2, tuple(ids), text))
    assert not bench.link.up
    assert "longer than what was asked for" in bench.link.reason
    assert not bench.remotes.said


def test_an_answer_may_be_as_long_as_was_asked_for(bench):
    bench.up()
    bench.hand()
    bench.hear(Said(1, 1, 2, tuple(range(30)), "x" * 4000))
    bench.hear(Said(1, 1, 32, (), "a note"))
    assert bench.link.up
    assert len(bench.remotes.said) == 2


@pytest.mark.parametrize("payload", [b"", b"answer", TASK, b"\xc1"])
def test_what_is_no_answer_comes_home(bench, payload):
    bench.up()
    bench.hand()
    bench.hear(Answered(1, 1, payload, 0.5))
    assert not bench.link.up
    assert not bench.remotes.said
    assert (bench.link.returned, bench.link.failures) == (1, 1)


def test_a_deadline_beyond_what_a_peer_takes_is_cut(bench):
    bench.up()
    bench.hand(remaining_ms=10**12)
    assert bench.line.sent[-1].remaining_ms == MOST_REMAINING_MS


def test_a_peer_that_talks_and_does_not_answer_is_silent(bench):
    bench.up()
    bench.hand()
    for number in range(14):
        assert bench.link.up
        bench.hear(Said(1, 1, 2 + number, (9,), "x"))
        bench.look(0.2)
    bench.look(0.4)
    assert not bench.link.up
    assert "silent" in bench.remotes.left[0]


def test_an_answer_to_a_later_question_is_one_to_all(bench):
    bench.up()
    bench.look(0.6)
    bench.answer()
    bench.look(2.0, answered=True)
    assert bench.link.up
    assert len(bench.link._asked) <= 1


def test_of_a_flood_some_is_read_in_a_turn(bench):
    bench.up()
    bench.line.waiting += [encode(Said(5, 1, 0, (1,), "x"))] * 200
    bench.link.listen()
    bench.link.listen()
    assert bench.link.stale == 2 * READ_AT_ONCE
    assert len(bench.wires.later) == 1, "read on once, however often it was asked to"
    while bench.wires.later:
        bench.wires.later.pop()()
    assert (bench.link.stale, bench.link.up) == (200, True)


def test_a_flood_without_end_ends_the_link(bench):
    bench.up()
    bench.line.waiting += [encode(Said(5, 1, 0, (1,), "x"))] * 2000
    bench.link.listen()
    while bench.wires.later:
        bench.wires.later.pop()()
    assert not bench.link.up
    assert bench.link.stale < 1000
    assert "more than this node reads" in bench.link.reason


def test_nonsense_ends_the_link(bench):
    bench.up()
    bench.line.waiting.append(b"\xc1nonsense")
    bench.link.listen()
    assert not bench.link.up
    assert "malformed" in bench.link.reason


def test_another_version_gets_no_work(bench):
    bench.look()
    bench.answer(version=VERSION + 1)
    assert "version" in bench.link.reason


def test_another_model_takes_the_seat_away_when_it_is_empty(bench):
    bench.up()
    bench.hand()
    other = Offer("other", 2, 2, 0.0, 1.0, 10.0, 4096, hot=False)
    bench.look(0.25)
    bench.answer(other)
    assert bench.remotes.offers[-1][0].hot
    assert bench.link.held == 1, "what it makes it finishes"


def test_a_better_variant_makes_new_answers_and_a_lesser_one_none(bench):
    bench.look()
    bench.answer(msgspec.structs.replace(OFFER, identity="better"))
    assert (bench.remotes.joined, bench.remotes.same) == (1, False)
    bench.hand()
    assert bench.line.sent[-1].identity == "better"
    bench.kin = Kin("better")  # a swap at home
    bench.look(0.25)
    bench.answer(msgspec.structs.replace(OFFER, identity="better"))
    assert (bench.remotes.joined, bench.remotes.same, bench.link.held) == (1, True, 1)


def test_a_lesser_variant_makes_no_answers(bench):
    bench.look()
    bench.answer(msgspec.structs.replace(OFFER, identity="lesser"))
    assert bench.remotes.joined == 0
    assert "none of the models" in bench.link.reason


def test_a_line_that_takes_nothing_is_a_peer_that_is_gone(bench):
    bench.up()
    bench.line.takes = False
    bench.hand()
    assert bench.link.up, "not while the dispatcher hands out work"
    for call in bench.wires.later:
        call()
    assert not bench.link.up


def test_a_connection_that_does_not_come_up_is_made_anew(bench):
    bench.look(20.0)
    assert len(bench.wires.lines) == 4
    assert [line.open for line in bench.wires.lines] == [False, False, False, True]
    assert (bench.link.reason, bench.link.failures) == ("it does not answer", 0)
    bench.up()


def test_a_peer_that_refuses_is_asked_less_and_less_on_new_connections_and_told_once(bench, caplog):
    for wait_s in (1.0, 2.0, 4.0):
        bench.link.look()
        bench.line.quarrel.dead = True
        bench.link.look()
        assert not bench.line.open
        assert "does not know this node's key" in bench.link.reason
        assert bench.link.breaker.refusal_s(bench.now) == pytest.approx(wait_s)
        bench.now += wait_s
    assert len(bench.wires.lines) == bench.link.failures == 3
    assert [record.message for record in caplog.records] == ["peer lost"]


def test_who_is_listed_again_is_asked_at_once_and_who_is_up_is_left_alone(bench):
    bench.look()
    bench.line.quarrel.dead = True
    bench.look()
    bench.link.hurry()
    bench.up()
    bench.link.hurry()
    assert bench.link.up
    assert len(bench.wires.lines) == 2
