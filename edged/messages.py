"""Every message on every wire, and one codec.

msgpack between processes, JSON to clients, the same structs. Never pickle.
Control messages are tagged unions, one per receiver; payload structs travel in slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edged.backend import Sampling
from edged.errors import BadRequest, ProtocolError
from edged.layers.report import LayerReport

T = TypeVar("T")

Credit = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
"""Neither infinite nor NaN: one absurd number would spoil every prediction that it is averaged into."""

Priority = Literal["interactive", "batch"]
"""Interactive work goes before batch work; within a class the earliest deadline goes first."""

# ---------------------------------------------------------------- descriptors


class SlotRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A descriptor: where a payload lies and which writing of the slot it is.

    `generation` changes each time the slot is leased; `checksum` is of the `length` bytes
    (`slots.checksum_of`).
    """

    arena: int
    slot: int
    generation: int
    length: int = 0
    checksum: int = 0


# ---------------------------------------------------------- daemon to worker


class Work(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="work"):
    """One item for a worker: read `source` in place, write the result into `target`."""

    request: int
    attempt: int
    operation: str
    source: SlotRef
    target: SlotRef
    remaining_ms: int
    """Time left until the deadline when the message was sent; never a wall-clock time."""
    resume_tokens: tuple[int, ...] = ()
    """Tokens already sent to the client: the answer continues behind them."""
    resume_characters: int = 0
    """How much of the text of those tokens the client already has."""
    keep: int = 0
    """Most passages to use where the task does not say, because who chooses them was passed by; 0: all."""


class Batch(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="batch"):
    """A micro-batch: the items that a batch stage runs as one."""

    items: tuple[Work, ...]


class Cancel(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="cancel"):
    """Stop working on an item; a generator stops within one token."""

    request: int
    attempt: int


class Ping(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="ping"):
    """Asks the working loop, not a side thread, for a sign of life."""

    nonce: int


class Stop(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="stop"):
    """Finish what was taken, then exit 0."""


class Cores(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="cores"):
    """A core lease: how many cores the worker may keep busy from its next step or run on; 0 is a pause.

    A worker starts with a lease of everything that its device has. One that cannot change its threads
    while it runs still honours a pause.
    """

    count: Annotated[int, msgspec.Meta(ge=0, le=4096)]


class ClearCaches(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="clear_caches"):
    """Empty the caches of the worker that have one of these names; no names means all."""

    names: tuple[str, ...] = ()


ToWorker = Batch | Cancel | Ping | Stop | Cores | ClearCaches

# ---------------------------------------------------------- worker to daemon


class Ready(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="ready"):
    """The model is loaded; `credit` items may be sent.

    `credit` counts what more the worker takes: the dispatcher adds what messages bring and
    subtracts what it sends, so an announcement can never race with work already on its way.
    """

    credit: Credit
    pid: int
    load_s: Seconds
    details: dict[str, Any]
    """What `status` shows: context_tokens, fingerprint, ..."""
    lanes: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Cores that a batch of it spreads over, where it heeds its lease while a batch runs; 1: it does not."""


class Judgement(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a stage thinks of its result: a retriever of its order, a reranker of the order before its own."""

    margin: float | None = None
    """How sure the order is, -1..1 (`edged.stages.margin.margin_of`); None: unknown."""
    generation: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Of the library that was searched; 0: unknown."""
    missed: float | None = None
    """What the order before lacked of this one, -1..1 of nDCG (`edged.stages.margin.missed`)."""


class Done(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="done"):
    """An item's result is in its target slot."""

    request: int
    attempt: int
    target: SlotRef
    compute_s: Seconds
    batch: Annotated[int, msgspec.Meta(ge=1)]
    """Size of the micro-batch that it ran in."""
    credit: Credit = 1
    judgement: Judgement | None = None


class Failed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="failed"):
    """An item failed alone; its worker lives on."""

    request: int
    attempt: int
    code: str
    message: str
    param: str | None = None
    credit: Credit = 1


class Tokens(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="tokens"):
    """New tokens of a streaming answer: ids for the ledger, text for the client."""

    request: int
    attempt: int
    first: int
    """Index in the answer of the first of `tokens`: contiguous or refused."""
    tokens: tuple[int, ...]
    text: str


class Gone(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="gone"):
    """A cancelled item was dropped; the worker has room again."""

    request: int
    attempt: int
    credit: Credit = 1


class Pong(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="pong"):
    """The working loop is alive: the answer to a ping, and unasked during work that shows nothing else."""

    nonce: int


class Fault(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="fault"):
    """The worker cannot go on (a lost device, a model that does not load) and will exit."""

    code: str
    message: str


