"""What a worker process is told at birth: one JSON document on its standard input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from edged.backend import Variant
from edged.transport.slots import Geometry


class ArenaSpec(msgspec.Struct, frozen=True):
    """An arena that the worker inherits as an open descriptor."""

    arena: int
    descriptor: int
    geometry: Geometry
    writable: bool


class StageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A stage, placed: everything that decides which work a worker does and on what."""

    name: str
    kind: str
    backend: str
    device: str
    max_batch: int
    variant: Variant
    options: dict[str, Any]
    library: Path
    stream_interval_ms: float = 0.0
    """Tokens of an answer that come sooner than this after those before are told together."""


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of a stage."""

    incarnation: str
    endpoint: Path
    parent: int
    stage: StageSpec
    arenas: tuple[ArenaSpec, ...]
    log_level: str
    log_format: Literal["auto", "text", "json"]
    trial: Literal["", "warm", "guarded"] = ""
    """What it shows before it is ready: `warm`: that it can work; `guarded`: also, for a retriever, that its
    vectors agree with those of the library."""


def to_json(spec: WorkerSpec) -> bytes:
    """Encode for the worker's standard input."""
    return msgspec.json.encode(spec, enc_hook=str)


def from_json(data: bytes) -> WorkerSpec:
    """Decode what `to_json` made."""
    return msgspec.json.decode(data, type=WorkerSpec, dec_hook=lambda kind, value: kind(value))
