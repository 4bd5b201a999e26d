"""`edgectl plan --what-if` over a calibration on disk; no daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edged.placement import storage
from edged.placement.fingerprint import take
from edged.placement.table import Form, Point, Table, Weight

from .conftest import NO_BUILT_IN

CONFIG = (
    NO_BUILT_IN
    + """
[stages.generator]
workers = 0
[stages.first]
kind = "tensor"
backend = "simulated"
[stages.second]
kind = "tensor"
backend = "simulated"
[pipelines.both]
stages = ["first", "second"]
[pipelines.one]
stages = ["first"]
"""
)
SECONDS = {("first", "cpu"): 0.1, ("second", "cpu"): 0.2, ("second", "npu"): 0.05}


def table() -> Table:
    forms = {
        Form(
            stage=stage,
            model=stage,
            variant="none",
            backend="simulated",
            device=device,
            threads=int(device == "cpu"),
        ): wall_s
        for (stage, device), wall_s in SECONDS.items()
    }
    return Table(
        fingerprint=take({}),
        measured_at="2026-01-01T00:00:00Z",
        points=tuple(
            Point(form=of, batch=1, length=1, wall_s=wall_s, cpu_s=wall_s * of.threads, rounds=3, spread=0.0)
            for of, wall_s in forms.items()
        ),
        weights=tuple(Weight(form=of, memory_bytes=1 << 20, load_s=0.1) for of in forms),
        finished=("first", "second"),
        finished_pairs=(("first", "second"),),
    )


@pytest.fixture
def edgectl(tmp_path: Path):
    (tmp_path / "edged.toml").write_text(CONFIG)
    (tmp_path / "edged.toml").chmod(0o600)
    storage.save(table(), storage.path_in(tmp_path))
    places = {"EDGED_DAEMON__STATE_DIR": str(tmp_path), "EDGED_DAEMON__RUNTIME_DIR": str(tmp_path / "run")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edged.cli", "--config", str(tmp_path / "edged.toml"), "plan", *words],
            env=os.environ | places,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def predicted(edgectl, *words: str) -> dict:
    ran = edgectl("--what-if", "--json", "--duration", "30s", *words)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)["prediction"]


def test_one_client_waits_for_the_sum_and_a_crowd_for_the_bottleneck(edgectl):
    assert predicted(edgectl, "--clients", "1")["latency"]["p50"] == pytest.approx(0.15)
    crowd = predicted(edgectl, "--clients", "16", "--cores", "1")
    assert crowd["throughput_per_s"] == pytest.approx(10.0, rel=0.02)
    assert crowd["bottleneck"] == "first"


def test_more_cores_carry_more_and_a_lost_device_costs(edgectl):
    loads = (("--cores", "4"), ("--cores", "1"), ("--cores", "1", "--without", "npu"))
    rates = [predicted(edgectl, "--clients", "16", *load)["throughput_per_s"] for load in loads]
    assert rates == pytest.approx([20.0, 10.0, 1 / 0.3], rel=0.03)


def test_a_pipeline_without_the_slow_stage_is_faster(edgectl):
    found = predicted(edgectl, "--clients", "4", "--cores", "1", "--without", "npu", "--pipeline", "one")
    assert found["throughput_per_s"] == pytest.approx(10.0, rel=0.02)
    assert list(found["stages"]) == ["first"]


def test_people_read_throughput_latency_and_the_bottleneck(edgectl):
    ran = edgectl("--what-if", "--rate", "2", "--cores", "2", "--duration", "1m")
    assert ran.returncode == 0, ran.stderr
    assert "on 2 cores under 2 requests per second" in ran.stdout
    assert "throughput" in ran.stdout
    assert "the load is the limit" in ran.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--cores", "4"), "add --what-if"),
        (("--what-if", "--clients", "2", "--rate", "1"), "not both"),
        (("--what-if", "--apply"), "only imagines"),
        (("--what-if", "--clear"), "only imagines"),
        (("--what-if", "--pipeline", "rag"), "those that do: both, one"),
    ],
)
def test_contradictions_are_refused_before_anything_happens(edgectl, words, why):
    ran = edgectl(*words)
    assert ran.returncode == 2
    assert why in ran.stderr
