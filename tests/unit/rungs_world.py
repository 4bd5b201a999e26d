"""Records of measurements that nobody took."""

from __future__ import annotations

from collections.abc import Sequence

from edged.config.tables import Rung
from edged.placement.table import Fingerprint as Machine
from edged.rungs.figures import in_force
from edged.rungs.record import Answered, Fingerprint, Load, Question, Record, Sheet, key_of

FINGERPRINT = Fingerprint(
    machine=Machine(cpu="A", cores=2, memory_bytes=8, kernel="6.1", packages={}, models={}),
    pipeline="rag",
    stages={"retriever": "", "reranker": "", "generator": ""},
    generation=1,
    generators=("generator",),
)


def answered(text: str) -> Answered:
    return Answered(text=text, supported=True, latency_s=1.0, first_s=0.5, tokens=4)


def load(cpu_s: float, duration_s: float = 1.0) -> Load:
    return Load(clients=1, answered=1, duration_s=duration_s, cpu_s=cpu_s)


def recorded(
    ladder: Sequence[Rung], sheets: Sequence[Sheet], questions: Sequence[Question] = (Question(text="q"),)
) -> Record:
    """A record with one sheet for each rung."""
    keys = [key_of(rung) for rung in in_force(ladder, ())]
    return Record(
        fingerprint=FINGERPRINT,
        questions=tuple(questions),
        origin="words",
        by_words=len(questions),
        seed=0,
        count=len(questions),
        measured_at="2026-01-01T00:00:00+00:00",
        sheets=dict(zip(keys, sheets, strict=True)),
    )
