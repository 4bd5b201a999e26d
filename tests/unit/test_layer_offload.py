"""Weights and cache outside the device change no token, and copies keep to their order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import msgspec
import pytest
import torch

from edged.backend import Sampling, Variant
from edged.errors import BackendError, ConfigError
from edged.layers import runners
from edged.layers.assembly import Settings, assemble
from edged.layers.overlap_bench import OverlapBench, measure_overlap
from edged.layers.overlap_report import (
    CAUTION,
    PARTS,
    OverlapCase,
    OverlapReport,
    overlap_checks,
    overlap_lines,
)
from edged.layers.share import Share
from edged.layers.shelf import DiskShelf, Layout, MemoryShelf, Shelf
from edged.layers.spec import Loaded, Overlap, StageSpec
from edged.layers.stage import Runner
from edged.layers.streams import CudaStreams, InOrder, Mark, Transfer, Work
from edged.layers.wire import Job, Opened, Row

RANDOM = "random:llama:layers={layers},hidden=64,heads=4,kv=2,intermediate=96,vocabulary=97,seed=5"
CONTEXT_TOKENS = 64
PROMPTS = ([5, 9, 2, 41, 8], [7], [3, 3, 90], [11, 12, 13, 14, 15, 16, 17], [1, 2])


def spec(layers: int = 5, **changes: object) -> StageSpec:
    share = Share(first=0, end=layers, embedding=True, head=True)
    plain = StageSpec(
        stage=0,
        stages=1,
        share=share,
        device="cpu",
        source=RANDOM.format(layers=layers),
        sequences=len(PROMPTS),
        context_tokens=CONTEXT_TOKENS,
    )
    return msgspec.structs.replace(plain, **changes)


def built(of: StageSpec) -> tuple[Runner, Loaded]:
    return runners.build(of, own_process=False)


def told(
    runner: Runner, prompts: Sequence[Sequence[int]] = PROMPTS, answer_tokens: int = 4
) -> list[list[int]]:
    """Answer prompts of unlike length; the second leaves early, and the first one's slot is used again."""
    answers = [list(prompt) for prompt in prompts]
    read = [0] * len(prompts)
    for turn in range(answer_tokens):
        slots = [slot for slot in range(len(prompts)) if slot != 1 or turn < 2]
        _turn(runner, turn, answers, read, slots)
    again, read_again = [list(prompts[-1])], [0]
    for turn in range(2):
        _turn(runner, 100 + turn, again, read_again, [0])
    return [*answers, *again]


