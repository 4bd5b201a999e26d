"""Questions as the generator asks them about passages, and which of them are any good."""

from __future__ import annotations

from collections.abc import Sequence

from edged.messages import Passage
from edged.rungs.drawing import Subject
from edged.rungs.making import words_in
from edged.rungs.record import Place, Question

MOST_WORDS = 100
"""Of a passage that are shown: a small model asks about the beginning anyway."""
MAX_TOKENS = 32
LEAST_SHARED = 2
"""Telling words that a question has to have in common with its passage, or it could be about anything."""
SHARE = 0.5
"""Of the telling words of a question: one with more words of its own is about something else."""
INSTRUCTION = "Write one short question that the passage answers. Name what it is about."
EXAMPLES = (
    (
        "Pump - Care: Clean the filter every second week with warm water.",
        "How often is the filter of the pump cleaned?",
    ),
    ("Marie Curie: She won the Nobel Prize in 1903.", "In which year did Marie Curie win the Nobel Prize?"),
)

Turn = dict[str, str]


def conversation(passage: Passage) -> list[Turn]:
    """What makes a generator ask a question that the passage answers."""
    shown = [turn for text, asked in EXAMPLES for turn in (_turn("user", text), _turn("assistant", asked))]
    head = " - ".join(filter(None, (passage.title, passage.heading)))
    text = " ".join(passage.text.split()[:MOST_WORDS])
    return [_turn("system", INSTRUCTION), *shown, _turn("user", f"{head}: {text}")]


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def question_in(said: str, passage: Passage) -> str:
    """The question of an answer, where it is one and about the passage; else empty.

    >>> passage = Passage(id=1, source="a", text="The pump starts at a level of 80 cm.")
    >>> question_in("At which level does the pump start?", passage)
    'At which level does the pump start?'
    >>> question_in("What is the capital of France?", passage)
    ''
    """
    line = next(iter(said.strip().splitlines()), "")
    text = line[: line.find("?") + 1].strip()
    words = set(words_in(text))
    shared = words & set(words_in(f"{passage.title} {passage.heading} {passage.text}"))
    good = len(shared) >= LEAST_SHARED and len(shared) >= SHARE * len(words)
    return text if good else ""


def worded(about: Subject, said: Sequence[str]) -> Question | None:
    """The question about a subject out of what was said about each of its passages; None for a bad one."""
    texts = [question_in(text, passage) for text, passage in zip(said, about.passages, strict=True)]
    if not all(texts):
        return None
    relevant = tuple(Place(source=passage.source, passage=passage.id) for passage in about.passages)
    return Question(text=" ".join(texts), relevant=relevant)
