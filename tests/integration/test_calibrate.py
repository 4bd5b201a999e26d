"""`edgectl calibrate` on simulated devices: budgets, interruptions, forms that crash or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edged.placement import storage
from edged.placement.table import Point, Table
from edged.testing.daemon import RunningDaemon

from .conftest import simulated

PATIENCE_S = 60.0
POLL_S = 0.02
TWO_GENERATORS = """
[stages.retriever]
workers = 0
[stages.reranker]
workers = 0
[stages.generator]
backend = "simulated"
device = "sim:cpu"
{generator}
[stages.second]
kind = "generator"
backend = "simulated"
device = "sim:npu"
options = {{ per_item_ms = 0.2, max_tokens = 4, context_tokens = 8192 }}
"""
BOTH = ("generator", "second")
CHEAP = "per_item_ms = 0.2, max_tokens = 4"
SLOW = "decode_ms = 20, max_tokens = 64"


class Box:
    """A folder with a configuration, and the command run in it."""

    def __init__(self, folder: Path, generator: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        options = f"options = {{ context_tokens = 8192, {generator} }}"
        (folder / "edged.toml").write_text(TWO_GENERATORS.format(generator=options))
        self._environment = os.environ | {
            "EDGED_DAEMON__STATE_DIR": str(self.state),
            "EDGED_DAEMON__RUNTIME_DIR": str(folder / "run"),
        }

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edged.cli", "--config", str(self.folder / "edged.toml")]
        return subprocess.Popen(
            [*command, "calibrate", *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.begin(*arguments) as process:
            out, err = process.communicate(timeout=120)
            return process.returncode, out, err

    def measure(self, *arguments: str) -> Table:
        """The table that the command printed, which is also the one that it wrote."""
        status, out, err = self.run("--json", *arguments)
        assert status == 0, err
        table = msgspec.json.decode(out, type=Table)
        assert table == self.table()
        return table

    def table(self) -> Table | None:
        return storage.load(storage.path_in(self.state))

    def probes(self) -> list[str]:
        """Processes with this box in their environment, zombies left out."""
        marker = str(self.state).encode()
        return [path.name for path in Path("/proc").glob("[0-9]*") if marker in environment_of(path)]


def environment_of(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_S)


def whole(table: Table) -> bool:
    return (table.finished, table.finished_pairs) == (BOTH, (BOTH,))


def of_stage(table: Table, stage: str) -> tuple[Point, ...]:
    return tuple(point for point in table.points if point.form.stage == stage)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Callable[[str], Box]]:
    """Make a box whose generator has these options; nothing may be left of it."""
    made: list[Box] = []

    def make(generator: str = CHEAP) -> Box:
        made.append(Box(tmp_path, generator))
        return made[-1]

    yield make
    for each in made:
        wait_until(lambda: not each.probes(), f"left behind: {each.probes()}")  # noqa: B023
        assert sorted(path.name for path in each.state.iterdir()) == ["calibration.json", "calibration.lock"]


def test_it_measures_everything_and_the_second_run_has_nothing_to_do(box):
    here = box()
    table = here.measure()
    assert whole(table)
    assert table.failures == ()
    sizes = {(point.form.stage, point.batch) for point in table.points if point.work == "typical"}
    assert sizes == {("generator", n) for n in (1, 2, 4, 8, 16)} | {("second", 1)}
    assert {point.work for point in table.points} == {"short", "typical", "long"}
    assert {(pair.first.stage, pair.second.stage) for pair in table.pairs} == {("generator", "second")}
    assert {weight.form.device for weight in table.weights} == {"sim:cpu", "sim:npu"}
    for point in table.points:
        assert 0 < point.first_s <= point.wall_s
        assert point.new_tokens == 4
        assert point.cpu_s > 0
        assert point.length > 50
    again = here.measure()
    assert (again.points, again.pairs) == (table.points, table.pairs)
    status, out, err = here.run("--show")
    assert status == 0
    assert "second" in out
    assert "not everything" not in err


def test_one_stage_measured_is_not_the_whole_table(box):
    here = box()
    first = here.measure("--stage", "generator")
    assert (first.finished, first.finished_pairs) == (("generator",), ())
    assert "not everything is measured (second); `edgectl calibrate`" in here.run("--show")[2]
    both = here.measure("--stage", "second")
    assert (both.finished, both.pairs, both.finished_pairs) == (BOTH, (), ())
    assert of_stage(both, "generator") == first.points
    assert "not everything is measured (generator beside second)" in here.run("--show")[2]
    table = here.measure()
    assert whole(table)
    assert {(pair.first.stage, pair.second.stage) for pair in table.pairs} == {BOTH}


def test_a_fresh_stage_forgets_that_stage_and_its_pairs_only(box):
    here = box()
    before = here.measure()
    after = here.measure("--fresh", "--stage", "second")
    assert of_stage(after, "generator") == of_stage(before, "generator")
    assert {weight.form.stage for weight in after.weights} == set(BOTH)
    assert of_stage(after, "second")
    assert not set(of_stage(after, "second")) & set(of_stage(before, "second"))
    assert (after.pairs, after.finished, after.finished_pairs) == ((), BOTH, ())
    assert whole(here.measure())
    assert whole(here.measure("--stage", "generator"))
    nothing = here.measure("--fresh", "--budget", "1s")
    assert (nothing.points, nothing.finished) == ((), ())


def test_longer_requests_and_batches_cost_what_they_are_declared_to(box):
    """Only prompt tokens cost something here, so walls must rank as lengths and batches do."""
    table = box("per_token_ms = 0.02, max_tokens = 2").measure("--stage", "generator")
    mine = {(p.batch, p.work): p for p in table.points if p.form.stage == "generator"}
    lengths = [mine[1, work].length for work in ("short", "typical", "long")]
    walls = [mine[1, work].wall_s for work in ("short", "typical", "long")]
    assert lengths == sorted(lengths)
    assert walls == sorted(walls)
    batches = [mine[batch, "typical"].wall_s for batch in (1, 2, 4, 8, 16)]
    assert batches == sorted(batches)


@pytest.mark.parametrize(("options", "some"), [("", False), (", prefix_cache_tokens = 65536", True)])
def test_what_prompts_begin_with_is_counted_where_the_runtime_keeps_it(box, options, some):
    table = box(CHEAP + options).measure("--stage", "generator")
    for point in of_stage(table, "generator"):
        assert 0 <= point.cached_tokens < point.length
        assert (point.cached_tokens > 0) == some


def test_killed_in_the_middle_it_goes_on_where_it_was(box):
    here = box()
    process = here.begin()
    wait_until(lambda: (table := here.table()) and table.points, "no figure was written")
    process.kill()
    process.communicate()
    wait_until(lambda: not here.probes(), "a probe outlives the command")
    before = here.table()
    assert before is not None
    assert not whole(before)
    after = here.measure()
    assert whole(after)
    kept = {(p.form, p.batch, p.work): p for p in after.points}
    refined = {(p.form, p.batch, p.work) for p in before.points if p.rounds < 3}
    assert all(kept[p.form, p.batch, p.work] == p for p in before.points if p.rounds >= 3)
    assert refined <= kept.keys()


def test_interrupted_it_keeps_what_it_has(box):
    here = box(SLOW)
    process = here.begin()
    wait_until(lambda: (table := here.table()) and table.points, "no figure was written")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "every figure so far is kept" in err
    table = here.table()
    assert table is not None
    assert table.points
    assert not whole(table)


def test_a_budget_that_ends_in_the_middle_of_a_hang_ends_the_command(box, tmp_path):
    file = tmp_path / "faults.json"
    file.write_bytes(msgspec.json.encode({"hang": "native"}))
    table = box(f"faults = '{file}'").measure("--budget", "4s", "--stage", "generator")
    assert table.finished == ()
    assert (table.points, table.failures) == ((), ())


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"crash": "segv"}, "crashed"),
        ({"crash": "exit", "at_load": True}, "crashed"),
        ({"raise": "backend", "at_load": True}, "backend"),
    ],
)
def test_a_form_that_does_not_run_is_a_failure_and_the_others_are_measured(box, tmp_path, faults, code):
    file = tmp_path / "faults.json"
    file.write_bytes(msgspec.json.encode(faults))
    here = box(f"max_tokens = 4, faults = '{file}'")
    table = here.measure()
    assert [(failure.form.stage, failure.code, failure.batch) for failure in table.failures] == [
        ("generator", code, 0)
    ]
    assert {point.form.stage for point in table.points} == {"second"}
    assert whole(table)
    _, _, err = here.run("--show")
    assert f"does not run: generator none simulated sim:cpu: [{code}]" in err


def test_a_form_that_crashes_at_a_large_batch_keeps_its_small_ones(box, tmp_path):
    file = tmp_path / "faults.json"
    file.write_bytes(msgspec.json.encode({"crash": "abort", "after_items": 60}))
    table = box(f"max_tokens = 4, decode_ms = 50, faults = '{file}'").measure("--stage", "generator")
    assert {failure.code for failure in table.failures} == {"crashed"}
    assert all(failure.batch > 1 for failure in table.failures if failure.work == "typical")
    assert 1 in {point.batch for point in table.points}


def test_two_calibrations_do_not_disturb_one_another(box):
    here = box(SLOW)
    first = here.begin()
    wait_until(lambda: (here.state / "calibration.lock").exists() and here.probes(), "it did not begin")
    wait_until(lambda: (table := here.table()) and table.points, "no figure was written")
    status, _, err = here.run()
    assert status == 1
    assert "already_running" in err
    first.kill()
    first.communicate()


def test_a_stage_that_nobody_configured(box):
    here = box()
    status, _, err = here.run("--stage", "nonsense")
    assert status == 78
    assert "generator, second" in err or "retriever" in err
    here.measure("--budget", "1s")


def test_a_damaged_table_is_not_taken_for_none(box):
    here = box()
    here.state.mkdir()
    storage.path_in(here.state).write_text("{")
    status, _, err = here.run()
    assert status == 1
    assert "--fresh" in err
    assert here.measure("--fresh", "--budget", "1s").points == ()


# -------------------------------------------------------------- beside a daemon

SERVED = {"generator": "options = { context_tokens = 8192, max_tokens = 4 }"}


def calibrated(daemon: RunningDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edged.cli", "--config", str(daemon.config_path), "calibrate"]
    return subprocess.run(
        [*command, *arguments],
        env=daemon.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_an_idle_daemon_does_not_disturb_and_its_notes_follow_the_table(daemon):
    running = daemon(simulated(**SERVED))
    assert any("edgectl calibrate" in note for note in running.client.status().notes)
    done = calibrated(running, "--budget", "30s")
    assert done.returncode == 0, done.stderr
    assert "the daemon is idle" in done.stderr
    assert not any("calibrat" in note for note in running.client.status().notes)
    path = storage.path_in(running.config.daemon.state_dir)
    table = storage.load(path)
    assert table is not None
    older = msgspec.structs.replace(table.fingerprint, kernel="2.4")
    storage.save(msgspec.structs.replace(table, fingerprint=older), path)
    notes = running.client.status().notes
    assert any("stale" in note and "kernel: 2.4 -> " in note for note in notes)
    shown = calibrated(running, "--show")
    assert "stale: kernel: 2.4" in shown.stderr
    anew = calibrated(running, "--budget", "1s")
    assert "measured anew because of kernel: 2.4" in anew.stderr
    assert "calibration" in "".join(path.name for path in path.parent.iterdir())


def test_a_daemon_at_work_is_left_in_peace(daemon):
    running = daemon(simulated(**SERVED))
    list(running.client.chat([{"role": "user", "content": "hello"}], model="generator"))
    refused = calibrated(running, "--budget", "1s")
    assert refused.returncode == 1
    assert "--while-serving" in refused.stderr
    assert calibrated(running, "--budget", "1s", "--while-serving").returncode == 0


@pytest.mark.parametrize(
    ("stage", "model", "threads", "lanes"),
    [("retriever", "bge-small-en-v1.5", 1, 1), ("reranker", "ms-marco-minilm-l12-v2", 2, 2)],
    ids=["retriever", "reranker"],
)
def test_a_real_encoder_on_the_sample_documents(tmp_path, variant, stage, model, threads, lanes):
    weights = variant(model, "int8")
    state = tmp_path / "state"
    state.mkdir()
    (state / "models").symlink_to(weights.path.parents[2])
    config = (
        f'[stages.{stage}]\nvariant = "int8"\nbackend = "onnx"\nmax_batch = 1\n'
        f"options = {{ threads = {threads} }}\n"
    )
    (tmp_path / "edged.toml").write_text(
        f"[daemon]\nstate_dir = '{state}'\nruntime_dir = '{tmp_path}'\n{config}"
    )
    command = [sys.executable, "-m", "edged.cli", "--config", str(tmp_path / "edged.toml"), "calibrate"]
    done = subprocess.run(
        [*command, "--stage", stage, "--json"], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    table = msgspec.json.decode(done.stdout, type=Table)
    assert table.finished == (stage,)
    assert table.workload["passages"] == "samples"
    assert table.fingerprint.models == {f"{model}/int8": weights.digest}
    by_work = {point.work: point for point in table.points}
    assert by_work["short"].length < by_work["typical"].length < by_work["long"].length
    found = {(point.form.backend, point.form.threads, point.batch, point.lanes) for point in table.points}
    assert found == {("onnx", threads, 1, lanes)}
    assert by_work["typical"].rounds >= 3
    (weight,) = table.weights
    assert weight.memory_bytes > weights.path.stat().st_size
