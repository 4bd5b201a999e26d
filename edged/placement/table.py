"""What calibration knows: the prices of every stage in every form that this box can run it in.

Plain data, written by `calibrate.py`, read by `plan.py`, `simulate.py` and the CLI. One file,
`<state>/calibration.json` (`storage.py` reads and writes it); a form that was measured is never measured
again under the same fingerprint. `staleness.stale(table, now)` says what no longer holds.

Every form has points at batches 1 and 8 first; a form that another one beats by far stays at that, or at
batch 1 alone (`agenda.py`). So a planner must expect forms with few points, and pairs of few forms.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Work = Literal["short", "typical", "long"]
"""`typical` is what the stage gets in a pipeline; `short` and `long` have half and twice the text."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures hold for: another CPU, kernel, runtime or model digest makes them stale."""

    cpu: str
    cores: int
    memory_bytes: int
    accelerators: tuple[str, ...] = ()
    """As sysfs names them, with vendor and device."""
    kernel: str
    packages: dict[str, str]
    """Version of edged and of each runtime: onnxruntime, openvino, openvino-genai, llama-cpp-python."""
    models: dict[str, str]
    """Digest by `model/variant`."""


class Form(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One way to run a stage: everything that a worker is told at birth and that costs or saves time."""

    stage: str
    model: str
    variant: str
    backend: str
    device: str
    """`cpu`, `cpu:0-1`, `igpu`, ...: a core set is part of the form."""
    threads: int
    """0 on a device that is not the CPU."""
    options: tuple[tuple[str, str | int | bool], ...] = ()
    """Further options that change the price, sorted: `exact`, ..."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The price of one batch of a form; medians over `rounds`."""

    form: Form
    batch: int
    """Requests answered together (for a generator, sequences decoded together)."""
    work: Work = "typical"
    """Which requests: the same ones for every form of a stage, so compare forms at the same `work`."""
    length: int
    """Tokens of one text (encoders; for a reranker question and passage) or of one prompt (generators),
    as this form's tokenizer counts them; differs a little between forms at the same `work`."""
    cached_tokens: int = 0
    """Of `length`: those that a generator did not read, because an earlier prompt began alike."""
    new_tokens: int = 0
    """Generated per request; 0 for encoders. A model may end early: then fewer than `workload` says."""
    wall_s: float
    """For the whole batch."""
    cpu_s: float
    """CPU seconds of the process for the whole batch."""
    lanes: int = 1
    """Cores that the batch went over, heeding its lease while it ran, as the stage says; 1: it does not."""
    first_s: float = 0.0
    """Until the first token of the last sequence of the batch; for an encoder `wall_s`."""
    joules: float | None = None
    """Energy of the package for the whole batch; None where nothing measures it."""
    rounds: int
    spread: float
    """(max - min) / median of `wall_s` over the rounds."""
    others: float = 0.0
    """Cores that other processes kept busy meanwhile: where it is not near 0, `wall_s` is too high."""


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """What a form costs before it has done anything."""

    form: Form
    memory_bytes: int
    """Resident after the largest batch."""
    load_s: float
    """The last load: with warm caches on disk where the runtime has some."""
    batch: int = 1
    """The largest batch that it ran; a generator was opened for so many sequences."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two forms of different stages running at the same time, each at its batch."""

    first: Form
    second: Form
    first_batch: int
    second_batch: int
    first_slowdown: float
    """Wall seconds per batch beside the other / alone; at least about 1."""
    second_slowdown: float


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A form that does not run here, so that nobody tries it again."""

    form: Form
    code: str
    """An error's code, or `crashed`, `out_of_memory`, `hung`."""
    message: str
    batch: int = 0
    """The smallest batch that failed where smaller ones ran, so the form is usable below; 0: it is not."""
    work: Work = "typical"
    """The kind of requests that failed, where `batch` is not 0."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured on this box."""

    fingerprint: Fingerprint
    measured_at: str
    """RFC 3339, UTC, of the last measurement."""
    workload: dict[str, Any] = {}
    """What one request was: `candidates`, `keep`, `new_tokens`, `passages` (where from), `passage_words`."""
    points: tuple[Point, ...] = ()
    weights: tuple[Weight, ...] = ()
    pairs: tuple[Pair, ...] = ()
    failures: tuple[Failure, ...] = ()
    finished: tuple[str, ...] = ()
    """Stages of which every form was measured, sorted: see `completeness.py`."""
    finished_pairs: tuple[tuple[str, str], ...] = ()
    """Stages that were also measured beside each other to the end, each pair sorted."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """How a plan runs one stage."""

    form: Form
    batch: int
    workers: int = 1
    predicted_rate_per_s: float
    """Requests per second of this stage when it never waits."""
    latency_s: float
    """Of one request through this stage when nothing else runs."""
    loaded_latency_s: float
    """Of one request in a full batch."""
    cpu_s: float
    """CPU seconds per request at this batch."""
    utilisation: float
    """Predicted share of the time in which the stage holds work when the pipeline is saturated, 0..1."""
    memory_bytes: int
    """Of all its workers."""
    runner_up: Form | None = None
    why: str
    """A sentence: what the choice gains over the runner-up, or which limit ruled the runner-up out."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """An assignment of every stage, with its prediction; `<state>/plan.json` is the one in force."""

    id: str
    """Of the assignment: equal assignments have equal ids."""
    objective: str
    bounds: dict[str, float] = {}
    """What else it keeps: `latency_s`, `first_token_s`, `rate_per_s`, `energy`."""
    choices: dict[str, Choice]
    """In the order of the pipeline."""
    lease_mode: str
    """How stages on the same cores share them: see `edged/dispatch/leases.py`."""
    bottleneck: str
    predicted_rate_per_s: float
    predicted_latency_s: float
    """Of one request when nothing else runs."""
    predicted_first_token_s: float
    predicted_loaded_latency_s: float
    """Of one request in full batches that waits for nobody."""
    predicted_cpu_s: float
    """CPU seconds per request."""
    predicted_joules: float | None = None
    """Per request; None where the machine measures no energy."""
    memory_bytes: int
    fingerprint: Fingerprint
    """What it was planned on; on another machine, or with other runtimes or weights, it does not hold."""
    notes: tuple[str, ...] = ()
