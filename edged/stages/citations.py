"""Which passages an answer rests on, judged by the words that they share.

Pure and cheap: no model. Content words are what is left of a text without function words, in lower case
and without the plural s; words with a digit weigh three times, because a wrong number is a wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain

import msgspec

from edged.messages import Answer, Citation, Passage

ATTRIBUTION_SHARE = 0.5
"""A sentence is attributed to a passage that contains at least this share of its content words.

Half is where a paraphrase by a small model still lands and a chance overlap with a decoy does not.
"""
SUPPORTED_SHARE = 0.6
"""An answer is supported when its cited passages together contain this share, and all its numbers."""
_NUMBER_WEIGHT = 3.0
_MARKER = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")
_LIST_NUMBER = re.compile(r"^\s*\d{1,3}[.)]\s+", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?:\s*\[[\d,\s]+\])*\s+|\n\s*(?=\n|[-*|#>\d])")
"""A full stop, a blank line, or a line that begins a list item, a table row, a heading or a log record."""
_WORD = re.compile(r"\w+(?:[.:/'\u2019-]\w+)*")
_FUNCTION_WORDS = (
    "a an the this that these those it its is are was were be been being am do does did done has have had "
    "will would can could may might shall should must of in on at by for from to into with without about "
    "as and or but if then than so not no nor you your yours we our us they their them he she his her i "
    "my me there here what which who whom when where why how all any some each also just only very more "
    "most passage passages document documents answer question according"
)
_IGNORED = frozenset(_FUNCTION_WORDS.split())


def sentences(text: str) -> list[str]:
    """Cut at sentence ends; a line break inside a sentence is no end, a marker stays with its sentence.

    >>> sentences("Hold it for 10 s. [1] Then wait.")
    ['Hold it for 10 s. [1]', 'Then wait.']
    """
    cuts = [match.end() for match in _SENTENCE_END.finditer(text)]
    pieces = [text[a:b].strip() for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def content_words(text: str) -> frozenset[str]:
    """Give the words that carry meaning; markers and list numbers do not count.

    >>> sorted(content_words("1. Hold the buttons for 10 seconds [2]."))
    ['10', 'button', 'hold', 'second']
    """
    plain = _LIST_NUMBER.sub("", _MARKER.sub(" ", text)).lower().replace("\u2019", "'")
    words = (word.removesuffix("'s") for word in _WORD.findall(plain))
    return frozenset(_singular(word) for word in words if word not in _IGNORED)


def markers(text: str, count: int) -> frozenset[int]:
    """Give the numbers of `[n]` and `[n, m]` that point at one of `count` passages."""
    groups = (match.group(1).split(",") for match in _MARKER.finditer(text))
    return frozenset(n for n in map(int, chain.from_iterable(groups)) if 1 <= n <= count)


def share(words: Iterable[str], passage_words: frozenset[str]) -> float:
    """Give the weighted share of `words` that are in `passage_words`, 0..1; 0 for no words."""
    words = frozenset(words)
    total = _weight(words)
    return _weight(words & passage_words) / total if total else 0.0


def cite(text: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """Give the citations of an answer, by number.

    A passage is cited where the answer marks it, and where it contains the greatest share of a
    sentence's content words, if that is at least `ATTRIBUTION_SHARE`.
    """
    known = [_passage_words(passage) for passage in passages]
    attributed: dict[int, set[str]] = {}
    for sentence in sentences(text):
        words = content_words(sentence)
        for number in _attribute(words, markers(sentence, len(passages)), known):
            attributed.setdefault(number, set()).update(words)
    return tuple(
        _citation(number, passages[number - 1], frozenset(words), known[number - 1])
        for number, words in sorted(attributed.items())
    )


def renumbered(text: str, citations: Sequence[Citation]) -> tuple[Citation, ...]:
    """Number the citations from 1, the best supported first, where the text itself shows no number."""
    if _MARKER.search(text):
        return tuple(citations)
    best_first = sorted(citations, key=lambda citation: -citation.support)
    return tuple(
        msgspec.structs.replace(citation, number=number) for number, citation in enumerate(best_first, 1)
    )


def unsupported_numbers(text: str, passages: Iterable[Passage], question: str = "") -> tuple[str, ...]:
    """Numbers of an answer that neither the passages nor the question contain: most likely invented.

    >>> unsupported_numbers("It takes 8 s [1].", [Passage(id=1, text="It takes 45 s.", source="a")])
    ('8',)
    """
    claimed = content_words("\n".join(sentences(text)))
    known = content_words(question).union(*(_passage_words(passage) for passage in passages))
    return tuple(sorted(word for word in claimed - known if _has_digit(word)))


def supported(answer: Answer) -> bool:
    """Say whether the cited passages contain what the answer says.

    True when it cites, all its numbers are in the cited passages, and so is at least
    `SUPPORTED_SHARE` of its content words. Sentences that ask claim nothing and do not count.
    """
    claims = [sentence for sentence in sentences(answer.text) if not sentence.endswith("?")]
    words = content_words("\n".join(claims))
    cited = frozenset[str]().union(*(_passage_words(citation.passage) for citation in answer.citations))
    numbers = {word for word in words if _has_digit(word)}
    return bool(words) and numbers <= cited and share(words, cited) >= SUPPORTED_SHARE


def _attribute(
    words: frozenset[str], marked: frozenset[int], known: Sequence[frozenset[str]]
) -> frozenset[int]:
    shares = {number: share(words, passage) for number, passage in enumerate(known, 1)}
    best = max(shares.values(), default=0.0)
    if best < ATTRIBUTION_SHARE or any(shares[number] == best for number in marked):
        return marked
    return marked | {next(number for number, value in shares.items() if value == best)}


def _citation(number: int, passage: Passage, words: frozenset[str], known: frozenset[str]) -> Citation:
    spans = sentences(passage.text) or [passage.text]
    quote = max(spans, key=lambda span: _weight(words & content_words(span)))
    return Citation(number=number, passage=passage, quote=quote, support=share(words, known))


def _passage_words(passage: Passage) -> frozenset[str]:
    return content_words(f"{passage.title}\n{passage.heading}\n{passage.text}")


def _weight(words: Iterable[str]) -> float:
    return sum(_NUMBER_WEIGHT if _has_digit(word) else 1.0 for word in words)


def _has_digit(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _singular(word: str) -> str:
    plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")  # noqa: PLR2004 - gas, bus
    return word[:-1] if plural else word
