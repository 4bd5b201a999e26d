"""Core leases: who computes now, on how many cores, and that nobody is left waiting for ever."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.dispatch.leases import (
    DEFAULT_MODE,
    PATIENCE_S,
    PAUSE_S,
    SHORT_S,
    STANDSTILL_S,
    TURN_S,
    Claim,
    Leases,
    Mode,
    Turn,
    assign,
    chosen,
    core_set,
    free_cores,
    groups,
)

HEAVY_S = 0.5
TICKS = 200


def batch(worker: str, *, holding: bool = False, predicted_s: float = HEAVY_S, since: float = 0.0) -> Claim:
    return Claim(worker=worker, streaming=False, holding=holding, predicted_s=predicted_s, waits_since=since)


def streams(worker: str = "g", *, holding: bool = True, since: float = 0.0) -> Claim:
    return Claim(worker=worker, streaming=True, holding=holding, predicted_s=HEAVY_S, waits_since=since)


def owes(worker: str, since: float = 0.0) -> Claim:
    return msgspec.structs.replace(streams(worker), owes_since=since)


claims = st.lists(
    st.builds(
        Claim,
        worker=st.sampled_from("abcdef"),
        streaming=st.booleans(),
        holding=st.booleans(),
        lanes=st.integers(1, 4),
        urgent=st.booleans(),
        owes_since=st.none() | st.floats(0, 20),
        predicted_s=st.sampled_from([0.0, SHORT_S / 2, HEAVY_S]),
        waits_since=st.floats(0, 10),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda claim: claim.worker,
)
turns = st.builds(Turn, worker=st.sampled_from(["", *"abcdefx"]), since=st.floats(0, 10))


@given(claims, st.integers(1, 8), turns, st.floats(10, 20))
def test_in_every_mode_somebody_computes_and_nobody_has_more_than_there_is(given_claims, cores, turn, now):
    for mode in get_args(Mode):
        grant = assign(given_claims, cores, mode, turn, now)
        assert set(grant.cores) == {claim.worker for claim in given_claims}
        assert all(0 <= count <= cores for count in grant.cores.values())
        assert any(grant.cores.values())


@given(claims, st.integers(1, 8), turns, st.floats(10, 20))
def test_split_gives_everybody_a_core_and_wastes_none(given_claims, cores, turn, now):
    grant = assign(given_claims, cores, "split", turn, now).cores
    assert all(grant.values())
    heavy = [grant[claim.worker] for claim in given_claims if not claim.short]
    assert not heavy or sum(heavy) == max(cores, len(heavy))


@given(claims, st.integers(1, 8), st.floats(10, 20))
def test_single_keeps_no_more_at_work_than_there_are_cores(given_claims, cores, now):
    grant = assign(given_claims, cores, "single", Turn(), now)
    heavy = [claim for claim in given_claims if not claim.short]
    assert sum(grant.cores[claim.worker] for claim in heavy) == (cores if heavy else 0)


@given(
    st.integers(1, 4),
    st.lists(
        st.lists(st.tuples(st.sampled_from("bcr"), st.booleans(), st.booleans()), max_size=3), max_size=TICKS
    ),
)
def test_in_single_no_stream_stands_still_for_long_whatever_the_others_do(cores, company):
    """`a` streams on; by the tick, others join: who, whether streaming, whether a first token is due."""
    turn, stood_s = Turn(), 0.0
    for tick, others in enumerate(company):
        now = tick * TURN_S / 2
        present = {"a": streams("a")}
        for name, streaming, awaited in others:
            claim = streams(name) if streaming else batch(name, holding=awaited)
            present[name] = msgspec.structs.replace(claim, owes_since=now if awaited and streaming else None)
        grant = assign(list(present.values()), cores, "single", turn, now)
        stood_s = 0.0 if grant.cores["a"] else stood_s + TURN_S / 2
        assert stood_s <= STANDSTILL_S + TURN_S
        turn = grant.turn


def test_in_single_a_batch_goes_before_streams_and_streams_take_turns_on_what_is_left():
    waiting = [streams("g"), streams("h"), batch("r")]
    at, seen = 1.0, []
    turn = Turn()
    for _ in range(4):
        grant = assign(waiting, 2, "single", turn, at)
        assert grant.cores["r"] == 1
        seen.append("g" if grant.cores["g"] else "h")
        turn, at = grant.turn, at + TURN_S + 0.001
    assert seen in (["g", "h"] * 2, ["h", "g"] * 2)


def test_in_single_who_owes_a_first_token_runs_until_it_is_there():
    everybody = [streams("g"), owes("h"), batch("r", holding=True)]
    turn = assign([streams("g"), batch("r", holding=True)], 2, "single", Turn(), 0.9).turn
    for part in (0.0, 0.3, 0.6, 0.9):
        grant = assign(everybody, 2, "single", turn, 1.0 + part * STANDSTILL_S)
        assert grant.cores == {"g": 0, "h": 1, "r": 1}
        turn = grant.turn
    assert assign(everybody, 2, "single", turn, 1.01 + STANDSTILL_S).cores == {"g": 1, "h": 1, "r": 1}


def test_in_single_a_question_goes_on_to_its_first_token_before_the_next_is_begun():
    owing, waiting = [owes("g", 1.0), owes("h", 1.0)], batch("r", since=0.9)
    assert assign([*owing, waiting], 2, "single", Turn(), 1.1).cores == {"g": 1, "h": 1, "r": 0}
    one = assign([owes("g", 1.0), batch("s", holding=True), waiting], 2, "single", Turn(), 1.1)
    assert one.cores == {"g": 1, "s": 1, "r": 0}
    assert assign([*owing, waiting], 2, "single", Turn(), 1.0 + PATIENCE_S).cores["r"] == 1


def wide(worker: str = "r", *, urgent: bool = True) -> Claim:
    return msgspec.structs.replace(batch(worker, holding=True), lanes=4, urgent=urgent)


def test_in_single_a_batch_that_can_spread_has_what_first_tokens_leave():
    assert assign([streams("g"), wide()], 3, "single", Turn(), 0.0).cores == {"g": 0, "r": 3}
    due = [streams("g"), owes("h"), wide()]
    assert assign(due, 3, "single", Turn(), 0.0).cores == {"g": 0, "h": 1, "r": 2}
    assert assign([streams("g"), wide()], 5, "single", Turn(), 0.0).cores == {"g": 1, "r": 4}
    narrow = batch("r", holding=True)
    assert assign([streams("g"), narrow], 2, "single", Turn(), 0.0).cores == {"g": 1, "r": 1}


def test_in_single_a_batch_spreads_for_a_while_only():
    both = [streams("g"), wide()]
    assert assign(both, 2, "single", Turn(), PATIENCE_S - 0.1).cores == {"g": 0, "r": 2}
    assert assign(both, 2, "single", Turn(), PATIENCE_S).cores == {"g": 1, "r": 1}


def test_in_single_nobody_has_more_than_it_spreads_over():
    some = msgspec.structs.replace(wide(), lanes=2)
    assert assign([some], 4, "single", Turn(), 0.0).cores == {"r": 4}, "nobody else wants them"
    assert assign([streams("g"), some], 4, "single", Turn(), 0.0).cores == {"g": 2, "r": 2}


def test_in_single_a_batch_of_batch_work_spreads_over_nothing_that_streams_want():
    assert assign([streams("g"), wide(urgent=False)], 2, "single", Turn(), 0.0).cores == {"g": 1, "r": 1}


def test_in_single_streams_that_go_on_beside_take_the_core_from_the_batch_that_spread():
    both = [streams("g"), wide()]
    turn = assign(both, 2, "single", Turn(), 1.0).turn
    grant = assign(both, 2, "single", turn, 1.0 + STANDSTILL_S)
    assert grant.cores == {"g": 1, "r": 1}
    assert assign(both, 2, "single", grant.turn, 1.0 + STANDSTILL_S + TURN_S).cores == {"g": 0, "r": 2}


def test_in_single_first_tokens_come_in_the_order_in_which_they_were_asked_for():
    assert assign([owes("g", 1.0), owes("h", 0.9)], 1, "single", Turn(), 1.1).cores == {"g": 0, "h": 1}


def test_in_single_a_first_token_of_batch_work_goes_before_an_interactive_question_once_it_is_impatient():
    owing = [msgspec.structs.replace(owes(name, 1.0), urgent=False) for name in "gh"]
    waiting = batch("r", since=1.1)
    assert assign([*owing, waiting], 2, "single", Turn(), 1.2).cores["r"] == 1
    assert assign([*owing, waiting], 2, "single", Turn(), 1.0 + PATIENCE_S).cores["r"] == 0


def test_in_single_the_impatient_come_in_the_order_in_which_they_waited_whatever_they_are():
    waiting = [msgspec.structs.replace(batch("b", since=0.0), urgent=False), batch("r", since=1.0)]
    for claims in (waiting, [waiting[0], owes("g", 1.0)]):
        now = 1.0 + PATIENCE_S
        assert assign(claims, 1, "single", Turn(), now - 1.1).cores["b"] == 0
        assert assign(claims, 1, "single", Turn(), now).cores["b"] == 1


@given(
    st.integers(1, 3),
    st.lists(st.lists(st.tuples(st.sampled_from("bcgh"), st.booleans()), max_size=4), max_size=TICKS),
)
def test_in_single_no_batch_and_no_first_token_waits_for_ever(cores, company):
    """`r` and `f` wait from the start; by the tick others come, always later: batches and first tokens."""
    waiting, turn = {"r": batch("r"), "f": owes("f")}, Turn()
    for tick, others in enumerate(company):
        now = tick * TURN_S
        present = dict(waiting)
        for name, urgent in others:
            claim = batch(name, since=now) if name in "bc" else owes(name, now)
            present[name] = msgspec.structs.replace(claim, urgent=urgent)
        grant = assign(list(present.values()), cores, "single", turn, now)
        turn = grant.turn
        waiting = {name: claim for name, claim in waiting.items() if not grant.cores[name]}
        assert not waiting or now <= PATIENCE_S + len(waiting) * TURN_S


def test_in_single_streams_that_batches_stop_go_on_beside_them():
    everything = [streams("g"), batch("r", holding=True), batch("s", holding=True)]
    stopped = assign(everything, 2, "single", Turn(), 1.0)
    assert stopped.cores["g"] == 0
    early = assign(everything, 2, "single", stopped.turn, 1.0 + STANDSTILL_S / 2)
    assert early.cores["g"] == 0
    beside = assign(everything, 2, "single", early.turn, 1.01 + STANDSTILL_S)
    assert beside.cores["g"] == 1
    assert assign(everything, 2, "single", beside.turn, 1.02 + STANDSTILL_S + TURN_S).cores["g"] == 0


def test_whoever_is_alone_has_all_cores():
    for mode in get_args(Mode):
        assert assign([streams()], 4, mode, Turn("r", 0.0), 1.0).cores == {"g": 4}
        assert assign([batch("r")], 4, mode, Turn("g", 0.9), 1.0).cores == {"r": 4}


def test_a_question_to_embed_takes_no_core_from_the_others():
    embed = batch("e", predicted_s=SHORT_S)
    assert assign([streams(), embed], 2, "split", Turn(), 0.0).cores == {"g": 2, "e": 1}
    assert assign([streams(), embed], 2, "turns", Turn("g", 0.0), 0.1).cores == {"g": 2, "e": 1}
    for mode in get_args(Mode):
        assert assign([embed], 2, mode, Turn(), 0.0).cores == {"e": 2}
        both = [embed, batch("f", predicted_s=SHORT_S)]
        shares = {"e": 3, "f": 3} if mode == "together" else {"e": 2, "f": 1}
        assert assign(both, 3, mode, Turn(), 0.0).cores == shares


def test_a_batch_in_hand_keeps_its_turn_and_stops_streams_only_for_a_while():
    running = [streams(), batch("r", holding=True)]
    begun = assign(running, 2, "turns", Turn("r", 1.0), 1.0)
    early = assign(running, 2, "turns", begun.turn, 1.0 + PAUSE_S / 2)
    late = assign(running, 2, "turns", early.turn, 1.01 + PAUSE_S)
    later = assign(running, 2, "turns", late.turn, 1.02 + PAUSE_S)
    assert begun.cores == early.cores == {"g": 0, "r": 2}
    assert late.cores == later.cores == {"g": 1, "r": 2}


def test_stopped_streams_go_on_for_a_while_at_a_time():
    running = [streams(), batch("r", holding=True)]
    turn = assign(running, 2, "turns", Turn("r", 1.0), 1.0).turn
    lent = []
    for tick in range(1, 100):
        grant = assign(running, 2, "turns", turn, 1.0 + tick / 100)
        turn = grant.turn
        lent.append(grant.cores["g"])
    assert set(lent) == {0, 1}
    assert 0.1 < sum(lent) / len(lent) < 0.3  # TURN_S of PAUSE_S + TURN_S


def test_the_first_token_goes_before_the_next_one_however_long_an_answer_runs():
    both = [streams("g", since=0.0), streams("h", since=0.0), batch("r", since=99.0)]
    assert assign(both, 2, "turns", Turn("g", 99.0), 99.5).turn.worker == "r"


def test_streams_give_way_after_their_time():
    both = [streams(), batch("r")]
    assert assign(both, 2, "turns", Turn("g", 1.0), 1.0 + TURN_S / 2).cores == {"g": 2, "r": 0}
    grant = assign(both, 2, "turns", Turn("g", 1.0), 1.0 + TURN_S)
    assert (grant.cores, grant.turn.worker) == ({"g": 0, "r": 2}, "r")


def test_interactive_work_goes_first_unless_the_other_has_waited_long():
    urgent = batch("urgent", since=9.0)
    patient = Claim(
        worker="patient", streaming=False, holding=False, urgent=False, predicted_s=HEAVY_S, waits_since=8.9
    )
    assert assign([patient, urgent], 2, "turns", Turn(), 9.5).turn.worker == "urgent"
    assert assign([patient, urgent], 2, "turns", Turn(), 8.9 + PATIENCE_S).turn.worker == "patient"


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=2, max_size=5), st.integers(1, 4))
def test_in_turns_nobody_starves_and_streams_never_stop_for_long(workers, cores):
    """A day of everybody always busy, batches of any length, a tick every tenth of a second."""
    names = [f"w{number}" for number in range(len(workers))]
    stream_names = [name for name, (streaming, _) in zip(names, workers, strict=True) if streaming]
    left = dict.fromkeys(names, 0)
    served: dict[str, list[float]] = {name: [0.0] for name in names}
    turn = Turn()
    for tick in range(TICKS):
        now = tick / 10
        present = [
            Claim(
                worker=name, streaming=streaming, holding=streaming or left[name] > 0,
                predicted_s=length / 10, waits_since=served[name][-1],
            )
            for name, (streaming, length) in zip(names, workers, strict=True)
        ]  # fmt: skip
        grant = assign(present, cores, "turns", turn, now)
        turn = grant.turn
        for name, (streaming, length) in zip(names, workers, strict=True):
            if streaming and grant.cores[name]:
                served[name].append(now)
            elif not streaming and left[name]:
                left[name] -= 1
            elif not streaming and grant.cores[name]:
                left[name] = length
                served[name].append(now)
    longest_batch_s = max([length / 10 for streaming, length in workers if not streaming], default=0.0)
    for name in names:
        gap = max(after - before for before, after in pairwise([*served[name], TICKS / 10]))
        rivals = len(names)
        assert gap <= rivals * (longest_batch_s + TURN_S + 0.4) + PATIENCE_S
    if len(stream_names) == 1:
        gaps = [after - before for before, after in pairwise(served[stream_names[0]])]
        assert max(gaps, default=0.0) <= PAUSE_S + 0.25


def test_groups_join_overlapping_core_sets_and_leave_other_silicon_alone():
    machine = frozenset(range(4))
    devices = {"a": "cpu:0-1", "b": "cpu:2", "c": "igpu", "d": "cpu:1,3", "e": "sim:cpu"}
    sets = {name: core_set(device, machine) for name, device in devices.items()}
    found = {frozenset(names): cores for names, cores in groups(sets)}
    assert found == {frozenset("ad"): frozenset({0, 1, 3}), frozenset("b"): frozenset({2})}
    assert groups({"x": machine, "y": frozenset({0}), "z": frozenset({1})})[0][0] == ("x", "y", "z")


@pytest.mark.parametrize(
    ("taken", "most", "expected"), [(0, 0, 2), (1, 0, 2), (3, 0, 1), (9, 0, 1), (0, 1, 1)]
)
def test_what_neighbours_take_is_taken_from_outside_the_group_first(taken, most, expected):
    leases = Leases(cores=frozenset(range(4)), taken=taken, most=most)
    assert free_cores(frozenset({0, 1}), leases) == expected


def test_the_operator_decides_the_mode_then_the_plan_then_the_default():
    assert chosen("turns", "split") == "turns"
    assert chosen("auto", "together") == "together"
    assert chosen("auto") == chosen("auto", "a mode of a later version") == DEFAULT_MODE
