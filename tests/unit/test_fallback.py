"""Where a stage may go when its device is lost, and what follows from a loss for requests and stage."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from edged.backend import Variant
from edged.catalogue import Catalogue
from edged.cli.checks import check_names
from edged.config import Config, Stage
from edged.config.tables import Fallback
from edged.dispatch.deaths import device_lost
from edged.dispatch.events import Died, Spoke
from edged.dispatch.ledger import Worker
from edged.errors import ConfigError
from edged.messages import Fault
from edged.models import ModelStore
from edged.placement.defaults import place
from edged.placement.fallback import places
from edged.placement.table import Choice, Fingerprint, Form, Plan

from .dispatch_world import World

MODEL = "smollm2-135m-instruct"


@pytest.fixture
def store(variant: Callable[[str, str], Variant]) -> ModelStore:
    folder = variant(MODEL, "q4_0").path.parents[2]
    variant(MODEL, "q4_1")
    return ModelStore(folder, Catalogue.discover())


def generator(**changes: object) -> Stage:
    stage = Stage(kind="generator", model=MODEL, variant="q4_0", backend="openvino", device="igpu")
    return msgspec.structs.replace(stage, **changes)


def found(stage: Stage, store: ModelStore, plan: Plan | None = None) -> list[tuple[str, str, str]]:
    """Backend, device and variant of each place."""
    config = Config(stages={"generator": stage})
    home = place("generator", stage, config, store)
    specs = places("generator", stage, home, config, plan, store)
    return [(spec.backend, spec.device, spec.variant.name) for spec in specs]


def planned(runner_up: Form) -> Plan:
    """A plan of which only the runner-up matters."""
    form = msgspec.structs.replace(runner_up, variant="q4_0", backend="openvino", device="igpu")
    choice = Choice(
        form=form,
        batch=1,
        predicted_rate_per_s=1.0,
        latency_s=1.0,
        loaded_latency_s=1.0,
        cpu_s=1.0,
        utilisation=1.0,
        memory_bytes=0,
        runner_up=runner_up,
        why="",
    )
    return Plan(
        id="x",
        objective="throughput",
        choices={"generator": choice},
        lease_mode="together",
        bottleneck="generator",
        predicted_rate_per_s=1.0,
        predicted_latency_s=1.0,
        predicted_first_token_s=1.0,
        predicted_loaded_latency_s=1.0,
        predicted_cpu_s=1.0,
        memory_bytes=0,
        fingerprint=Fingerprint(cpu="", cores=1, memory_bytes=0, kernel="", packages={}, models={}),
    )


def test_the_cpu_by_default_with_the_same_backend_and_variant(store: ModelStore) -> None:
    assert found(generator(), store) == [("openvino", "igpu", "q4_0"), ("openvino", "cpu", "q4_0")]


@pytest.mark.parametrize(
    "stage", [generator(device="cpu"), generator(device="cpu:0-1"), generator(fallback=())]
)
def test_nowhere_from_the_cpu_or_where_the_operator_says_so(store: ModelStore, stage: Stage) -> None:
    assert len(found(stage, store)) == 1


def test_the_plans_runner_up_comes_before_the_cpu(store: ModelStore) -> None:
    npu = Form(stage="generator", model=MODEL, variant="q4_0", backend="openvino", device="npu", threads=0)
    assert [device for _, device, _ in found(generator(), store, planned(npu))] == ["igpu", "npu", "cpu"]


@pytest.mark.parametrize(
    "form",
    [
        Form(stage="generator", model=MODEL, variant="q4_1", backend="openvino", device="igpu", threads=0),
        Form(stage="generator", model=MODEL, variant="q4_0", backend="llama_cpp", device="npu", threads=0),
    ],
    ids=["the same device", "against the configuration"],
)
def test_a_runner_up_that_does_not_fit_is_passed_over(store: ModelStore, form: Form) -> None:
    assert [device for _, device, _ in found(generator(), store, planned(form))] == ["igpu", "cpu"]


def test_what_the_operator_wrote_wins_in_its_order(store: ModelStore) -> None:
    written = (Fallback(device="cpu", backend="llama_cpp", variant="q4_1", options={"threads": 1}), "npu")
    assert found(generator(fallback=written), store) == [
        ("openvino", "igpu", "q4_0"),
        ("llama_cpp", "cpu", "q4_1"),
        ("openvino", "npu", "q4_0"),
    ]


def test_what_cannot_be_placed_is_left_out_and_told(
    store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    written = (Fallback(device="cpu", variant="q9_9"), Fallback(device="cpu", backend="tpu"), "cpu")
    assert [device for _, device, _ in found(generator(fallback=written), store)] == ["igpu", "cpu"]
    assert [record.message for record in caplog.records] == ["not a device to fall back to"] * 2


@pytest.mark.parametrize(
    ("device", "code", "reason", "lost"),
    [
        ("igpu", "device_lost", "exit status 1", True),
        ("igpu", "device_absent", "exit status 1", True),
        ("cuda:0", "", "killed by SIGABRT", True),
        ("cpu", "", "killed by SIGABRT", False),
        ("cuda:0", "", "killed by SIGSEGV", False),
        ("cuda:0", "backend", "exit status 1", False),
    ],
)
def test_which_deaths_are_the_devices(device: str, code: str, reason: str, lost: bool) -> None:
    worker = Worker("a-1", "a", 0.0, 0.0, device=device, fault_code=code)
    assert device_lost(worker, reason) == lost


def test_a_loss_is_no_evidence_against_requests_and_no_crash_of_the_stage() -> None:
    world = World()
    world.all_ready()
    request = world.submit(("speak",))
    stage = world.ledger.stages["speak"]
    for _ in range(30):
        worker = world.worker("speak")
        world.inbox.pop(worker)
        world.event(Spoke(worker, Fault("device_lost", "gone")))
        world.event(Died(worker, "exit status 1", False, excused=True, moved=True))
        world.ready(world.spawn("speak"))
        assert not stage.misfortunes
    assert world.ledger.requests[request].suspicion == world.ledger.requests[request].deaths == 0
    (work,) = world.inbox[world.worker("speak")]
    world.done(world.worker("speak"), work)
    assert (world.terminals, stage.restarts) == ({request: 1}, 30)


def test_others_on_the_lost_device_serve_until_somebody_is_ready_elsewhere() -> None:
    world = World()
    stage = world.ledger.stages["speak"]
    stage.desired = 2
    world.waiting.append("speak")
    stage.starting += 1
    world.all_ready()
    first, second = sorted(stage.workers)
    world.inbox.pop(first)
    world.event(Died(first, "exit status 1", False, excused=True, moved=True))
    assert world.waiting == ["speak", "speak"]
    request = world.submit(("speak",))
    assert [work.request for work in world.inbox[second]] == [request]
    world.ready(world.spawn("speak"))
    assert world.stopped == {second}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (Fallback(device="cpu", backend="tpu"), "unknown backend 'tpu'"),
        (Fallback(device="cpu", variant="q9_9"), "q9_9"),
    ],
)
def test_a_check_of_the_configuration_looks_at_fallbacks_too(entry: Fallback, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_names(Config(stages={"generator": generator(fallback=(entry,))}))


def test_a_simulated_device_with_a_runtime_opens_the_stages_weights(store: ModelStore) -> None:
    stage = generator(backend="simulated", device="sim:gpu", options={"runtime": "llama_cpp"})
    assert not stage.weightless
    spec = place("generator", stage, Config(stages={"generator": stage}), store)
    assert (spec.variant.name, spec.variant.format) == ("q4_0", "gguf")
    assert found(stage, store)[1] == ("simulated", "sim:cpu", "q4_0")
