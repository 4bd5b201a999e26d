"""What layers cost is told apart from what stages took, and the plan uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edged.cli.root import edgectl
from edged.errors import ConfigError
from edged.layers.planning import measure as measuring
from edged.layers.planning.costs import MeasuredCosts, Spread
from edged.layers.spec import Loaded, StageSpec
from edged.layers.wire import Job

TINY = "random:llama:layers=6,hidden=64,heads=4,kv=2,intermediate=128,vocabulary=512,context=256"
SETTING = measuring.Setting(TINY, "cpu", "float32", micro_batch=2, context_tokens=64)


class Clock:
    """Time that passes only when a stage works."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Worker:
    """A stage that takes 0.5 s, 2 s a layer, 3 s for the embedding and 7 s for the head."""

    copy_s = 0.0

    def __init__(self, spec: StageSpec, clock: Clock) -> None:
        share = spec.share
        self.takes_s = 0.5 + 2 * share.layers + 3 * share.embedding + 7 * share.head
        self.clock = clock
        self.jobs: list[Job] = []
        self.closed = False

    def run(self, job, tensor):
        self.clock.now_s += self.takes_s * (10 if not self.jobs else 1)
        self.jobs.append(job)
        return tensor

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    clock, made = Clock(), []

    def build(spec: StageSpec, *, own_process: bool):
        assert not own_process
        made.append(Worker(spec, clock))
        return made[-1], Loaded(stage=0)

    monkeypatch.setattr(measuring, "build", build)
    monkeypatch.setattr(measuring, "time", clock)
    return made


def test_parts_are_told_apart_and_the_first_runs_do_not_count(workers: list[Worker]):
    seen: list[tuple[int, int]] = []
    found = measuring.measure(SETTING, 4, lambda done, of: seen.append((done, of)))
    assert (found.layer_s, found.embedding_s, found.head_s, found.stage_s) == (2.0, 3.0, 7.0, 0.5)
    assert found.spread == Spread(
        layer_s=(2.0, 2.0), embedding_s=(3.0, 3.0), head_s=(7.0, 7.0), stage_s=(0.5, 0.5)
    )
    assert seen[-1] == (4, 4)
    assert all(worker.closed for worker in workers)
    for worker in workers:
        assert [row.start for row in worker.jobs[-1].rows] == [63, 63], "behind a full cache"
        assert [bool(job.opened) for job in worker.jobs] == [True] + [False] * 6


def test_a_model_of_one_layer_is_refused():
    with pytest.raises(ConfigError, match="from 2 layers on"):
        measuring.measure(SETTING._replace(source="random:llama:layers=1"), 3)


def test_what_was_measured_is_what_the_plan_uses(tmp_path: Path):
    saved = tmp_path / "costs.json"
    words = ["layers", "measure", "--model", TINY, "--context-tokens", "64", "--rounds", "3"]
    measured = CliRunner().invoke(edgectl, [*words, "--save", str(saved), "--json"])
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout) == json.loads(saved.read_text())
    words = ["layers", "plan", "--model", TINY, "--devices", "cpu,cpu", "--costs", str(saved)]
    planned = CliRunner().invoke(edgectl, [*words, "--tokens", "8", "--context-tokens", "64", "--json"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["measured"]
    assert json.loads(planned.stdout)["warnings"] == []
    conditions = json.loads(saved.read_text())["conditions"]
    assert (conditions["model"], conditions["device"], conditions["dtype"]) == (TINY, "cpu", "float32")
    assert (conditions["micro_batch"], conditions["context_tokens"]) == (1, 64)


def test_people_are_told_units_conditions_spread_and_the_file(tmp_path: Path):
    saved = tmp_path / "costs.json"
    words = ["layers", "measure", "--model", TINY, "--micro-batch", "2", "--rounds", "3"]
    told = CliRunner().invoke(edgectl, [*words, "--save", str(saved)])
    assert told.exit_code == 0, told.output
    assert "on cpu as float32: decode steps of a micro-batch of 2 sequences behind 255 tokens" in told.stdout
    for expected in ("MS A STEP", "MIDDLE HALF OF THE ROUNDS", f"wrote {saved}"):
        assert expected in told.stdout


def test_a_context_beyond_the_models_is_refused():
    words = ["layers", "measure", "--model", TINY, "--context-tokens", "512"]
    found = CliRunner().invoke(edgectl, words)
    assert found.exit_code == 78
    assert "exceeds the model's 256" in found.stderr


def test_a_device_that_torch_does_not_see_is_refused():
    found = CliRunner().invoke(edgectl, ["layers", "measure", "--model", TINY, "--device", "cuda:63"])
    assert found.exit_code == 78
    assert "cuda:63" in found.stderr


def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("measured for nothing"))
    words = [
        "layers",
        "measure",
        "--model",
        TINY,
        "--rounds",
        "3",
        "--save",
        str(tmp_path / "no" / "costs.json"),
    ]
    found = CliRunner().invoke(edgectl, words)
    assert found.exit_code == 1
    assert "cannot write" in found.stderr


def test_a_part_that_noise_hides_is_said_to_be_hidden(monkeypatch: pytest.MonkeyPatch):
    zero = MeasuredCosts(
        layer_s=0.002,
        head_s=0.0000042,
        spread=Spread(
            layer_s=(0.0015, 0.0025), embedding_s=(-1e-5, 1e-5), head_s=(0.0, 1e-5), stage_s=(0.0, 0.0)
        ),
    )
    monkeypatch.setattr(measuring, "measure", lambda *_: zero)
    told = CliRunner().invoke(edgectl, ["layers", "measure", "--model", TINY])
    rows = [" ".join(line.split()) for line in told.stdout.splitlines()]
    assert "layer 2 1.5 to 2.5" in rows
    assert "embedding less than the noise -0.01 to 0.01" in rows
    assert "head 0.0042 0 to 0.01" in rows
