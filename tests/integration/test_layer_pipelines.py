"""Layer pipelines with real stages, as threads and as processes."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from edged.backend import Sampling
from edged.errors import BackendError, ConfigError
from edged.layers import pipeline as pipelines
from edged.layers import runners
from edged.layers.assembly import Assembly, Settings, assemble, assemble_synthetic
from edged.layers.links.hops import HopTimeout
from edged.layers.pipeline import Pipeline
from edged.layers.rows import Places, RowCache
from edged.layers.spec import Loaded, StageSpec, Synthetic
from edged.layers.stage import Runner
from edged.layers.trial import run_synthetic
from edged.layers.weights.checkpoint import describe
from edged.layers.wire import Job, Row

WAIT = Synthetic(stage_s=0.0)
SIZE = "layers=6,hidden=64,heads=4,kv=2,intermediate=128,vocabulary=1024,seed=1"
PROMPTS = [[(17 * number + 3 * place) % 1000 for place in range(3 + 9 * number)] for number in range(8)]
TOKENS = 12


def never(_token: int) -> bool:
    return False


def settings(**options: object) -> Settings:
    return Settings(**({"transport": "threads", "context_tokens": 128, "max_sequences": 8} | options))


@contextmanager
def started(assembly: Assembly, ends: Callable[[int], bool] = never) -> Iterator[Pipeline]:
    pipeline = assembly.start(ends)
    try:
        yield pipeline
    finally:
        pipeline.close()


def answers(pipeline: Pipeline, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[list[int]]:
    """Greedy answers; a prompt without room waits for an answer to end."""
    found: list[list[int]] = [[] for _ in prompts]
    shape = pipeline.head.shape
    room, waiting = shape.micro_batches * shape.micro_batch, list(enumerate(prompts))
    while waiting or pipeline.head.live:
        while waiting and pipeline.head.live < room:
            number, prompt = waiting.pop(0)
            pipeline.head.start(number, prompt, Sampling(), TOKENS)
        for event in pipeline.turn() or ():
            found[event.sequence] += event.tokens
    return found


def turn_for_ever(pipeline: Pipeline) -> None:
    while True:
        pipeline.turn()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def model(family: str = "llama") -> str:
    return f"random:{family}:{SIZE}"


@pytest.fixture(scope="module")
def alone() -> dict[str, list[list[int]]]:
    """Each family's answers from one device, one prompt at a time."""
    found = {}
    for family in ("llama", "qwen2", "qwen3", "mistral"):
        with started(assemble(model(family), settings(max_sequences=1))) as pipeline:
            found[family] = answers(pipeline)
    return found


