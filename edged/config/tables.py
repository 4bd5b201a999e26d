"""The tables of `edged.toml` as frozen values, and the built-in layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=600_000)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table in edged.toml: immutable, and a misspelt key is an error."""


class Daemon(Table, frozen=True):
    """Where the daemon keeps things and how it stops."""

    state_dir: Path = msgspec.field(default_factory=Path)
    """Models and documents; empty means `/var/lib/edged` under systemd, else the XDG state folder."""
    runtime_dir: Path = msgspec.field(default_factory=Path)
    """Sockets and the lock, mode 0700; empty means `/run/edged` under systemd, else XDG."""
    drain_s: Seconds = 20.0
    """How long accepted requests may take to finish after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = "auto"
    """`auto`: JSON lines under systemd, text elsewhere."""


class Api(Table, frozen=True):
    """The client socket and the admin socket."""

    socket: Path = msgspec.field(default_factory=Path)
    """Empty means `edged.sock` in the runtime folder."""
    admin_socket: Path = msgspec.field(default_factory=Path)
    """Empty means `admin.sock` in the runtime folder; mode 0600."""
    socket_mode: Annotated[str, msgspec.Meta(pattern=r"^0?[0-7]{3}$")] = "0660"
    max_body_bytes: Positive = 2 << 20
    max_connections: Positive = 1024
    request_timeout_s: Seconds = 300.0
    """Deadline of a request that names none."""


class Queue(Table, frozen=True):
    """Geometry of the shared-memory queue behind every stage, and of the entry."""

    slots: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 32
    slot_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 30)] = 256 << 10


class Library(Table, frozen=True):
    """How documents are cut and searched."""

    dir: Path = msgspec.field(default_factory=Path)
    """Empty means `library` in the state folder."""
    chunk_tokens: Annotated[int, msgspec.Meta(ge=32, le=2048)] = 200
    overlap_tokens: Annotated[int, msgspec.Meta(ge=0, le=512)] = 40
    max_document_bytes: Positive = 64 << 20
    index: Literal["auto", "flat", "hnsw", "ivfpq"] = "auto"
    """Kind of vector index; `auto` goes by the number of passages."""


class Stage(Table, frozen=True):
    """One stage: which model on which device, and the limits of its queue."""

    kind: Literal["retriever", "reranker", "generator", "tensor"]
    model: str = ""
    """Name in the catalogue; empty only for kind `tensor` on the simulated backend."""
    variant: str = ""
    """Empty means what the applied plan says, else the best variant that is present and that the backend
    opens."""
    backend: str = ""
    """Empty means what the applied plan says, else the first of the model's manifest whose runtime is
    installed: see docs/operations.md."""
    device: str = ""
    """`cpu`, `cpu:0-1` (a core set), `igpu`, `npu`, `cuda:0`: see `edgectl devices`. Empty means what the
    applied plan says, else `cpu`."""
    workers: Annotated[int, msgspec.Meta(ge=0, le=64)] | None = None
    """Processes; 0 switches the stage off. Left out: what the applied plan says, else 1."""
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    """Items of one micro-batch; for a generator, sequences decoded together. Left out: what the applied
    plan says, else 8."""
    max_wait_ms: Milliseconds = 0.0
    """How long an idle worker may wait for a fuller batch; 0: it takes at once what is there."""
    target_ms: Milliseconds = 0.0
    """Bound on the time in this stage, waiting included, for which the batch limit is chosen; 0: none."""
    timeout_s: Seconds = 60.0
    """Silence of a worker that holds work, after which it is killed and replaced."""
    load_timeout_s: Seconds = 300.0
    options: dict[str, Any] = {}
    """For the stage (`candidates`, `keep`, `max_tokens`) and for the backend (`threads`, ...)."""


class Placement(Table, frozen=True):
    """What `edgectl plan` aims at, and the limits that it keeps."""

    objective: Literal["throughput", "latency", "energy"] = "throughput"
    """What a plan is made for when `edgectl plan` names nothing else."""
    memory_mib: Count = 0
    """Most memory of all workers together; 0 means three quarters of the machine's."""
    cores: Count = 0
    """CPU cores that stages may keep busy; 0 means all."""
    leases: Literal["auto", "together", "turns", "single", "split"] = "auto"
    """How stages on the same cores share them: all at once, in turns, or each on a part of them. `auto`:
    what the applied plan says, else what was measured to be best (docs/decisions/0013-core-leases.md)."""
    drift_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    """How long a saturated stage may be off the applied plan's rates before `status` says so; 0: for ever."""


class Pipeline(Table, frozen=True):
    """Stages in order."""

    stages: tuple[str, ...]


class Config(Table, frozen=True):
    """The whole configuration."""

    daemon: Daemon = msgspec.field(default_factory=Daemon)
    api: Api = msgspec.field(default_factory=Api)
    queue: Queue = msgspec.field(default_factory=Queue)
    library: Library = msgspec.field(default_factory=Library)
    placement: Placement = msgspec.field(default_factory=Placement)
    stages: dict[Name, Stage] = {}
    pipelines: dict[Name, Pipeline] = {}


BUILT_IN: dict[str, Any] = {
    "stages": {
        "retriever": {"kind": "retriever", "model": "bge-small-en-v1.5"},
        "reranker": {"kind": "reranker", "model": "ms-marco-minilm-l12-v2"},
        "generator": {"kind": "generator", "model": "smollm2-135m-instruct"},
    },
    "pipelines": {"rag": {"stages": ["retriever", "reranker", "generator"]}},
}
"""The built-in layer: what an empty file means."""
