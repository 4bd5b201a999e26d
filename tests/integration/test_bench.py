"""`edgectl bench` against a real daemon with simulated models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import simulated

STREAM = "options = { decode_ms = 5, max_tokens = 8 }"


@pytest.fixture
def bench(daemon, tmp_path):
    running = daemon(simulated(generator=STREAM))

    def command(*arguments: str) -> list[str]:
        socket = str(running.runtime_dir / "edged.sock")
        return [
            sys.executable,
            "-m",
            "edged.cli",
            "--socket",
            socket,
            "bench",
            "--model",
            "generator",
            *arguments,
        ]

    return command


def test_a_closed_loop_is_measured_and_drawn(bench, tmp_path: Path):
    plot = tmp_path / "load.png"
    done = subprocess.run(
        bench("--clients", "1,3", "--duration", "0.6s", "--json", "--plot", str(plot)),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    runs = json.loads(done.stdout)["runs"]
    assert [run["clients"] for run in runs] == [1, 3]
    assert all(run["answered"] > 1 and not run["errors"] for run in runs)
    assert runs[0]["bottleneck"] == "generator"
    assert runs[0]["first_token"]["p50"] < runs[0]["latency"]["p50"]
    assert runs[1]["throughput_per_s"] > runs[0]["throughput_per_s"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in plot.with_suffix(".svg").read_text()


def test_a_plot_that_cannot_be_written_is_noticed_before_the_load(bench, tmp_path: Path):
    done = subprocess.run(
        bench("--duration", "600s", "--plot", str(tmp_path / "absent" / "load.png")),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode != 0
    assert not done.stdout
    assert "the plot cannot be written" in done.stderr


def test_an_open_loop_keeps_its_rate(bench, tmp_path: Path):
    done = subprocess.run(
        bench("--rate", "20", "--duration", "1s", "--json"), capture_output=True, text=True, check=True
    )
    (run,) = json.loads(done.stdout)["runs"]
    assert run["rate_per_s"] == 20
    assert run["answered"] > 5


def test_an_open_loop_lasts_as_long_as_asked_however_early_the_last_answer_came(bench):
    """The only arrival of these seconds is due at 0.93 s."""
    done = subprocess.run(
        bench("--rate", "2", "--duration", "1.6s", "--json"), capture_output=True, text=True, check=True
    )
    (run,) = json.loads(done.stdout)["runs"]
    assert run["duration_s"] >= 1.6
    assert run["throughput_per_s"] <= run["answered"] / 1.6


def test_people_get_tables_and_a_verdict(bench):
    done = subprocess.run(
        bench("--clients", "2", "--duration", "0.4s"), capture_output=True, text=True, check=True
    )
    assert "first token" in done.stdout
    assert "generator is the bottleneck" in done.stdout


def test_ctrl_c_ends_the_run_and_reports_what_was_measured(bench, tmp_path: Path):
    process = subprocess.Popen(
        bench("--clients", "1", "--duration", "10m", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        process.stderr.readline()  # it says that the run has begun
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    (run,) = json.loads(out)["runs"]
    assert run["duration_s"] < 60


def test_no_daemon_is_said_once(tmp_path: Path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "edged.cli",
            "--socket",
            str(tmp_path / "none.sock"),
            "bench",
            "--clients",
            "4",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 69
    assert done.stderr.count("no daemon answers") == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--clients", "0"), ("--clients", "many"), ("--duration", "soon")]
)
def test_nonsense_is_refused_by_name(tmp_path: Path, option: str, value: str):
    done = subprocess.run(
        [sys.executable, "-m", "edged.cli", "bench", option, value],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert option in done.stderr
