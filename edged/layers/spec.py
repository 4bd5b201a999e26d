"""What a stage process is told when it starts, on its standard input."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edged.layers.schedule import Mode
from edged.layers.share import DType, Share

Transport = Literal["threads", "zeromq", "gloo", "nccl"]
Overlap = Literal["none", "single", "multi"]
OverlapFrom = Literal["memory", "disk"]
ELSEWHERE = "tcp://"
"""How the device of a stage on another host begins."""
LONGEST_SILENCE_S = 10.0


def is_elsewhere(device: str) -> bool:
    """Whether a device is on another host."""
    return device.startswith(ELSEWHERE)


class Synthetic(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that waits instead of computing: to measure the schedule alone."""

    stage_s: Annotated[float, msgspec.Meta(ge=0)]
    hidden: int = 64


class StageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one stage needs."""

    stage: int
    stages: int
    share: Share
    device: str
    """`cpu`, `cpu:0-1`, `cuda:0`, or `tcp://HOST:PORT` of a stage on another host."""
    source: str = ""
    """A GGUF file, a folder of safetensors, or `random:...`."""
    synthetic: Synthetic | None = None
    dtype: DType = "float32"
    sequences: int = 1
    micro_batch: int = 0
    """Rows of a job at most; 0 means all sequences."""
    context_tokens: int = 2048
    mode: Mode = "ring"
    transport: Transport = "zeromq"
    threads: int = 0
    """Of the CPU; 0 leaves the choice to torch."""
    timeout_s: float = 60.0
    overlap: Overlap | None = None
    """How weights that live in host memory come to the device; None keeps them on the device."""
    overlap_from: OverlapFrom = "memory"
    """Where they live meanwhile."""
    overlap_folder: str = ""
    """For `disk`."""
    block: int = 1
    """Parts of a job that share a layer's weights while they are on the device."""
    offload_cache: bool = False
    """Whether keys and values live in host memory too."""
    meeting: str = ""
    """A private folder: sockets, or where the processes of torch find each other."""
    parent: int = 0
    state_dir: str = ""
    """Where key and list of peers lie, for a stage on another host."""

    @property
    def silence_s(self) -> float:
        """How long another host may say nothing: less than a micro-batch may be on its way."""
        return min(LONGEST_SILENCE_S, self.timeout_s / 4)

    @property
    def next(self) -> int:
        """The stage that it sends to; the last sends to the first."""
        return (self.stage + 1) % self.stages

    @property
    def previous(self) -> int:
        """The stage that it receives from."""
        return (self.stage - 1) % self.stages


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage says when it is ready, on its standard output; `failed` when it is not."""

    stage: int
    layers: int = 0
    weight_bytes: int = 0
    """On the device: two layers and the ends, where the layers live elsewhere."""
    host_weight_bytes: int = 0
    disk_weight_bytes: int = 0
    cache_bytes: int = 0
    """On the device."""
    host_cache_bytes: int = 0
    load_s: float = 0.0
    failed: str = ""
    code: Literal["backend", "device_lost", "config"] = "backend"
