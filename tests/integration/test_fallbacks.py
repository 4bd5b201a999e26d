"""A stage whose device vanishes, on simulated devices: where it goes, when it returns, who may keep it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.errors import StageUnavailable
from edged.report import StageStatus
from edged.testing.daemon import RunningDaemon

from .conftest import NO_BUILT_IN
from .test_daemon import Streaming, ask, fault, pid_of

Start = Callable[..., RunningDaemon]


def config(
    tmp_path: Path,
    more: str = "",
    options: str = "",
    device: str = "sim:gpu",
    first_s: float = 0.25,
    longest_s: float = 0.5,
) -> str:
    faults = tmp_path / "faults.json"
    return (
        f"[placement]\nlost_first_s = {first_s}\nlost_longest_s = {longest_s}\n{NO_BUILT_IN}"
        f"[stages.generator]\nbackend = 'simulated'\ndevice = '{device}'\ntimeout_s = 5\n{more}\n"
        f"options = {{ decode_ms = 10, max_tokens = 60, faults = '{faults}'{options} }}\n"
    )


def lose(tmp_path: Path, *devices: str) -> None:
    """From now on these devices are gone, and all others are there."""
    fault(tmp_path / "faults.json", gone=list(devices))


def on(running: RunningDaemon, device: str, stage: str = "generator") -> StageStatus:
    """Wait until a stage is at rest on a device."""

    def there(_: object) -> bool:
        found = running.stage(stage)
        settled = {worker.state for worker in found.workers} == {"ready"} and len(found.workers) == 1
        return found.state == "ready" and found.device == device and settled

    running.wait_for(there, f"{stage} on {device}")
    return running.stage(stage)


def events(running: RunningDaemon, event: str) -> list[dict[str, object]]:
    return [record for record in running.admin.logs(10_000) if record["event"] == event]


def test_the_answer_in_progress_goes_on_elsewhere_and_the_stage_returns(
    daemon: Start, tmp_path: Path
) -> None:
    running = daemon(config(tmp_path))
    undisturbed = ask(running.client).text
    streams = [Streaming(running.client) for _ in range(4)]
    assert all(stream.begun.wait(30) for stream in streams)
    lose(tmp_path, "sim:gpu")
    results = [stream.result() for stream in streams]
    assert {result.text for result in results} == {undisturbed}
    assert {(result.resumed, result.timings[0].device) for result in results} == {(1, "sim:cpu")}
    away = on(running, "sim:cpu")
    (lost,) = away.lost_devices
    assert (lost.device, away.device_losses, away.restarts) == ("sim:gpu", 1, 1)
    assert f"device sim:cpu (sim:gpu lost {lost.lost_s:.0f} s ago: " in away.reason
    lose(tmp_path)
    back = on(running, "sim:gpu")
    assert (back.lost_devices, back.reason, back.device_returns) == ((), "", 1)
    assert ask(running.client).timings[0].device == "sim:gpu"
    assert running.client.status().rejected == {}


def test_a_try_that_fails_leaves_what_serves_alone(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path, first_s=0.5, longest_s=60.0))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    serving = on(running, "sim:cpu").workers[0].pid
    running.wait_for(lambda _: "device still lost" in running.log, "a try in vain")
    status = on(running, "sim:cpu")
    assert status.workers[0].pid == serving
    assert status.lost_devices[0].tries == 1
    assert running.client.status().state == "ready"


def test_a_device_that_is_not_there_at_the_start(daemon: Start, tmp_path: Path) -> None:
    lose(tmp_path, "sim:gpu")
    running = daemon(config(tmp_path))
    assert on(running, "sim:cpu").lost_devices[0].device == "sim:gpu"
    assert ask(running.client).timings[0].device == "sim:cpu"


def test_a_device_that_the_backend_does_not_list_is_lost_too(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path, device="sim:tpu", more="fallback = ['sim:npu']"))
    assert "sees no device 'sim:tpu'" in on(running, "sim:npu").lost_devices[0].why


def test_the_next_but_one_and_back_by_way_of_the_next(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path, more="fallback = ['sim:npu', 'sim:cpu']"))
    lose(tmp_path, "sim:gpu", "sim:npu")
    ask(running.client)
    assert {lost.device for lost in on(running, "sim:cpu").lost_devices} == {"sim:gpu", "sim:npu"}
    lose(tmp_path, "sim:gpu")
    assert [lost.device for lost in on(running, "sim:npu").lost_devices] == ["sim:gpu"]


def test_without_another_device_it_is_a_crash_like_any_other(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path, more="fallback = []"))
    lose(tmp_path, "sim:gpu")
    stream = Streaming(running.client)
    stream.join(30)
    assert stream.error is not None
    assert stream.error.code in {"poisoned", StageUnavailable.code}
    assert running.stage("generator").device_losses == 0


def test_no_evidence_against_a_request_and_no_crash_loop(daemon: Start, tmp_path: Path) -> None:
    """More losses in a row than a poisoned request or a stage would be forgiven."""
    names = [f"sim:n{number}" for number in range(6)]
    running = daemon(config(tmp_path, more=f"fallback = {[*names, 'sim:cpu']}"))
    lose(tmp_path, "sim:gpu")
    final = ask(running.client)
    assert final.finish == "length"
    assert running.client.status().rejected == {}


def test_what_aborts_on_an_accelerator_has_lost_it(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path))
    fault(tmp_path / "faults.json", crash="abort", once=True)
    assert ask(running.client).timings[0].device == "sim:cpu"
    running.wait_for(lambda status: status.stages[-1].device_returns == 1, "the return")
    assert "why='killed by SIGABRT'" in running.log


def test_an_operator_has_the_last_word(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    on(running, "sim:cpu")
    assert running.admin.swap_stage("generator", device="sim:cpu") == []
    kept = running.stage("generator")
    assert (kept.lost_devices, kept.override) == ((), "device sim:gpu -> sim:cpu")
    lose(tmp_path)
    assert running.admin.swap_stage("generator", device="sim:npu") == [
        "stage generator: device sim:cpu -> sim:npu"
    ]
    running.wait_for(lambda _: not running.admin.swap_report().under_way, "the swap")
    assert on(running, "sim:npu").override == "device sim:gpu -> sim:npu"


def test_a_try_gives_way_to_a_swap_and_the_stage_returns_with_another_variant(
    daemon: Start, tmp_path: Path
) -> None:
    running = daemon(config(tmp_path, options=", load_ms = 600"))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    on(running, "sim:cpu")
    running.wait_for(lambda _: "lost device is tried" in running.log, "a try")
    told = running.admin.swap_stage("generator", variant="light")
    assert told == ["stage generator: variant none -> light"]
    running.wait_for(lambda _: not running.admin.swap_report().under_way, "the swap")
    assert running.admin.swap_report().problem == ""
    changed = running.stage("generator")
    assert (changed.device, changed.variant, changed.override) == (
        "sim:cpu",
        "light",
        "variant none -> light",
    )
    assert [lost.device for lost in changed.lost_devices] == ["sim:gpu"]
    lose(tmp_path)
    back = on(running, "sim:gpu")
    assert (back.variant, back.override, back.device_returns) == ("light", "variant none -> light", 1)


def test_a_swap_that_names_the_device_ends_it(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    on(running, "sim:cpu")
    running.admin.swap_stage("generator", variant="light", device="sim:cpu")
    running.wait_for(lambda _: not running.admin.swap_report().under_way, "the swap")
    kept = running.stage("generator")
    assert (kept.lost_devices, kept.override) == ((), "variant none -> light, device sim:gpu -> sim:cpu")


def test_a_reload_ends_it_and_a_device_still_lost_begins_it_anew(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    on(running, "sim:cpu")
    assert running.admin.reload() == ["stage generator is being replaced"]
    running.wait_for(lambda _: running.stage("generator").device_losses == 2, "a second loss")
    assert ask(running.client).finish == "length"
    on(running, "sim:cpu")
    lose(tmp_path)
    on(running, "sim:gpu")


def test_a_kill_while_it_is_away_is_a_crash_like_any_other(daemon: Start, tmp_path: Path) -> None:
    running = daemon(config(tmp_path))
    lose(tmp_path, "sim:gpu")
    ask(running.client)
    on(running, "sim:cpu")
    old = pid_of(running)
    os.kill(old, signal.SIGKILL)
    running.wait_for(lambda _: old not in {w.pid for w in running.stage("generator").workers}, "the death")
    assert on(running, "sim:cpu").device_losses == 1
    lose(tmp_path)
    on(running, "sim:gpu")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("fallback = ['gpu zero']", "names 'gpu zero', which is not a device"),
        ("fallback = [{ device = 'cpu', backend = 'No' }]", "names 'No'"),
        ("fallback = [{ backend = 'onnx' }]", "device"),
    ],
)
def test_a_wrong_fallback_is_refused_by_name(tmp_path: Path, written: str, said: str) -> None:
    from edged.config import load
    from edged.errors import ConfigError

    path = tmp_path / "edged.toml"
    path.write_text(config(tmp_path, more=written))
    with pytest.raises(ConfigError) as refused:
        load(path, {})
    assert said in refused.value.message
    assert "fallback" in json.dumps([refused.value.message, refused.value.param])
