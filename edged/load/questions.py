"""What a load run asks when the operator names no questions: about his own documents."""

from __future__ import annotations

import random
from pathlib import Path

from edged.documents.library import Library

MOST_DOCUMENTS = 64
MOST_WORDS = 14
WITHOUT_DOCUMENTS = (
    "How do I reset the device to factory settings?",
    "What does a red light on the front panel mean?",
    "Which port does the web interface listen on?",
    "How often should the firmware be updated?",
    "What is the operating temperature range?",
    "How do I export the event log?",
)


def questions(library: Path, count: int = 64, seed: int = 0) -> list[str]:
    """Return questions about passages drawn from the library; general ones when it is empty."""
    chance = random.Random(seed)  # noqa: S311 - a reproducible choice, not a secret
    with Library.open(library) as opened:
        sources = [document.source for document in opened.documents()]
        drawn = chance.sample(sources, min(len(sources), MOST_DOCUMENTS))
        passages = [passage for source in drawn for passage in opened.show(source)[1]]
    asked = [about(passage.heading or passage.title, passage.text) for passage in passages]
    chance.shuffle(asked)
    return list(dict.fromkeys(asked))[:count] or list(WITHOUT_DOCUMENTS)


def about(heading: str, text: str) -> str:
    """A question that a passage answers.

    >>> about("Reset", "Hold the button for ten seconds. Then wait.")
    'Reset: what is said about "Hold the button for ten seconds"?'
    """
    words = text.split(". ", maxsplit=1)[0].split()[:MOST_WORDS]
    return f'{heading}: what is said about "{" ".join(words)}"?'.lstrip(": ")
