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
Bypass = Literal["off", "auto", "benefit", "always"]
MOST_WORKERS, MOST_BATCH = 64, 1024
"""Of a stage, whoever asks: the file, a plan or a swap."""


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


class Fallback(Table, frozen=True):
    """Where a stage goes when its device is lost; what is left out stays as it is."""

    device: str
    backend: str = ""
    """Empty means the present one, where it opens the weights, else the first of the manifest that does."""
    variant: str = ""
    options: dict[str, Any] | None = None
    """In the place of the stage's: another backend may not know them."""


class Stage(Table, frozen=True):
    """One stage: which model on which device, and the limits of its queue."""

    kind: Literal["retriever", "reranker", "generator", "tensor"]
    model: str = ""
    """Name in the catalogue; any name, or none, with the backends `simulated` and `openai`."""
    variant: str = ""
    """Empty means what the applied plan says, else the best variant that is present and that the backend
    opens."""
    backend: str = ""
    """Empty means what the applied plan says, else the first of the model's manifest whose runtime is
    installed: see docs/operations.md."""
    device: str = ""
    """`cpu`, `cpu:0-1` (a core set), `igpu`, `npu`, `cuda:0`: see `edgectl devices`. Empty means what the
    applied plan says, else `cpu`."""
    workers: Annotated[int, msgspec.Meta(ge=0, le=MOST_WORKERS)] | None = None
    """Processes; 0 switches the stage off. Left out: what the applied plan says, else 1."""
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=MOST_BATCH)] | None = None
    """Items of one micro-batch; for a generator, sequences decoded together. Left out: what the applied
    plan says, else a generator's `options.max_sequences`, else 8."""
    max_wait_ms: Milliseconds = 0.0
    """How long an idle worker may wait for a fuller batch; 0: it takes at once what is there."""
    target_ms: Milliseconds = 0.0
    """Bound on the time in this stage, waiting included, for which the batch limit is chosen; 0: none."""
    stream_interval_ms: Milliseconds = 40.0
    """Of a generator: tokens that come sooner than this after those before are sent together, the first at
    once. 0 sends each by itself, and costs the cores that the model computes on."""
    timeout_s: Seconds = 60.0
    """Silence of a worker that holds work, after which it is killed and replaced."""
    load_timeout_s: Seconds = 300.0
    bypass: Bypass = "auto"
    """Of a reranker, who passes it by: nobody; as the rung in force says (`bypass_benefit`, `bypass_rerank`);
    always those whose margin after retrieval says that it would not change the answer's passages, and as the
    rung says; or everybody."""
    fallback: tuple[str | Fallback, ...] | None = None
    """Devices to which the stage moves when its own is lost, best first, until that is back; empty: to none.
    Left out: the applied plan's runner-up where that is another device, then the CPU."""
    options: dict[str, Any] = {}
    """For the stage (`candidates`, `keep`, `max_tokens`) and for the backend (`threads`, ...)."""

    @property
    def weightless(self) -> bool:
        """Whether its backend opens no weights on this machine, so that no catalogue need know its model."""
        return self.backend == "openai" or (self.backend == "simulated" and "runtime" not in self.options)


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
    lost_first_s: Seconds = 5.0
    """How long after a stage has lost its device the device is tried again."""
    lost_longest_s: Seconds = 600.0
    """What the pause grows to: it doubles with each try."""
    lost_forgiven_s: Seconds = 600.0
    """How long a device must work after its return for its next loss to begin with the first pause."""
    drift_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    """How long a saturated stage may be off the applied plan's rates before `status` says so; 0: for ever."""


class Pipeline(Table, frozen=True):
    """Stages in order."""

    stages: tuple[str, ...]


