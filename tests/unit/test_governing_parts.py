"""The governor's parts on their own: which rungs can be taken, whom they let in, what is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.config.tables import Rung
from edged.dispatch.ledger import Ledger, Slots
from edged.dispatch.requests import Submission
from edged.errors import Shed
from edged.governor.effects import settings
from edged.governor.force import InForce
from edged.governor.history import FILE, KEPT, History
from edged.governor.reach import DOES, lacking
from edged.governor.shedding import check, load
from edged.governor.tally import Tally
from edged.report import Decision

from .dispatch_world import ROUTE, World

rungs = st.builds(
    Rung,
    name=st.just("a"),
    keep=st.integers(0, 3),
    peer=st.booleans(),
    bypass_rerank=st.booleans(),
    shed_batch=st.booleans(),
    variants=st.sampled_from([{}, {"generator": "lighter"}]),
)
missing = st.dictionaries(st.sampled_from(DOES), st.sampled_from(["no peer", "off", "none"]))


@given(rung=rungs, without=missing)
def test_a_rung_can_be_taken_as_long_as_some_of_it_can_be_done(rung, without):
    why = lacking(rung, without)
    does = [what for what in DOES if getattr(rung, what) != getattr(Rung(name="a"), what)]
    assert bool(why) == bool(does and all(what in without for what in does))
    assert not lacking(rung, {})


def decision(number: int, **fields: object) -> Decision:
    return Decision(at=float(number), what="down", rung=f"r{number}", **fields)


def test_the_history_survives_and_is_bounded(tmp_path: Path) -> None:
    history = History(tmp_path / "state")
    history.read()
    rows = [decision(number) for number in range(3 * KEPT)]
    for row in rows:
        history.add(row)
    assert history.newest(5) == rows[-5:]
    assert len(history.newest(10 * KEPT)) == KEPT
    file = tmp_path / "state" / FILE
    assert len(file.read_bytes().splitlines()) < 2 * KEPT
    assert file.stat().st_mode & 0o077 == 0
    again = History(tmp_path / "state")
    again.read()
    assert again.newest(KEPT) == rows[-KEPT:]


@pytest.mark.parametrize("rubbish", [b'{"at": 1.0, "wha', b"\xff\xfe\n[[[[\n{}", b"\n\n"])
def test_a_torn_or_damaged_line_costs_that_line_only(tmp_path: Path, rubbish: bytes) -> None:
    first = History(tmp_path)
    first.add(decision(1))
    with (tmp_path / FILE).open("ab") as file:
        file.write(rubbish)
    second = History(tmp_path)
    second.read()
    second.add(decision(2))
    third = History(tmp_path)
    third.read()
    assert third.newest(10) == [decision(1), decision(2)]


def test_a_file_in_place_of_the_folder_costs_the_file_only(tmp_path: Path, caplog) -> None:
    (tmp_path / "state").write_text("")
    history = History(tmp_path / "state")
    history.read()
    history.add(decision(1))
    history.add(decision(2))
    assert history.newest(2) == [decision(1), decision(2)]
    assert len([record for record in caplog.records if "in memory only" in record.message]) == 1


def asked(priority: str = "interactive", **more: bool) -> Submission:
    return Submission(route=ROUTE, operation="chat", payload=b"", deadline_s=60.0, priority=priority, **more)


def force(**doing: object) -> InForce:
    return InForce(3, "tight", Rung(name="tight", **doing))


def test_batch_work_is_shed_with_the_rung_its_reason_and_a_time():
    shed = force(shed_batch=True)
    check(shed, Ledger(Slots(0, 4)), asked(), why="hot", climb_s=50.0)
    check(shed, Ledger(Slots(0, 4)), asked("batch", continues=True), why="hot", climb_s=50.0)
    with pytest.raises(
        Shed, match=r"on the rung 'tight' \(hot\) the box takes no work of priority batch"
    ) as it:
        check(shed, Ledger(Slots(0, 4)), asked("batch"), why="hot", climb_s=50.0)
    assert (it.value.retry_after_s, it.value.status, it.value.retryable) == (50.0, 429, True)


def test_in_a_share_of_the_time_a_share_of_the_requests_is_let_in_batch_work_less():
    world, half = World(slots=4), force(busy_share=0.5)
    check(half, world.ledger, asked("batch"), why="", climb_s=1.0)
    world.submit()
    check(half, world.ledger, asked(), why="", climb_s=1.0)
    with pytest.raises(Shed, match="works for 50% of the time"):
        check(half, world.ledger, asked("batch"), why="", climb_s=1.0)
    assert load(world.ledger, 0.5) == 0.5
    world.submit()
    with pytest.raises(Shed):
        check(half, world.ledger, asked(), why="", climb_s=1.0)
    assert load(world.ledger, 0.5) == 1.0
    world.ledger.draining = True
    check(half, world.ledger, asked(), why="", climb_s=1.0)


def test_an_idle_box_lets_batch_work_in_however_small_its_share_and_its_queue():
    world, little = World(slots=6), force(busy_share=0.15)
    check(little, world.ledger, asked("batch"), why="", climb_s=1.0)
    world.submit()
    with pytest.raises(Shed):
        check(little, world.ledger, asked("batch"), why="", climb_s=1.0)


def test_time_on_rungs_adds_up():
    tally = Tally()
    assert tally.spent_s(5.0) == {}
    for rung, now in (("full", 10.0), ("full", 12.0), ("low", 15.0), ("full", 18.0)):
        tally.on(rung, now)
    assert tally.spent_s(20.0) == {"full": 7.0, "low": 3.0}
    assert tally.since_s == 18.0


def test_what_cannot_be_taken_is_left_out_of_the_rungs_below():
    ladder = (Rung(name="a"), Rung(name="b", variants={"generator": "q4_0"}), Rung(name="c", shed_batch=True))
    assert settings(ladder, 2, without={1}).variants == {}
    assert settings(ladder, 2).variants == {"generator": "q4_0"}
