"""Generators over several devices by layers, through torch: `devices = ["cuda:0", "cuda:1"]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from edged.birth import SPINS

os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read once, when libgomp is loaded

import torch

from edged.backend import Capabilities, Device, TokenSession, Variant
from edged.errors import BackendError
from edged.layers.assembly import Settings, assemble
from edged_backends.options import read_options
from edged_backends.torch_pipeline_tokens import PipelineTokenSession
from edged_backends.torch_vocabulary import read_vocabulary

_DTYPES = ("f32", "bf16", "f16")


class TorchPipelineBackend:
    """Layer pipelines in torch; with one device, a plain generator."""

    name = "torch_pipeline"
    formats = ("gguf", "safetensors")

    def devices(self) -> list[Device]:
        """List the CPU and the GPUs that torch sees."""
        cuda = [_cuda(number) for number in range(torch.cuda.device_count())]
        return [_cpu(), *cuda]

    def open(self, variant: Variant, device: Device, options: Mapping[str, Any], /) -> TokenSession:
        """Load a generator; see `edged.layers.assembly.Settings` for the options.

        `BackendError` names the stage that did not load and why.
        """
        settings = read_options(Settings, options, self.name)
        if device.unusable:
            raise BackendError(f"device {device.id} cannot be used: {device.unusable}")
        if variant.format not in self.formats:
            raise BackendError(f"torch_pipeline opens gguf and safetensors, not {variant.format}")
        if not str(variant.path).startswith("random:") and not variant.path.exists():
            raise BackendError(f"no file {variant.path}; pull the model again")
        return open_source(str(variant.path), settings, device.id)


def open_source(source: str, settings: Settings, device: str) -> PipelineTokenSession:
    """Load a model by path or as `random:...`."""
    assembly = assemble(source, settings, device)
    return PipelineTokenSession(assembly, read_vocabulary(source))


def _cpu() -> Device:
    return Device(
        id="cpu",
        kind="cpu",
        name="CPU",
        backend=TorchPipelineBackend.name,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        capabilities=Capabilities(dtypes=_DTYPES),
    )


def _cuda(number: int) -> Device:
    properties = torch.cuda.get_device_properties(number)
    return Device(
        id=f"cuda:{number}",
        kind="cuda",
        name=properties.name,
        backend=TorchPipelineBackend.name,
        memory_bytes=properties.total_memory,
        capabilities=Capabilities(dtypes=_DTYPES),
    )
