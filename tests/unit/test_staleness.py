"""When figures no longer hold, and which of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edged.governor.sensors import EnergyCounter, energy, joules
from edged.placement.fingerprint import take
from edged.placement.staleness import stale, still_valid, undisturbed, workload_changes
from edged.placement.table import Failure, Fingerprint, Form, Pair, Point, Table, Weight

NOW = Fingerprint(
    cpu="A",
    cores=2,
    memory_bytes=8 << 30,
    kernel="6.1",
    packages={"onnxruntime": "1.0", "openvino": "2.0", "openvino-genai": "2.0"},
    models={"m/int8": "d1", "g/q4": "d2"},
)


def form(stage: str, model: str, variant: str, backend: str) -> Form:
    return Form(stage=stage, model=model, variant=variant, backend=backend, device="cpu", threads=1)


RERANK, GENERATE = form("r", "m", "int8", "onnx"), form("g", "g", "q4", "openvino")


def table() -> Table:
    return Table(
        fingerprint=NOW,
        measured_at="2026-01-01T00:00:00Z",
        points=tuple(
            Point(form=each, batch=1, length=1, wall_s=1, cpu_s=1, rounds=1, spread=0)
            for each in (RERANK, GENERATE)
        ),
        weights=(Weight(form=RERANK, memory_bytes=1, load_s=1),),
        pairs=(
            Pair(
                first=RERANK, second=GENERATE, first_batch=1, second_batch=1,
                first_slowdown=1, second_slowdown=1,
            ),
        ),
        failures=(Failure(form=GENERATE, code="crashed", message="", batch=8),),
        finished=("g", "r"),
        finished_pairs=(("g", "r"),),
    )  # fmt: skip


def changed(**fields: object) -> Fingerprint:
    return msgspec.structs.replace(NOW, **fields)


def test_nothing_changed():
    assert stale(table(), NOW) == []
    assert still_valid(table(), NOW) == table()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"cpu": "B"}, "cpu: A -> B"),
        ({"cores": 4}, "cores: 2 -> 4"),
        ({"kernel": "6.2"}, "kernel: 6.1 -> 6.2"),
        ({"accelerators": ("renderD128 0x8086:0x7d55",)}, "accelerators: none -> renderD128"),
        ({"memory_bytes": 16 << 30}, "memory: "),
    ],
)
def test_another_machine_leaves_nothing(fields, word):
    now = changed(**fields)
    (reason,) = stale(table(), now)
    assert reason.startswith(word)
    left = still_valid(table(), now)
    assert (left.points, left.weights, left.pairs, left.failures, left.fingerprint) == ((), (), (), (), now)


def test_a_runtime_takes_its_forms_along():
    now = changed(packages=NOW.packages | {"openvino-genai": "2.1"})
    assert stale(table(), now) == ["package openvino-genai: 2.0 -> 2.1"]
    left = still_valid(table(), now)
    assert {point.form for point in left.points} == {RERANK}
    assert (left.pairs, left.failures) == ((), ())
    assert stale(left, now) == []


def test_a_runtime_that_nothing_was_measured_on_is_no_reason():
    assert stale(table(), changed(packages=NOW.packages | {"llama-cpp-python": "0.3"})) == []


def test_another_edged_takes_everything_along():
    now = changed(packages=NOW.packages | {"edged": "9"})
    assert stale(table(), now) == ["package edged: absent -> 9"]
    assert still_valid(table(), now).points == ()


def test_other_weights_take_their_forms_along():
    now = changed(models=NOW.models | {"m/int8": "other"})
    assert stale(table(), now) == ["model m/int8: other weights than measured"]
    left = still_valid(table(), now)
    assert {point.form for point in left.points} == {GENERATE}
    assert left.weights == ()
    assert stale(left, now) == []


def test_new_and_removed_weights_are_no_reason():
    assert stale(table(), changed(models={"m/int8": "d1", "g/q8": "d3"})) == []


def test_disturbed_figures_can_be_taken_again():
    quiet, loud = (
        msgspec.structs.replace(point, others=cores)
        for point, cores in zip(table().points, (0.1, 1.4), strict=True)
    )
    both = msgspec.structs.replace(table(), points=(quiet, loud))
    left = undisturbed(both, {"r", "g"})
    assert (left.points, left.pairs) == ((quiet,), ())
    assert undisturbed(both, {"r"}) == both
    assert undisturbed(msgspec.structs.replace(table(), points=(quiet,)), {"r", "g"}).pairs == table().pairs


def test_a_little_less_memory_is_the_same_machine():
    assert stale(table(), changed(memory_bytes=(8 << 30) - (64 << 20))) == []


@pytest.mark.parametrize(
    ("now", "names"),
    [
        ({"candidates": 20, "keep": 4, "new_tokens": 64, "passage_words": 110}, []),
        ({"candidates": 10, "keep": 4, "new_tokens": 64, "passage_words": 100}, ["candidates"]),
        ({"candidates": 20, "keep": 4, "new_tokens": 64, "passage_words": 40}, ["passage_words"]),
    ],
)
def test_other_requests(now, names):
    then = {"candidates": 20, "keep": 4, "new_tokens": 64, "passage_words": 100}
    assert [change.partition(":")[0] for change in workload_changes(then, now)] == names


def test_the_fingerprint_reads_the_machine(tmp_path: Path):
    write(tmp_path / "proc/cpuinfo", "processor : 0\nmodel name\t: Test CPU 9\n")
    write(tmp_path / "sys/class/drm/renderD128/device/vendor", "0x8086\n")
    write(tmp_path / "sys/class/drm/renderD128/device/device", "0x7d55\n")
    for address, device in (("0000:65:00.0", "0x2684"), ("0000:17:00.0", "0x2330")):
        write(tmp_path / "sys/bus/pci/drivers/nvidia" / address / "vendor", "0x10de\n")
        write(tmp_path / "sys/bus/pci/drivers/nvidia" / address / "device", f"{device}\n")
    write(tmp_path / "sys/bus/pci/drivers/nvidia/new_id", "")
    unseen = take({}, tmp_path)
    write(tmp_path / "dev/nvidia0", "")
    found = take({"m/v": "d"}, tmp_path)
    assert found.cpu == "Test CPU 9"
    assert found.accelerators == (
        "nvidia0 0x10de:0x2330", "nvidia1 0x10de:0x2684", "renderD128 0x8086:0x7d55",
    )  # fmt: skip
    assert found.accelerators == unseen.accelerators, "what a process may open makes no other machine"
    assert found.models == {"m/v": "d"}
    assert "openvino" in found.packages


def test_energy_of_all_packages_over_a_turn_of_the_counter(tmp_path: Path):
    for package, used in (("intel-rapl:0", "900"), ("intel-rapl:1", "10"), ("intel-rapl:0:0", "5")):
        write(tmp_path / package / "energy_uj", used)
        write(tmp_path / package / "max_energy_range_uj", "1000")
    before = energy(tmp_path)
    assert before == {"intel-rapl:0": EnergyCounter(900, 1000), "intel-rapl:1": EnergyCounter(10, 1000)}
    write(tmp_path / "intel-rapl:0/energy_uj", "100")
    write(tmp_path / "intel-rapl:1/energy_uj", "30")
    assert joules(before, energy(tmp_path)) == pytest.approx(220e-6)


def test_no_counter_no_joules(tmp_path: Path):
    assert joules(energy(tmp_path), energy(tmp_path)) is None


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