def _turn(runner: Runner, number: int, answers: list[list[int]], read: list[int], slots: list[int]) -> None:
    fresh = [answers[slot][read[slot] :] for slot in slots]
    width = max(map(len, fresh))
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in fresh])
    rows = tuple(Row(slot, read[slot], len(each), True) for slot, each in zip(slots, fresh, strict=True))
    opened = tuple(Opened(slot, Sampling()) for slot in slots if not read[slot])
    chosen = runner.run(Job(number, 0, rows, opened), ids).tolist()
    for slot, token in zip(slots, chosen, strict=True):
        read[slot] = len(answers[slot])
        answers[slot].append(token)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """These tensors are so small that a second thread only gets in the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def resident_answers() -> dict[int, list[list[int]]]:
    found = {}
    for layers in (1, 2, 5):
        runner, _ = built(spec(layers))
        found[layers] = told(runner)
        runner.close()
    return found


COMBINATIONS = [("none", 1), ("single", 1), *(("multi", block) for block in (1, 2, 3, 4))]


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("offload_cache", [False, True])
@pytest.mark.parametrize("source", ["memory", "disk"])
@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_the_answers_are_those_of_resident_weights(
    resident_answers, tmp_path: Path, overlap: str, block: int, source: str, offload_cache: bool, layers: int
):
    changes = {"overlap": overlap, "block": block, "overlap_from": source, "offload_cache": offload_cache}
    runner, _ = built(spec(layers, **changes, overlap_folder=str(tmp_path)))
    try:
        assert told(runner) == resident_answers[layers]
    finally:
        runner.close()


# ------------------------------------------------------------------ the order of copies and compute


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


def jobs(runner: Runner, count: int) -> None:
    answers, read = [list(prompt) for prompt in PROMPTS], [0] * len(PROMPTS)
    for number in range(count):
        _turn(runner, number, answers, read, list(range(len(PROMPTS))))


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
    monkeypatch, resident_answers, tmp_path: Path, overlap: str, block: int, source: str
):
    monkeypatch.setattr(runners, "streams_for", lambda _device: Late())
    changes = {"overlap": overlap, "block": block, "overlap_from": source, "offload_cache": True}
    runner, _ = built(spec(**changes, overlap_folder=str(tmp_path)))
    try:
        assert told(runner) == resident_answers[5]
    finally:
        runner.close()


# ------------------------------------------------------------------ memory, refusals, failures


def test_the_device_holds_two_layers_and_the_ends(resident_answers, tmp_path: Path):
    runner, everything = built(spec(5))
    runner.close()
    for overlap, rooms in (("none", 1), ("single", 2), ("multi", 2)):
        runner, loaded = built(spec(5, overlap=overlap))
        runner.close()
        layer = loaded.host_weight_bytes // 5
        assert everything.weight_bytes - loaded.weight_bytes == (5 - rooms) * layer
    runner, loaded = built(spec(5, overlap="single", overlap_from="disk", overlap_folder=str(tmp_path)))
    assert (loaded.host_weight_bytes, loaded.disk_weight_bytes) == (0, 5 * layer)
    assert not list(tmp_path.iterdir())  # it has no name: nothing stays behind, however the process ends
    runner.close()


def test_the_cache_on_the_device_is_three_parts():
    runner, loaded = built(spec(5, overlap="multi", block=3, offload_cache=True))
    runner.close()
    row = 2 * 2 * 16 * 4  # keys and values, heads, dimension, float32
    rows = 2  # five in three parts
    assert loaded.cache_bytes == 3 * rows * (CONTEXT_TOKENS + 1) * row
    assert loaded.host_cache_bytes == 5 * len(PROMPTS) * CONTEXT_TOKENS * row


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"block": 2}, "block"),
        ({"block": 2, "overlap": "single"}, "block"),
        ({"offload_cache": True}, "offload_cache"),
        ({"overlap_from": "disk"}, "overlap_from"),
    ],
)
def test_what_makes_no_sense_together_is_refused(changes, param: str):
    with pytest.raises(ConfigError) as found:
        assemble(RANDOM.format(layers=2), Settings(**changes))
    assert found.value.param == param
    with pytest.raises(ConfigError):
        built(spec(2, **changes))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere") as found:
        built(spec(overlap="single", overlap_from="disk", overlap_folder=str(tmp_path / "nowhere")))
    assert found.value.param == "overlap_folder"


@pytest.fixture(params=["memory", "disk"])
def shelf(request, tmp_path: Path):
    made = MemoryShelf(pinned=False) if request.param == "memory" else DiskShelf(str(tmp_path), staged=False)
    yield made
    made.close()


def test_a_layer_of_another_shape_is_refused(shelf: Shelf):
    shelf.put({"a": torch.zeros(3, 4), "b": torch.zeros(5)})
    with pytest.raises(BackendError, match="same shape"):
        shelf.put({"a": torch.zeros(3, 4), "b": torch.zeros(6)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_packed_comes_back(shelf: Shelf, dtype: torch.dtype):
    layers = [{"a": torch.randn(3, 4).to(dtype), "b": torch.randn(5).to(dtype)} for _ in range(3)]
    for layer in layers:
        shelf.put(layer)
    assert shelf.layout is not None
    flat = shelf.layout.empty()
    for number in (2, 0, 1):
        InOrder().issue(Work("weights", "load", number, -1, 0), shelf.transfer(number, flat))
        views = shelf.layout.views(flat)
        assert all(torch.equal(views[name], layers[number][name]) for name in views)
        assert all(view.data_ptr() % 64 == flat.data_ptr() % 64 for view in views.values())


def test_weights_that_cannot_be_read_fail_the_job_and_no_later_one(
    monkeypatch, resident_answers, tmp_path: Path
):
    runner, _ = built(spec(overlap="single", overlap_from="disk", overlap_folder=str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr("os.preadv", _broken_after(2))
        with pytest.raises(BackendError, match="layer 2 could not be read"):
            jobs(runner, 1)
    assert told(runner) == resident_answers[5]
    runner.close()


def _broken_after(count: int) -> Callable[..., int]:
    read, calls = os.preadv, []

    def preadv(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) > count:
            raise OSError(5, "Input/output error")
        return read(*arguments)  # type: ignore[arg-type]

    return preadv


@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_a_job_that_fails_among_the_layers_leaves_the_next_ones_right(
    resident_answers, overlap: str, block: int
):
    runner, _ = built(spec(overlap=overlap, block=block, offload_cache=True))
    jobs(runner, 1)
    beyond = Job(1, 0, (Row(0, CONTEXT_TOKENS + 1, 1, True),), ())
    with pytest.raises((RuntimeError, IndexError)):
        runner.run(beyond, torch.tensor([[3]]))
    assert told(runner) == resident_answers[5]
    runner.close()


# ------------------------------------------------------------------ the code for GPUs, without one


class FakeEvent:
    """A double of `torch.cuda.Event`: a moment."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.at_s = -1.0

    def record(self, stream: FakeStream) -> None:
        self.at_s = stream.at_s = stream.at_s + 1

    def query(self) -> bool:
        return self.at_s >= 0

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.timed
        assert end.timed
        return (end.at_s - self.at_s) * 1000


