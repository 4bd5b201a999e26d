"""From a placed stage to the object that does its work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from edged import plugins
from edged.backend import Backend, Device, TensorSession, TokenSession, cores_of
from edged.errors import ConfigError, DeviceAbsent
from edged.stages.contract import BatchStage, TokenStage
from edged.workers.spec import StageSpec


def build(spec: StageSpec) -> BatchStage | TokenStage:
    """Open the model on its device and wrap it in the stage; raises what the backend or stage raises."""
    match spec.kind:
        case "retriever":
            from edged.stages.retriever import Retriever

            own, theirs = split_options(spec.options, Retriever.OPTIONS)
            return Retriever(
                cast("TensorSession", open_session(spec, theirs)), spec.variant, spec.library, own
            )
        case "reranker":
            from edged.stages.reranker import Reranker

            own, theirs = split_options(spec.options, Reranker.OPTIONS)
            return Reranker(cast("TensorSession", open_session(spec, theirs)), spec.variant, own)
        case "generator":
            from edged.stages.generator import Generator

            own, theirs = split_options(spec.options, Generator.OPTIONS)
            theirs.setdefault("max_sequences", spec.max_batch)
            return Generator(cast("TokenSession", open_session(spec, theirs)), spec.variant, own)
        case "tensor":
            from edged.stages.tensor import TensorStage

            own, theirs = split_options(spec.options, TensorStage.OPTIONS)
            session = None if own.get("passthrough") else cast("TensorSession", open_session(spec, theirs))
            return TensorStage(session, spec.variant, own)
        case unknown:
            raise ConfigError(f"stage {spec.name!r} has the unknown kind {unknown!r}", param="kind")


def split_options(options: Mapping[str, Any], own: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the stage, and the rest, which the backend will judge.

    >>> split_options({"keep": 3, "threads": 2}, frozenset({"keep"}))
    ({'keep': 3}, {'threads': 2})
    """
    mine = {key: value for key, value in options.items() if key in own}
    return mine, {key: value for key, value in options.items() if key not in own}


def open_session(spec: StageSpec, options: Mapping[str, Any]) -> TensorSession | TokenSession:
    """Load the stage's model on its device with the backend's options."""
    backend = plugins.load(spec.backend)
    return backend.open(spec.variant, find_device(backend, spec.device), options)


def find_device(backend: Backend, wanted: str) -> Device:
    """The device of that id; `cpu:0-1` is the CPU restricted to a core set. `DeviceAbsent` otherwise."""
    devices = {device.id: device for device in backend.devices()}
    device, cores = devices.get(wanted), cores_of(wanted)
    if device is None and cores and "cpu" in devices:
        cpu = devices["cpu"]
        device = Device(
            id=wanted,
            kind=cpu.kind,
            name=cpu.name,
            backend=cpu.backend,
            memory_bytes=cpu.memory_bytes,
            cores=cores,
            capabilities=cpu.capabilities,
        )
    if device is None:
        raise DeviceAbsent(
            f"backend {backend.name!r} sees no device {wanted!r}; it sees: {', '.join(devices) or 'none'}",
            param="device",
        )
    if device.unusable:
        raise DeviceAbsent(f"device {wanted!r} cannot be used: {device.unusable}", param="device")
    return device
