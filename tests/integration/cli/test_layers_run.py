"""`edgectl layers run` and `bench`, as typed, with small seeded models and threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edged.backend import Detailed
from edged.cli.layers_model import variant_of
from edged.cli.root import edgectl
from edged.plugins import load

MODEL = "random:llama:layers=5,hidden=64,heads=4,kv=2,intermediate=128,vocabulary=512,seed=1"
SMALL = ("--transport", "threads", "--tokens", "4", "--context-tokens", "128")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "edged.toml"
    file.write_text(f'[daemon]\nstate_dir = "{tmp_path}"\n')
    return file


def typed(config: Path, *words: str) -> Result:
    return CliRunner().invoke(edgectl, ["--config", str(config), "layers", *words])


def run(config: Path, *words: str) -> Result:
    return typed(config, "run", "--model", MODEL, *SMALL, *words)


def told(config: Path, *words: str) -> Any:
    found = run(config, *words, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


# ------------------------------------------------------------------ who gets a stage


def test_more_stages_than_layers_are_refused(config: Path):
    found = run(config, "--stages", "6")
    assert found.exit_code == 78
    assert "stages = 6 is not possible with 5 layers" in found.stderr


def test_so_many_stages_are_that_many_and_even(config: Path):
    found = told(config, "--stages", "5", "--prompt", "a")
    assert [stage["layers"] for stage in found["stages"]] == [1] * 5
    assert found["left_out"] == []


@pytest.mark.parametrize("words", [("--devices", ",".join(["cpu"] * 6)), ("--stages", "6", "--weighted")])
def test_a_device_without_a_stage_is_named(config: Path, words: tuple[str, ...]):
    found = told(config, *words, "--prompt", "a")
    assert len(found["stages"]) + len(found["left_out"]) == 6
    assert found["left_out"][0]["device"] == "cpu"
    said = run(config, *words, "--prompt", "a").stdout
    assert f"left out: cpu: {found['left_out'][0]['why']}" in said


def test_the_daemon_is_told_of_a_device_without_a_stage():
    backend = load("torch_pipeline")
    asked = {"transport": "threads", "context_tokens": 128}
    for devices, known in ((["cpu"] * 6, {"left_out"}), (["cpu"] * 2, set())):
        session = backend.open(variant_of(MODEL), backend.devices()[0], asked | {"devices": devices})
        session.close()
        assert isinstance(session, Detailed)
        assert set(session.details) == known


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--devices", "cpu,cpu", "--layers", "a,b"], "no list of counts"),
        (["--devices", "cpu,cpu", "--layers", "5,0"], "no list of counts of at least 1"),
        (["--devices", ""], "lacks a name"),
        (["--devices", "cpu,"], "lacks a name"),
        (["--stages", "2", "--even", "--weighted"], "one of --even, --weighted"),
        (["--stages", "2", "--even", "--layers", "2,3"], "one of --even, --weighted"),
    ],
)
def test_what_is_typed_wrong_is_a_matter_of_usage(config: Path, words: list[str], message: str):
    found = run(config, *words)
    assert found.exit_code == 2
    assert message in found.stderr


# ------------------------------------------------------------------ what it says


def test_the_formula_counts_the_micro_batches_that_had_work(config: Path):
    one = told(config, "--stages", "2", "--prompt", "a")["run"]
    assert (one["micro_batches"], one["room"], one["formula"]) == (1, 2, 0.5)
    many = told(config, "--stages", "2")["run"]
    assert (many["micro_batches"], many["formula"]) == (2, pytest.approx(1 / 9))
    assert "1 micro-batch of 2: 0.50)" in run(config, "--stages", "2", "--prompt", "a").stdout


def test_prompts_and_answers_can_be_told_apart(config: Path):
    said = run(config, "--stages", "1", "--prompt", "one two").stdout.splitlines()
    assert said[0] == "prompt 0: one two"
    assert said[1].startswith("answer 0: ")


def test_json_says_what_was_asked_and_who_answered(config: Path):
    found = told(config, "--devices", "cpu,cpu:0", "--layers", "2,3", "--prompt", "one", "--prompt", "two")
    assert found["prompts"] == ["one", "two"]
    assert found["devices"] == ["cpu", "cpu:0"]
    assert found["files"] == []
    assert [(stage["first"], stage["end"]) for stage in found["stages"]] == [(0, 2), (2, 5)]
    assert not {"failed", "code"} & set(found["stages"][0])


def test_a_stage_that_fails_is_told_once(config: Path, capfd: pytest.CaptureFixture[str]):
    words = ("--devices", "cpu,tcp://127.0.0.1:9", "--even", "--tokens", "4", "--json")
    found = typed(config, "run", "--model", MODEL, *words)
    assert found.exit_code == 78
    assert "peers keygen" in json.loads(found.stderr)["error"]["message"]
    assert not capfd.readouterr().err


@pytest.mark.parametrize("device", ["tcp://127.0.0.1", "tcp://", "cuda", "gpu:0", "cpu:0-", "cpu:5-1"])
def test_what_is_no_device_of_a_pipeline_is_refused_before_anything_starts(config: Path, device: str):
    found = typed(config, "run", "--model", MODEL, "--devices", f"cpu,{device}")
    assert found.exit_code == 78
    assert f"{device!r} is not a device of a layer pipeline" in found.stderr


# ------------------------------------------------------------------ serve


@pytest.mark.parametrize(
    "device", ["bogus", "cpu:0-9999", "cuda:99", "tcp://127.0.0.1:7701", "cpu:", "cpu:5-1"]
)
def test_a_device_that_is_not_there_is_not_served(config: Path, device: str):
    words = ("--listen", "tcp://127.0.0.1:1", "--model", MODEL, "--device", device)
    found = typed(config, "serve", *words)
    assert found.exit_code == 78
    assert f"device {device!r}" in found.stderr or f"{device!r} is not a device" in found.stderr


# ------------------------------------------------------------------ pictures


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr("edged.layers.trial.run", refuse)
    monkeypatch.setattr("edged.layers.trial.run_synthetic", refuse)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_plot_that_cannot_be_written_is_noticed_before_the_work(config: Path, tmp_path: Path, command: str):
    place = str(tmp_path / "absent" / "plot.png")
    words = ["--stages", "2", "--plot", place]
    found = run(config, *words) if command == "run" else typed(config, "bench", "--synthetic", "1ms", *words)
    assert isinstance(found.exception, SystemExit)
    assert "the plot cannot be written" in found.stderr


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["words", "json"])
@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_plot_that_fails_does_not_keep_the_answers_back(
    config: Path, tmp_path: Path, command: str, words: tuple[str, ...]
):
    (tmp_path / "plot.svg").symlink_to("/dev/full")
    both = ["--stages", "2", "--plot", str(tmp_path / "plot.png"), *words]
    synthetic = ["bench", "--synthetic", "1ms", "--transport", "threads", "--tokens", "2"]
    found = run(config, "--prompt", "a", *both) if command == "run" else typed(config, *synthetic, *both)
    assert found.exit_code == 1
    assert "the plot cannot be written" in found.stderr
    if words:
        assert json.loads(found.stdout)["files"] == []
    else:
        assert "BUSY S" in found.stdout or "FORMULA" in found.stdout


def test_a_plot_says_where_it_is(config: Path, tmp_path: Path):
    found = run(config, "--stages", "2", "--prompt", "a", "--plot", str(tmp_path / "run.png"))
    assert f"wrote {tmp_path}/run.png" in found.stdout
    assert (tmp_path / "run.svg").exists()


# ------------------------------------------------------------------ bench


def bench(config: Path, *words: str) -> Result:
    return typed(config, "bench", "--transport", "threads", "--tokens", "2", *words)


def test_a_mode_that_would_hang_is_told_as_refused(config: Path):
    words = ("--synthetic", "1ms", "--stages", "2", "--mode", "seed", "--micro-batches", "1,2,4")
    found = bench(config, *words)
    assert found.exit_code == 0, found.output
    assert "refused: seed, 2 stages, 4 micro-batches: " in found.stdout
    assert "hangs" in found.stdout
    as_json = json.loads(bench(config, *words, "--json").stdout)
    assert [each["run"]["micro_batches"] for each in as_json["runs"]] == [1, 2]
    assert [each["micro_batches"] for each in as_json["refused"]] == [4]


@pytest.mark.parametrize(("text", "message"), [("60", "has no unit"), ("0ms", "longer than nothing")])
def test_a_synthetic_stage_takes_a_time_with_a_unit(config: Path, text: str, message: str):
    found = bench(config, "--synthetic", text)
    assert found.exit_code == 2
    assert message in found.stderr


def test_progress_is_that_of_tokens(config: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "edged.cli.layers_bench._advance", lambda _bar, _task, done, most: seen.append((done, most))
    )
    assert bench(config, "--synthetic", "1ms", "--stages", "2").exit_code == 0
    assert seen[-1] == (4, 4)
    assert len(seen) > 4


# ------------------------------------------------------------------ overlap


def test_a_folder_for_weights_that_stay_in_memory_is_refused(config: Path, tmp_path: Path):
    found = typed(config, "overlap", "--overlap-folder", str(tmp_path))
    assert found.exit_code == 2
    assert "--overlap-from disk" in found.stderr