class FakeStream:
    """A double of `torch.cuda.Stream`: what is issued is done at once."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.at_s = 0.0
        self.waited = 0

    def wait_event(self, event: FakeEvent) -> None:
        assert event.query()
        self.waited += 1

    def record_event(self) -> FakeEvent:
        event = FakeEvent()
        event.record(self)
        return event

    def synchronize(self) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeStream:
    """Doubles in place of torch's: they show that the calls fit together, not what a GPU makes of them."""
    for double, real in ((FakeEvent, torch.cuda.Event), (FakeStream, torch.cuda.Stream)):
        assert all(hasattr(real, name) for name in vars(double) if not name.startswith("__"))
        monkeypatch.setattr(torch.cuda, real.__name__, double)
    compute = FakeStream()
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: compute)
    empty = Layout.empty
    monkeypatch.setattr(Layout, "empty", lambda layout, device=None, *, pinned=False: empty(layout, device))
    monkeypatch.setattr(runners, "streams_for", CudaStreams)
    monkeypatch.setattr(
        runners,
        "shelf_for",
        lambda of, _device: (
            DiskShelf(str(tmp_path), staged=True) if of.overlap_from == "disk" else MemoryShelf(pinned=True)
        ),
    )
    return compute


@pytest.mark.parametrize("source", ["memory", "disk"])
@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_the_code_for_gpus_keeps_the_answers(
    gpu: FakeStream, resident_answers, overlap: str, block: int, source: str
):
    changes = {"overlap": overlap, "block": block, "overlap_from": source, "offload_cache": True}
    runner, _ = built(spec(5, **changes))
    try:
        assert told(runner) == resident_answers[5]
        assert runner.copy_s == gpu.waited  # the doubles' clock ticks once for each pair of events
    finally:
        runner.close()


def test_what_fails_on_the_thread_that_reads_fails_the_job(gpu: FakeStream, monkeypatch, resident_answers):
    runner, _ = built(spec(overlap="single", overlap_from="disk"))
    with monkeypatch.context() as patch:
        patch.setattr("os.preadv", _broken_after(2))
        with pytest.raises(BackendError, match="layer 2 could not be read"):
            jobs(runner, 1)
    with suppress(BackendError):  # the load that was under way
        jobs(runner, 1)
    assert told(runner) == resident_answers[5]
    runner.close()


