"""What the daemon answers, as a client sees it; fields that a newer daemon adds are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from edged.errors import BY_CODE, EdgedError, from_code
from edged.messages import Passage
from edged.report import CacheReport


class Cited(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that an answer rests on."""

    number: int
    source: str
    title: str = ""
    heading: str = ""
    first_line: int = 0
    last_line: int = 0
    page: int = 0
    quote: str = ""
    support: float = 0.0
    text: str = ""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage did for a request."""

    stage: str
    wait_s: float = 0.0
    compute_s: float = 0.0
    batch: int = 1
    device: str = ""
    variant: str = ""
    attempts: int = 1


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Delta(msgspec.Struct, frozen=True):
    """New text of a streamed answer."""

    text: str


class Final(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an answer, with its whole text."""

    text: str
    finish: str
    model: str = ""
    request_id: str = ""
    citations: tuple[Cited, ...] = ()
    timings: tuple[Timing, ...] = ()
    usage: Usage | None = None
    resumed: int = 0
    rung: str = ""
    """Of the quality ladder, when the request was accepted."""
    passages: tuple[Passage, ...] = ()
    """Best first, where only they were asked for."""
    bypassed: tuple[str, ...] = ()
    """Stages that the request passed by."""
    node: str = ""
    """Who finished the answer: the daemon's node, or one of its peers."""


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """One document's place after reranking, best first."""

    index: int
    relevance_score: float


class Turn(msgspec.Struct, frozen=True):
    """The assistant's turn, or what a chunk adds to it."""

    content: str | None = None
    citations: tuple[Cited, ...] = ()
    passages: tuple[Passage, ...] = ()


class Choice(msgspec.Struct, frozen=True):
    """The only choice of an answer."""

    delta: Turn = Turn()
    message: Turn = Turn()
    finish_reason: str | None = None


class Trace(msgspec.Struct, frozen=True):
    """What edged did for a request."""

    request_id: str = ""
    timings: tuple[Timing, ...] = ()
    resumed: int = 0
    rung: str = ""
    bypassed: tuple[str, ...] = ()
    node: str = ""


class Fault(msgspec.Struct, frozen=True):
    """Why a request failed."""

    message: str = ""
    code: str | None = None
    param: str | None = None


class Reply(msgspec.Struct, frozen=True):
    """A chat completion or a chunk of one."""

    model: str = ""
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    edged: Trace | None = None
    error: Fault | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What it says, streamed or whole."""
        return tuple(turn for choice in self.choices for turn in (choice.delta, choice.message))


class Vector(msgspec.Struct, frozen=True):
    """One embedding."""

    index: int
    embedding: list[float]


class Vectors(msgspec.Struct, frozen=True):
    """The answer of POST /v1/embeddings."""

    data: list[Vector]


class Ranking(msgspec.Struct, frozen=True):
    """The answer of POST /v1/rerank."""

    results: list[Ranked]


class Cleared(msgspec.Struct, frozen=True):
    """Caches that were emptied, and what they had held."""

    caches: list[CacheReport] = []


class Models(msgspec.Struct, frozen=True):
    """The answer of GET /v1/models."""

    data: list[dict[str, Any]]


def final(replies: Sequence[Reply]) -> Final:
    """Gather what the chunks of one answer said; the last word on each thing counts."""
    turns = [turn for reply in replies for turn in reply.turns]
    choices = [choice for reply in replies for choice in reply.choices]
    trace = next((reply.edged for reply in reversed(replies) if reply.edged), Trace())
    return Final(
        text="".join(turn.content or "" for turn in turns),
        finish=next((choice.finish_reason for choice in reversed(choices) if choice.finish_reason), ""),
        model=next((reply.model for reply in replies if reply.model), ""),
        request_id=trace.request_id,
        citations=next((turn.citations for turn in reversed(turns) if turn.citations), ()),
        passages=next((turn.passages for turn in reversed(turns) if turn.passages), ()),
        timings=trace.timings,
        usage=next((reply.usage for reply in reversed(replies) if reply.usage), None),
        resumed=trace.resumed,
        rung=trace.rung,
        bypassed=trace.bypassed,
        node=trace.node,
    )


def as_error(fault: Fault) -> EdgedError:
    """Rebuild the error that the daemon raised."""
    code = fault.code if fault.code in BY_CODE else "internal"
    return from_code(code or "internal", fault.message, fault.param)
