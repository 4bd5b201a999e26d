"""Copies beside compute keep to their order: what overlaps, and what never may."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from edged.layers import runners
from edged.layers.offload.streams import InOrder, Mark, Transfer, Work
from edged.layers.spec import StageSpec
from edged.layers.stage import Runner

from .layer_jobs import (
    COMBINATIONS,
    built,
    jobs,
    resident_answers,
    spec,
    told,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Watched(InOrder):
    """Runs in order, and writes down what is issued, waited for and marked."""

    def __init__(self, forget: str = "") -> None:
        super().__init__()
        self.forget = forget
        self.log: list[tuple[str, Work, tuple[int, ...]]] = []
        """What, which, and behind which entries of this log."""

    def _entry(self, what: str, work: Work, after: tuple[int, ...] = ()) -> int:
        self.log.append((what, work, after))
        return len(self.log) - 1

    def issue(self, work: Work, transfer: Transfer, after: Sequence[Mark] = ()) -> Mark:
        super().issue(work, transfer)
        return self._entry("issue", work, () if self.forget == work.stream else tuple(after))

    def wait(self, mark: Mark) -> None:
        self._entry("wait", self.log[mark][1], () if self.forget == "wait" else (mark,))

    def mark(self, work: Work) -> Mark:
        return self._entry("mark", work)

    @property
    def loaded(self) -> list[int]:
        """Layers whose weights were loaded, in order."""
        return [work.layer for what, work, _ in self.log if (what, work.matter) == ("issue", "weights")]


def watched(monkeypatch: pytest.MonkeyPatch, of: StageSpec, forget: str = "") -> tuple[Runner, Watched]:
    streams = Watched(forget)
    monkeypatch.setattr(runners, "streams_for", lambda _device: streams)
    return built(of)[0], streams


def races(log: Sequence[tuple[str, Work, tuple[int, ...]]]) -> list[tuple[Work, Work]]:
    """List pairs that touch the same memory, one of them writing, and that no order holds apart.

    A GPU's streams keep their own order; between streams only events do. What is in no path of the two
    may happen in either order.
    """
    last: dict[str, int] = {}
    before: list[set[int]] = []
    touched: dict[tuple[object, ...], list[tuple[int, bool]]] = {}
    found = []
    for number, (what, work, after) in enumerate(log):
        stream = work.stream if what == "issue" else "compute"
        direct = {*after, *([last[stream]] if stream in last else [])}
        before.append(direct.union(*(before[each] for each in direct)))
        last[stream] = number
        for memory, writes in _touches(work) if what != "wait" else ():
            for other, wrote in touched.setdefault(memory, []):
                if (writes or wrote) and other not in before[number]:
                    found.append((log[other][1], work))
            touched[memory].append((number, writes))
    return found


def _touches(work: Work) -> list[tuple[tuple[object, ...], bool]]:
    if work.slot < 0:  # rooms are made, or a job begins where another may have left off
        return [(("room", work.matter, slot), False) for slot in range(3)]
    room = ("room", work.matter, work.slot)
    if work.matter == "weights":
        return [(room, work.kind == "load")]
    host = ("host", work.layer, work.part)  # the rows of a part are the same in all jobs of these tests
    return {
        "load": [(room, True), (host, False)],
        "compute": [(room, True)],
        "store": [(room, False), (host, True)],
    }[work.kind]


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_no_two_streams_race_for_memory(monkeypatch, overlap: str, block: int, layers: int):
    runner, streams = watched(monkeypatch, spec(layers, overlap=overlap, block=block, offload_cache=True))
    jobs(runner, 3)
    runner.close()
    assert streams.log
    assert not races(streams.log)


@pytest.mark.parametrize("forget", ["weights_load", "cache_load", "cache_store", "wait"])
def test_a_forgotten_event_is_a_race(monkeypatch, forget: str):
    runner, streams = watched(monkeypatch, spec(overlap="multi", block=2, offload_cache=True), forget)
    jobs(runner, 3)
    runner.close()
    assert races(streams.log)


def test_none_loads_a_layer_when_the_one_before_has_computed(monkeypatch):
    runner, streams = watched(monkeypatch, spec(4, overlap="none"))
    jobs(runner, 2)
    runner.close()
    story = [(what, work.kind, work.layer) for what, work, _ in streams.log if work.slot >= 0]
    one_layer = [("issue", "load"), ("wait", "load"), ("mark", "compute")]
    assert story == [(*step, layer) for _ in range(2) for layer in range(4) for step in one_layer]


def test_single_issues_the_next_load_before_a_layer_computes(monkeypatch):
    runner, streams = watched(monkeypatch, spec(4, overlap="single"))
    jobs(runner, 2)
    runner.close()
    story = [(what, work.layer) for what, work, _ in streams.log if work.slot >= 0]
    expected = [("issue", 0)]
    for layer in [0, 1, 2, 3] * 2:
        expected += [("wait", layer), ("issue", (layer + 1) % 4), ("mark", layer)]
    assert story == expected


def test_a_load_begins_when_the_room_is_free_not_when_all_compute_has_ended(monkeypatch):
    runner, streams = watched(monkeypatch, spec(4, overlap="single"))
    jobs(runner, 2)
    runner.close()
    loads = [(work, after) for what, work, after in streams.log if what == "issue"][2:]
    for work, after in loads:
        assert [streams.log[mark][1] for mark in after] == [
            Work("weights", "compute", (work.layer - 2) % 4, -1, work.slot)
        ]


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_multi_loads_a_layer_once_for_all_parts(monkeypatch, block: int):
    runner, streams = watched(monkeypatch, spec(4, overlap="multi", block=block))
    jobs(runner, 3)
    runner.close()
    assert streams.loaded == [0, 1, 2, 3] * 3 + [0]


def test_multi_loads_the_next_part_of_the_cache_and_stores_the_last_one_meanwhile(monkeypatch):
    runner, streams = watched(monkeypatch, spec(2, overlap="multi", block=2, offload_cache=True))
    jobs(runner, 1)
    runner.close()
    story = [
        (work.kind, work.layer, work.part)
        for what, work, _ in streams.log
        if work.matter == "cache" and work.slot >= 0 and what != "wait"
    ]
    assert story == [
        *[("load", 0, 0), ("load", 0, 1), ("compute", 0, 0), ("store", 0, 0)],
        *[("load", 1, 0), ("compute", 0, 1), ("store", 0, 1)],
        *[("load", 1, 1), ("compute", 1, 0), ("store", 1, 0)],
        *[("compute", 1, 1), ("store", 1, 1)],
    ]


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_that_fit_their_rooms_are_loaded_once(monkeypatch, layers: int):
    runner, streams = watched(monkeypatch, spec(layers, overlap="single"))
    jobs(runner, 3)
    runner.close()
    assert streams.loaded == list(range(layers))


class Late(Watched):
    """Does nothing until compute waits for it: the latest order that events allow."""

    def __init__(self) -> None:
        super().__init__()
        self._left: dict[str, list[int]] = {}
        self._transfers: dict[int, Transfer] = {}

    def issue(self, work: Work, transfer: Transfer, after: Sequence[Mark] = ()) -> Mark:
        number = self._entry("issue", work, tuple(after))
        self._transfers[number] = transfer
        self._left.setdefault(work.stream, []).append(number)
        return number

    def wait(self, mark: Mark) -> None:
        super().wait(mark)
        self._run(mark)

    def _run(self, mark: int) -> None:
        queue = self._left.get(self.log[mark][1].stream, [])
        while mark in queue:
            first = queue.pop(0)
            for each in self.log[first][2]:
                self._run(each)
            super().issue(self.log[first][1], self._transfers.pop(first))
            self.log.pop()


@pytest.mark.parametrize("source", ["memory", "disk"])
@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_copies_that_come_as_late_as_events_allow_change_nothing(
    monkeypatch, tmp_path: Path, overlap: str, block: int, source: str
):
    monkeypatch.setattr(runners, "streams_for", lambda _device: Late())
    changes = {"overlap": overlap, "block": block, "overlap_from": source, "offload_cache": True}
    runner, _ = built(spec(**changes, overlap_folder=str(tmp_path)))
    try:
        assert told(runner) == resident_answers(5)
    finally:
        runner.close()