class CacheCounters(msgspec.Struct, frozen=True, kw_only=True):
    """One cache: what it holds, and how often it served since it was made."""

    entries: int
    bytes: int
    limit_bytes: int
    hits: int
    misses: int
    evictions: int = 0


class Caches(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="caches"):
    """The counters of a worker's caches by name, when they have changed, at most once a second."""

    counters: dict[str, CacheCounters]


class Layers(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="layers"):
    """How the stages of a worker's layer pipeline do, when that has changed, at most once a second."""

    report: LayerReport


class Trouble(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="trouble"):
    """What keeps a worker from its work although it lives, when that has changed; empty: nothing any more."""

    reason: str


FromWorker = Ready | Done | Failed | Tokens | Gone | Pong | Fault | Caches | Layers | Trouble

# ----------------------------------------------------------- payloads in slots


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a document: the unit of retrieval and of citation."""

    id: int
    text: str
    source: str
    """Path or URL of the document as it was ingested."""
    title: str = ""
    heading: str = ""
    first_line: int = 0
    """1-based; 0 where the source has no lines. For a PDF, see `page`."""
    last_line: int = 0
    page: int = 0
    scores: dict[str, float] = {}
    """By who gave them: dense, bm25, fused, rerank."""


class Ceiling(msgspec.Struct, frozen=True, array_like=True):
    """What the governor's rung leaves of a task, whatever was asked for or configured; 0: all of it."""

    candidates: int = 0
    keep: int = 0
    answer_tokens: int = 0


class ChatTask(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation needs; the retriever and the reranker fill in and thin out `passages`."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    max_tokens: int = 0
    """0 means the stage's default, bounded by what the context leaves."""
    stop: tuple[str, ...] = ()
    grounded: bool = False
    """Answer from `passages`, with citations."""
    passages: tuple[Passage, ...] = ()
    candidates: int = 0
    """Passages that the retriever fetches; 0 means the stage's default."""
    keep: int = 0
    """Passages that the reranker keeps; 0 means the stage's default."""
    ceiling: Ceiling = Ceiling()
    passages_only: bool = False
    """Give the passages that an answer would be written from, and no answer."""


class EmbedTask(msgspec.Struct, frozen=True, kw_only=True):
    """Texts to embed, as queries or as passages (some models prefix queries)."""

    texts: tuple[str, ...]
    kind: Literal["query", "passage"] = "passage"


class EmbedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """float32 vectors of unit length, row-major, [count, dimension], little endian."""

    count: int
    dimension: int
    vectors: bytes
    tokens: int
    """Prompt tokens, for `usage`."""


class RerankTask(msgspec.Struct, frozen=True, kw_only=True):
    """Documents to score against a query."""

    query: str
    documents: tuple[str, ...]


class RerankAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One relevance score (a logit) per document, in the order of the request."""

    scores: tuple[float, ...]
    tokens: int


class Citation(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that the answer rests on."""

    number: int
    """As in the prompt and in `[1]` of the answer."""
    passage: Passage
    quote: str
    """The span of the passage that supports the answer."""
    support: float
    """Share of the answer's content words that the passage contains, 0..1."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How a generation ended; its text has been streamed, and is repeated here whole."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    model: str
    citations: tuple[Citation, ...] = ()
    resumed: int = 0
    """How often the answer was continued by another worker."""
    passages_dropped: int = 0
    """How many of the passages found, the worst ones, did not fit the context."""
    passages: tuple[Passage, ...] = ()
    """Where only they were asked for: those that an answer would be written from, best first."""


# ------------------------------------------------------------------- the codec

_encoder = msgspec.msgpack.Encoder()


def encode(message: msgspec.Struct | Sequence[msgspec.Struct]) -> bytes:
    """Pack a message, several, or a payload.

    >>> decoder(SlotRef)(encode(SlotRef(1, 2, 3)))
    SlotRef(arena=1, slot=2, generation=3, length=0, checksum=0)
    """
    return _encoder.encode(message)


def decoder(kind: type[T] | Any) -> Callable[[bytes | memoryview], T]:
    """Return a decoder for a struct or a union; anything malformed is a `ProtocolError`."""
    inner = msgspec.msgpack.Decoder(kind)

    def decode(data: bytes | memoryview) -> T:
        try:
            return inner.decode(data)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"malformed message: {error}") from error

    return decode


def from_json(data: bytes, kind: type[T]) -> T:
    """Decode what a client sent, or raise `BadRequest` that names the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise BadRequest("the body is not valid UTF-8") from error
    except msgspec.MsgspecError as error:
        message, _, path = str(error).partition(" - at `$")
        raise BadRequest(message, param=path.rstrip("`").lstrip(".") or None) from error