# ------------------------------------------------------------------ the same tokens as one device


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("mode", ["ring", "flush", "naive", "seed"])
def test_unequal_prompts_over_stages_give_the_tokens_of_one_device(alone, stages, mode):
    asked = settings(devices=("cpu",) * stages, split="even", mode=mode, transport="threads")
    with started(assemble(model(), asked)) as pipeline:
        assert answers(pipeline) == alone["llama"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_other_families(alone, family):
    asked = settings(devices=("cpu",) * 3, micro_batches=4)
    with started(assemble(model(family), asked)) as pipeline:
        assert answers(pipeline) == alone[family]


@pytest.mark.parametrize("transport", ["zeromq", "gloo"])
def test_processes(alone, transport):
    asked = settings(devices=("cpu",) * 3, split="even", micro_batches=5, transport=transport, threads=1)
    with started(assemble(model(), asked)) as pipeline:
        assert len(pipeline.pids) == 2
        assert answers(pipeline) == alone["llama"]
        pids = pipeline.pids
    assert not any(map(alive, pids.values()))


def test_long_prompts_are_read_in_parts_while_answers_run(alone):
    asked = settings(devices=("cpu", "cpu"), prefill_tokens=16, running_prefill_tokens=8)
    with started(assemble(model(), asked)) as pipeline:
        assert answers(pipeline) == alone["llama"]


def test_a_freed_place_is_taken_by_a_waiting_prompt(alone):
    asked = settings(devices=("cpu", "cpu"), max_sequences=3, micro_batches=3)
    with started(assemble(model(), asked)) as pipeline:
        assert answers(pipeline) == alone["llama"]


def test_an_answer_that_stops_early_leaves_and_the_others_go_on(alone):
    whole = alone["llama"]
    stop = whole[3][4]
    cut = [answer[: answer.index(stop)] if stop in answer else answer for answer in whole]
    assert len(cut[3]) <= 4
    asked = settings(devices=("cpu",) * 3, max_sequences=4)
    with started(assemble(model(), asked), lambda token: token == stop) as pipeline:
        assert answers(pipeline) == cut


def test_a_cancelled_sequence_leaves_at_once_and_its_place_is_clean(alone):
    asked = settings(devices=("cpu", "cpu"), max_sequences=2)
    with started(assemble(model(), asked)) as pipeline:
        for number in range(2):
            pipeline.head.start(number, PROMPTS[7], Sampling(), TOKENS)
        for _ in range(5):
            pipeline.turn()
        pipeline.head.drop(0)
        assert pipeline.head.live == 1
        pipeline.head.drop(1)
        assert answers(pipeline, PROMPTS[:3]) == alone["llama"][:3]


# ------------------------------------------------------------------ it ends, whatever the sizes


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("micro_batches", range(1, 10))
@pytest.mark.parametrize("mode", ["ring", "flush"])
def test_any_number_of_micro_batches_ends(stages, micro_batches, mode):
    asked = settings(micro_batches=micro_batches, max_sequences=micro_batches, mode=mode, timeout_s=20)
    ran = run_synthetic(assemble_synthetic(WAIT, asked, stages), tokens=4)
    assert ran.tokens == 4 * micro_batches


@pytest.mark.parametrize("transport", ["zeromq", "gloo"])
def test_many_micro_batches_end_between_processes(transport):
    asked = settings(micro_batches=24, max_sequences=24, transport=transport, timeout_s=30)
    assert run_synthetic(assemble_synthetic(WAIT, asked, 2), tokens=4).tokens == 96


def test_there_are_no_more_sequences_than_asked_for():
    assembly = assemble_synthetic(WAIT, settings(micro_batches=3, max_sequences=8), 3)
    assert assembly.max_sequences == 8
    alone = assemble_synthetic(WAIT, settings(max_sequences=1), 2)
    assert (alone.shape.micro_batches, alone.max_sequences) == (1, 1)


def test_the_blocking_order_is_refused_with_more_micro_batches_than_stages():
    with pytest.raises(ConfigError, match="hangs with more micro-batches than stages"):
        assemble_synthetic(WAIT, settings(micro_batches=3, mode="seed"), 2)


def test_the_blocking_order_is_refused_where_sends_cannot_wait():
    with pytest.raises(ConfigError, match="mode 'seed' needs sends that wait"):
        assemble_synthetic(WAIT, settings(micro_batches=2, mode="seed", transport="zeromq"), 2)


@pytest.mark.parametrize("transport", ["threads", "gloo"])
def test_the_blocking_order_hangs_where_it_is_refused(transport, monkeypatch):
    """The negative control: without the refusal the wait ends by its timeout only."""
    for module in ("edged.layers.assembly.check", "edged.layers.pipeline.check"):
        monkeypatch.setattr(module, lambda *_: None)
    asked = settings(micro_batches=3, max_sequences=3, mode="seed", transport=transport, timeout_s=1.5)
    with pytest.raises(BackendError) as caught:
        run_synthetic(assemble_synthetic(WAIT, asked, 2), tokens=4)
    said = caught.value.message
    assert isinstance(caught.value, HopTimeout) or "took nothing for 1.5 s" in said or "died" in said


# ------------------------------------------------------------------ a stage that is gone


@pytest.mark.parametrize("transport", ["zeromq", "gloo"])
def test_a_killed_stage_is_named_and_the_others_end(transport):
    asked = settings(micro_batches=4, max_sequences=4, transport=transport, timeout_s=30)
    with started(assemble_synthetic(Synthetic(stage_s=0.005), asked, 4)) as pipeline:
        for number in range(4):
            pipeline.head.start(number, (1,), Sampling(), 1_000_000)
        for _ in range(20):
            pipeline.turn()
        os.kill(pipeline.pids[2], signal.SIGKILL)
        with pytest.raises(BackendError, match="stage 2 of 4 of the layer pipeline died"):
            turn_for_ever(pipeline)
        pids = pipeline.pids
    assert not any(map(alive, pids.values()))


@pytest.mark.parametrize("transport", ["zeromq", "gloo"])
def test_a_stage_that_dies_without_work_is_no_trouble_at_the_end(transport, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked = settings(micro_batches=3, max_sequences=3, transport=transport)
    with started(assemble_synthetic(WAIT, asked, 3)) as pipeline:
        pids = pipeline.pids
        os.kill(pids[1], signal.SIGKILL)
        os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)
    assert not any(map(alive, pids.values()))
    assert not list(tmp_path.iterdir())


class Failing:
    """A stage that fails at its third job, with an exception that nobody foresaw."""

    copy_s = 0.0

    def __init__(self) -> None:
        self.jobs = 0
        self.closed = False

    def run(self, job: Job, tensor: torch.Tensor, /) -> torch.Tensor:
        self.jobs += 1
        if self.jobs == 3:
            raise KeyError("weights")
        return torch.zeros((*tensor.shape[:2], 4))

    def close(self) -> None:
        self.closed = True


def test_a_stage_in_a_thread_that_fails_is_named_and_lets_go(monkeypatch):
    failing = Failing()

    def build(spec: StageSpec, *, own_process: bool) -> tuple[Runner, Loaded]:
        found = runners.build(spec, own_process=own_process)
        return (failing, found[1]) if spec.stage == 1 else found

    monkeypatch.setattr(pipelines, "build", build)
    before = threading.active_count()
    asked = settings(micro_batches=2, max_sequences=2, timeout_s=60)
    with started(assemble_synthetic(WAIT, asked, 3)) as pipeline:
        for number in range(2):
            pipeline.head.start(number, (1,), Sampling(), 1_000)
        with pytest.raises(BackendError, match="stage 1 of 3 failed: stage 1: 'weights'"):
            turn_for_ever(pipeline)
    assert failing.closed
    assert threading.active_count() == before


def test_a_draw_from_scores_that_overflow_spoils_no_other_answer(alone):
    asked = settings(devices=("cpu", "cpu"), max_sequences=2)
    with started(assemble(model(), asked)) as pipeline:
        pipeline.head.start(0, PROMPTS[0], Sampling(temperature=1e-40), TOKENS)
        pipeline.head.start(1, PROMPTS[1], Sampling(temperature=1e-3, repetition_penalty=1e-38), TOKENS)
        found: dict[int, list[int]] = {0: [], 1: []}
        while pipeline.head.live:
            for event in pipeline.turn() or ():
                found[event.sequence] += event.tokens
        assert found[0] == alone["llama"][0]
        assert len(found[1]) == TOKENS
        assert answers(pipeline, PROMPTS[:3]) == alone["llama"][:3]


def test_a_row_that_has_overflowed_does_not_spoil_the_next_sequence():
    places = Places.of([Row(0, 0, 3, False)], 3, 8, torch.device("cpu"))
    cache = RowCache.empty(1, (1, 1, 8, 2), torch.float32, torch.device("cpu"))
    cache.open([places])
    cache.enter(0, 0)
    keys, values = cache.update(torch.full((1, 1, 3, 2), torch.inf), torch.full((1, 1, 3, 2), torch.nan), 0)
    assert keys.isfinite().all()
    assert values.isfinite().all()


def test_a_stopped_stage_is_named_after_the_timeout():
    asked = settings(micro_batches=2, max_sequences=2, transport="zeromq", timeout_s=1.0)
    with started(assemble_synthetic(Synthetic(stage_s=0.005), asked, 3)) as pipeline:
        for number in range(2):
            pipeline.head.start(number, (1,), Sampling(), 1_000_000)
        for _ in range(10):
            pipeline.turn()
        os.kill(pipeline.pids[1], signal.SIGSTOP)
        with pytest.raises(BackendError, match="stage 1 of 3 of the layer pipeline is stopped"):
            turn_for_ever(pipeline)


def test_a_stage_that_cannot_load_is_named():
    asked = settings(devices=("cpu", "cuda:7"), transport="zeromq")
    with pytest.raises(ConfigError, match="stage 1 of 2: a layer pipeline cannot use device 'cuda:7'"):
        assemble(model(), asked).start(never)


def test_nccl_refuses_two_stages_on_one_gpu():
    with pytest.raises(ConfigError, match="NCCL refuses two stages on one GPU"):
        assemble(model(), settings(devices=("cuda:0", "cuda:0"), transport="nccl"))


# ------------------------------------------------------------------ bytes


@pytest.mark.parametrize("transport", ["threads", "zeromq"])
def test_bytes_of_a_hop_are_those_of_hidden_states_and_ids(transport):
    asked = settings(devices=("cpu",) * 3, split="even", transport=transport)
    prompts = [[5, 6, 7]] * 8
    with started(assemble(model(), asked)) as pipeline:
        answers(pipeline, prompts)
        stages = pipeline.head.meter.stages
    hidden = 64 * 4 * 8 * (3 + TOKENS - 1)
    assert [stage.received_bytes for stage in stages] == [8 * 8 * TOKENS, hidden, hidden]


def test_stages_hold_their_own_layers_and_no_others():
    asked = settings(devices=("cpu",) * 4, split="even")
    assembly = assemble(model(), asked)
    with started(assembly) as pipeline:
        loaded = pipeline.loaded
    architecture = describe(model())
    assert [each.layers for each in loaded] == [2, 2, 1, 1]
    for each, spec in zip(loaded, assembly.specs, strict=True):
        assert each.weight_bytes == 4 * architecture.parameters_of(spec.share)


def test_a_closed_pipeline_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked = settings(transport="zeromq", micro_batches=2, max_sequences=2)
    run_synthetic(assemble_synthetic(WAIT, asked, 2), tokens=1)
    assert not list(tmp_path.iterdir())