# ------------------------------------------------------------------ whole pipelines


def answers_of(source: str, **options: object) -> list[list[int]]:
    """Answer prompts through a pipeline of two stages."""
    chosen = {"devices": ("cpu", "cpu"), "transport": "threads", "max_sequences": 6, "context_tokens": 64}
    pipeline = assemble(source, Settings(**{**chosen, **options})).start(lambda _token: False)
    answers: dict[int, list[int]] = {number: [] for number in range(len(PROMPTS))}
    try:
        for number, prompt in enumerate(PROMPTS):
            pipeline.head.start(number, prompt, Sampling(), 4)
        while (events := pipeline.turn()) is not None:
            for event in events:
                answers[event.sequence] += event.tokens
    finally:
        pipeline.close()
    return list(answers.values())


def test_a_pipeline_of_stages_larger_than_their_devices(tmp_path: Path):
    source = RANDOM.format(layers=6)
    offloaded = {"overlap": "multi", "block": 2, "offload_cache": True}
    resident = answers_of(source)
    assert all(len(answer) == 4 for answer in resident)
    assert answers_of(source, **offloaded) == resident
    assert answers_of(source, **offloaded, overlap_from="disk", overlap_folder=str(tmp_path)) == resident


def test_the_strategies_are_timed_and_judged_where_they_can_overlap():
    source = RANDOM.format(layers=4)
    report = measure_overlap(OverlapBench(source=source, rows=2, past=3, jobs=1, rounds=1))
    assert [(case.overlap, case.block) for case in report.cases] == [
        *[("none", 1), ("single", 1), ("multi", 1), ("multi", PARTS)]
    ]
    assert all(case.job_s > 0 and case.tokens_per_s > 0 for case in report.cases)
    assert [check.wanted for check in report.checks] == [1.25, 1.15, 2.5]
    told_on_a_cpu = list(overlap_lines(report))
    assert told_on_a_cpu[-1].strip() == CAUTION
    assert not any("missed" in line or "holds" in line for line in told_on_a_cpu)
    with pytest.raises(ConfigError, match="fewer than 4"):
        measure_overlap(OverlapBench(source=RANDOM.format(layers=3)))


def test_what_load_and_compute_do_not_allow_is_not_called_missed():
    def case(overlap: Overlap, block: int, job_s: float) -> OverlapCase:
        return OverlapCase(
            overlap=overlap, block=block, job_s=job_s, spread_s=0, tokens_per_s=block / job_s, copy_s=0
        )

    def verdicts(load_s: float, compute_s: float, *times_s: float) -> list[str]:
        kinds: list[tuple[Overlap, int]] = [("none", 1), ("single", 1), ("multi", 1), ("multi", 4)]
        cases = tuple(case(*kind, job_s) for kind, job_s in zip(kinds, times_s, strict=True))
        checks = overlap_checks(cases, load_s, compute_s)
        report = OverlapReport(
            device="cuda:0",
            layers=4,
            layer_bytes=1,
            load_s=load_s,
            compute_s=compute_s,
            cases=cases,
            checks=checks,
            caution="",
        )
        return [line.rpartition(": ")[2] for line in overlap_lines(report)][-3:]

    assert verdicts(1.0, 1.0, 2.0, 1.1, 1.1, 4.1) == ["holds", "holds", "not to be had with these times"]
    assert verdicts(1.0, 0.1, 1.1, 1.2, 1.2, 1.2) == ["not to be had with these times", "missed", "holds"]


def test_a_real_model_from_disk(variant: Callable[[str, str], Variant], tmp_path: Path):
    source = str(variant("smollm2-135m-instruct", "q4_1").path)
    multi = {"overlap": "multi", "block": 3, "offload_cache": True}
    disk = {"overlap_from": "disk", "overlap_folder": str(tmp_path)}
    assert answers_of(source, **multi, **disk) == answers_of(source)
