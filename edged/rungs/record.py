"""What was measured of the ladder, as it was measured: plain data, kept in `ladder.json`.

Figures are made of it when they are asked for (`figures.py`), so that a run can go on where another stopped.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from edged.config.tables import Rung
from edged.placement.table import Fingerprint as Machine


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an answer stands: a document, or some lines of it, or one passage of the library."""

    source: str
    """Path or URL of the document as it was ingested, or the end of it."""
    first_line: int = 0
    last_line: int = 0
    """0 for both: anywhere in the document."""
    passage: int = 0
    """Id in the library; 0 where the place was named by a person."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A question whose right passages are known."""

    text: str
    relevant: tuple[Place, ...] = ()
    """Empty where only the expected answer is known."""
    answer: str = ""
    """What the answer has to say; empty where nobody knows."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a rung found for a question."""

    ndcg: float
    recall: float
    """Share of the relevant places that are among the passages handed on."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What a rung answered to a question."""

    text: str
    supported: bool
    """Whether the cited passages contain what the answer says."""
    latency_s: float
    first_s: float | None
    """Until the first text; None for an answer without any."""
    tokens: int
    vector: bytes = b""
    """Of the text, by the retriever's embedder, packed; empty where there is none."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Some answers, one behind the other from each of the clients, and what the box spent on them."""

    clients: int
    answered: int
    duration_s: float
    cpu_s: float
    """Of the daemon and its workers; 0 where their processes cannot be seen."""
    joules: float | None = None
    """Of the processor packages, whoever used them; None where nothing measures it."""


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one way to answer; questions by their number."""

    found: dict[int, Found] = {}
    answers: dict[int, Answered] = {}
    loads: tuple[Load, ...] = ()
    devices: tuple[str, ...] = ()
    """On which the stages ran."""
    variants: dict[str, str] = {}
    """Which each of them ran, by stage."""


Origin = Literal["generator", "words", "file"]
"""Who made the questions: the generator, as far as its questions are good, and words drawn from the passages;
these words alone; a person."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures are about."""

    machine: Machine
    """With the digests of all weights that took part."""
    pipeline: str
    stages: dict[str, str]
    """By stage of the pipeline: its model and options, as configured."""
    plan: str = ""
    """Id of the plan in force; empty for none."""
    generation: int
    """Of the library."""
    generators: tuple[str, ...] = ()
    """The stages of the pipeline that tell; the others find."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement of the ladder."""

    fingerprint: Fingerprint
    questions: tuple[Question, ...]
    origin: Origin
    by_words: int
    """How many of the questions were made of words."""
    seed: int
    count: int
    """Of questions that were to be made."""
    measured_at: str
    """ISO 8601, UTC."""
    sheets: dict[str, Sheet] = {}
    """By what is done: see `key_of`."""
    unavailable: dict[str, str] = {}
    """Rungs that could not be taken, and why."""


_UNMEASURED = {"cost": None, "quality": None, "shed_batch": False, "busy_share": 1.0}


def key_of(settings: Rung) -> str:
    """All that a rung changes about an answer: rungs with the same key share their figures.

    Refusing requests changes no answer, so it is not in it.

    >>> key_of(Rung(name="a", keep=2)) == key_of(Rung(name="b", keep=2, shed_batch=True))
    True
    """
    bare = replace(settings, name="full", **_UNMEASURED)
    return msgspec.json.encode(bare, order="sorted").decode()