Celsius = Annotated[float, msgspec.Meta(ge=-40, le=150)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Rung(Table, frozen=True):
    """A rung of the quality ladder: what it does, on top of what all rungs before it do."""

    name: Name
    candidates: Count = 0
    """Most passages that the retriever hands on; 0: as configured."""
    keep: Count = 0
    """Most passages that an answer is written from; 0: as configured."""
    answer_tokens: Count = 0
    """Most new tokens of an answer; 0: as asked."""
    variants: dict[Name, str] = {}
    """Variant by stage; `lighter` means the next lighter one that is present."""
    frugal: tuple[Name, ...] = ()
    """Stages that compute with as few CPU seconds as they can: half of their threads, and not `exact`."""
    bypass_benefit: bool = False
    """Leave the reranker out for questions whose margin after retrieval says that it would change little."""
    bypass_rerank: bool = False
    """Leave the reranker out."""
    peer: bool = False
    """Hand generation to a peer."""
    shed_batch: bool = False
    """Refuse requests of priority `batch`."""
    busy_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Share of the time that the box may work: what asks for more is refused, `batch` first."""
    cost: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    """Measured work of an answer in proportion to the first rung's; left out: estimated."""
    quality: Share | None = None
    """Measured quality of an answer in proportion to the first rung's; left out: assumed."""


class ThermalBand(Table, frozen=True):
    """Where a device is too hot for a better rung than `rung`, and where it is cool enough again."""

    rung: Name
    enter_c: Celsius
    leave_c: Celsius


class Thermal(Table, frozen=True):
    """The bands of one kind of device."""

    critical_c: Celsius
    """From here on the floor is taken at once."""
    bands: tuple[ThermalBand, ...]


class Band(Table, frozen=True):
    """The same for a share: of slots, of memory, of time."""

    rung: Name
    enter: Share
    leave: Share


def _ladder() -> tuple[Rung, ...]:
    return (
        Rung(name="full"),
        Rung(name="fewer-passages", candidates=10, keep=2, bypass_benefit=True),
        Rung(name="shorter-answers", answer_tokens=96),
        Rung(
            name="lighter-models",
            variants={"generator": "lighter", "reranker": "lighter"},
            frugal=("generator",),
        ),
        Rung(name="no-rerank", bypass_rerank=True),
        Rung(name="peer", peer=True),
        Rung(name="shed-batch", shed_batch=True),
        Rung(name="shed-half", busy_share=0.5),
        Rung(name="shed-most", busy_share=0.15),
    )


OVERLAP_C, STEP_C = 8.0, 3.0


def _thermal(first_c: float, critical_c: float) -> Thermal:
    bands = tuple(
        ThermalBand(rung=rung.name, enter_c=first_c + STEP_C * k, leave_c=first_c + STEP_C * k - OVERLAP_C)
        for k, rung in enumerate(_ladder()[1:])
    )
    return Thermal(critical_c=critical_c, bands=bands)


def _temperature() -> dict[str, Thermal]:
    """Below where silicon throttles by itself; storage and boards are damaged earlier than processors."""
    return {
        "cpu": _thermal(72.0, 95.0),
        "igpu": _thermal(72.0, 95.0),
        "npu": _thermal(72.0, 95.0),
        "gpu": _thermal(64.0, 87.0),
        "board": _thermal(62.0, 85.0),
        "nvme": _thermal(57.0, 80.0),
    }


_LOAD = (
    Band(rung="fewer-passages", enter=0.60, leave=0.20),
    Band(rung="shorter-answers", enter=0.75, leave=0.30),
    Band(rung="no-rerank", enter=0.85, leave=0.40),
    Band(rung="shed-batch", enter=0.95, leave=0.50),
)
_MEMORY = (
    Band(rung="lighter-models", enter=0.92, leave=0.80),
    Band(rung="shed-batch", enter=0.96, leave=0.85),
)
_STALL = (Band(rung="shed-batch", enter=0.30, leave=0.05),)


class Governor(Table, frozen=True):
    """When quality and place are traded for heat, load and memory: bands over a ladder of rungs."""

    sample_s: Annotated[float, msgspec.Meta(ge=0.05, le=10)] = 1.0
    """How often the machine is sampled: temperatures, load, clocks, memory, pressure."""
    floor: str = ""
    """The lowest rung that may be taken; empty means the last."""
    dwell_s: Seconds = 30.0
    """Shortest time between two changes; only a critical temperature does not wait."""
    climb_after_s: Seconds = 120.0
    """How long all readings must allow a better rung before it is taken."""
    retry_s: Seconds = 3600.0
    """How long a climb that had to be taken back is not tried again while it is as hot as it was then."""
    horizon_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 20.0
    """How far ahead temperatures are predicted; 0: they are not."""
    ladder: tuple[Rung, ...] = msgspec.field(default_factory=_ladder)
    """Best first."""
    temperature: dict[Name, Thermal] = msgspec.field(default_factory=_temperature)
    """By kind of device: a device's name without its number."""
    load: tuple[Band, ...] = msgspec.field(default_factory=lambda: _LOAD)
    """By the share of the entry's slots that are taken."""
    memory: tuple[Band, ...] = msgspec.field(default_factory=lambda: _MEMORY)
    """By the share of memory that is in use, without what the kernel can take back."""
    stall: tuple[Band, ...] = msgspec.field(default_factory=lambda: _STALL)
    """By the share of the time in which some task waited for memory (PSI)."""


class Peers(Table, frozen=True):
    """Other nodes that take over answers, and for whom this one does; who they are, `edgectl peers` says."""

    enabled: bool = False
    name: str = ""
    """How this node calls itself; empty means the machine's name."""
    listen: str = ""
    """`tcp://ADDRESS:PORT` of one interface, where listed peers come in; empty: this node serves none."""
    most_requests: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    """Answers that this node makes at a time for one peer."""
    most_kib_per_s: Annotated[int, msgspec.Meta(ge=64, le=1 << 20)] = 8192
    """What one peer may send; beyond it is cut off."""
    ping_s: Annotated[float, msgspec.Meta(ge=0.05, le=10)] = 0.2
    """How often a peer is asked what it offers."""
    silence_s: Annotated[float, msgspec.Meta(ge=0.2, le=60)] = 0.7
    """A peer that was not heard for so long is gone: its answers go on elsewhere."""
    stall_s: Annotated[float, msgspec.Meta(ge=0.2, le=600)] = 2.5
    """A peer whose answer has had no token for so long is too slow (four times as long before the first)."""
    first_wait_s: Seconds = 1.0
    """How long a peer that failed is left alone; it doubles with every failure in a row."""
    longest_wait_s: Seconds = 60.0


class Config(Table, frozen=True):
    """The whole configuration."""

    daemon: Daemon = msgspec.field(default_factory=Daemon)
    api: Api = msgspec.field(default_factory=Api)
    queue: Queue = msgspec.field(default_factory=Queue)
    library: Library = msgspec.field(default_factory=Library)
    placement: Placement = msgspec.field(default_factory=Placement)
    governor: Governor = msgspec.field(default_factory=Governor)
    peers: Peers = msgspec.field(default_factory=Peers)
    stages: dict[Name, Stage] = {}
    pipelines: dict[Name, Pipeline] = {}


BUILT_IN: dict[str, Any] = {
    "stages": {
        "retriever": {"kind": "retriever", "model": "bge-small-en-v1.5"},
        "reranker": {"kind": "reranker", "model": "ms-marco-minilm-l12-v2"},
        "generator": {"kind": "generator", "model": "smollm2-135m-instruct"},
    },
    "governor": {"temperature": msgspec.to_builtins(_temperature())},
    "pipelines": {"rag": {"stages": ["retriever", "reranker", "generator"]}},
}
"""The built-in layer: what an empty file means."""
