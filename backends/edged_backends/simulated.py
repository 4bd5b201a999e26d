"""A runtime without models: declared costs, deterministic answers, faults on request.

For tests and what-if plans, and for devices that a machine lacks; never a model's stand-in where answers
are shown or judged. It opens variants of format `none`, for any task. With the option `runtime` it is a
device that computes what another adapter's CPU computes, with real weights: costs and faults stay declared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edged.backend import Capabilities, Device, TensorSession, TokenSession, Variant
from edged.errors import BackendError, ConfigError
from edged_backends.options import read_options
from edged_backends.simulated_borrowed import BorrowedTensors, BorrowedTokens
from edged_backends.simulated_costs import Costs
from edged_backends.simulated_faults import FaultFile, Saboteur
from edged_backends.simulated_tokens import Limits, SimulatedTokenSession

Positive = Annotated[int, msgspec.Meta(gt=0)]


class Options(Costs, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `options` of a stage may say to this adapter, besides the costs."""

    faults: str = ""
    """Path of a fault file, read again whenever it changes: see `simulated_faults.Faults`."""
    threads: int = 0
    """Accepted and of no effect: declared costs hold for any number."""
    context_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """0 means the variant's."""
    max_sequences: Positive = 8
    """Bounded by the device's capabilities."""
    batch_tokens: Positive = 256
    """Prompt tokens that one step of a generator reads."""
    end_one_in: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Mean length of an answer that ends by itself; 0 means that all run to their `max_tokens`."""
    prefix_cache_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens that ended sequences leave for prompts that begin alike, which then cost nothing to read; 0
    keeps nothing, and every prompt is read whole."""
    kv_token_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1024
    """What a token so kept is said to take."""
    lengths: tuple[Positive, ...] = ()
    """Token lengths that a device with static shapes was compiled for; others are refused. Empty: any."""
    runtime: str = ""
    """The adapter whose CPU does the computing, on the stage's own model and variant; empty: none does."""
    runtime_options: dict[str, Any] = msgspec.field(default_factory=dict)
    """For that adapter."""


class SimulatedBackend:
    """Devices as declared; any id `sim:<name>` may be opened."""

    name = "simulated"
    formats = ("none",)

    def devices(self) -> list[Device]:
        """List a CPU, an NPU (static shapes, one sequence at a time) and a GPU."""
        one_at_a_time = Capabilities(dtypes=("f16", "int8"), static_shapes=True, max_sequences=1)
        return [
            _device("sim:cpu", "simulated CPU", Capabilities(dtypes=("f32", "int8"))),
            _device("sim:npu", "simulated NPU", one_at_a_time),
            _device("sim:gpu", "simulated GPU", Capabilities(dtypes=("f32", "f16"), streams=2)),
        ]

    def open(
        self, variant: Variant, device: Device, options: Mapping[str, Any], /
    ) -> TensorSession | TokenSession:
        """Open a session for the variant's task; see `Options`. Its path must exist: /dev/null will do."""
        settings = read_options(Options, options, self.name)
        _check(variant, device, formats=() if settings.runtime else self.formats)
        saboteur = Saboteur(FaultFile(Path(settings.faults) if settings.faults else None), device.id)
        saboteur.loading()
        settings.spend(settings.load_ms, saboteur.slow_factor())
        if settings.runtime:
            return _borrowed(variant, settings, saboteur)
        if variant.task == "generate":
            return SimulatedTokenSession(_limits(settings, variant, device), settings, saboteur)
        lengths = settings.lengths if device.capabilities.static_shapes else ()
        return _tensor_session(variant, settings, saboteur, lengths)


def _tensor_session(
    variant: Variant, costs: Costs, saboteur: Saboteur, lengths: Sequence[int]
) -> TensorSession:
    from edged_backends.simulated_tensors import SESSIONS  # numpy: a generator starts without it

    return SESSIONS[variant.task](variant, costs, saboteur, lengths)


def _device(identity: str, name: str, capabilities: Capabilities) -> Device:
    return Device(
        id=identity, kind="simulated", name=name, backend=SimulatedBackend.name, capabilities=capabilities
    )


def _borrowed(variant: Variant, settings: Options, saboteur: Saboteur) -> TensorSession | TokenSession:
    """Open the weights with the other adapter on its CPU, and put costs and faults in front."""
    found = tuple(entry_points(group="edged.backends", name=settings.runtime))
    if not found:
        raise ConfigError(f"there is no backend {settings.runtime!r} to compute with", param="runtime")
    backend = found[0].load()()
    cpu = next(device for device in backend.devices() if device.id == "cpu")
    if variant.task == "generate":
        given = {"max_sequences": settings.max_sequences} | settings.runtime_options
        return BorrowedTokens(backend.open(variant, cpu, given), settings, saboteur)
    return BorrowedTensors(backend.open(variant, cpu, settings.runtime_options), settings, saboteur)


def _check(variant: Variant, device: Device, formats: Sequence[str]) -> None:
    if device.unusable:
        raise BackendError(f"device {device.id} cannot be used: {device.unusable}")
    if not device.id.startswith("sim:"):
        raise BackendError(f"{device.id} is no simulated device; ids begin with `sim:`")
    if formats and variant.format not in formats:
        raise BackendError(
            f"the simulated runtime opens no {variant.format}; it takes variants of format none"
        )
    if not variant.path.exists():
        raise BackendError(f"no file {variant.path}")


def _limits(settings: Options, variant: Variant, device: Device) -> Limits:
    most = device.capabilities.max_sequences or settings.max_sequences
    return Limits(
        context_tokens=settings.context_tokens or variant.context_tokens,
        max_sequences=min(settings.max_sequences, most),
        batch_tokens=settings.batch_tokens,
        end_one_in=settings.end_one_in,
        prefix_cache_tokens=settings.prefix_cache_tokens,
        kv_token_bytes=settings.kv_token_bytes,
    )
