"""Requests and answers of the OpenAI-shaped endpoints, field by field.

A field typed `Absent` is known but not honoured: `edged/api/validation.py` says which values are neutral.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edged.dispatch.requests import StageTiming
from edged.messages import Priority

Absent = Any | UnsetType
Text = Annotated[str, Meta(min_length=1)]
Tokens = Annotated[int, Meta(ge=1, le=1 << 20)]
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]


class Closed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request object: a field that it does not list is refused."""


class Part(Closed, frozen=True):
    """A piece of a message's content; only `type: text` is read."""

    type: str
    text: str | None = None
    image_url: Absent = UNSET
    input_audio: Absent = UNSET
    file: Absent = UNSET
    video_url: Absent = UNSET
    refusal: Absent = UNSET
    prompt_cache_breakpoint: Absent = UNSET


class Turn(Closed, frozen=True):
    """A message; the fields behind `content` come back in round-tripped answers and change nothing."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Absent = UNSET
    citations: Absent = UNSET
    reasoning_content: Absent = UNSET
    tool_calls: Absent = UNSET
    tool_call_id: Absent = UNSET
    function_call: Absent = UNSET
    audio: Absent = UNSET


class StreamOptions(Closed, frozen=True):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class EdgedOptions(Closed, frozen=True):
    """What only edged knows: how many passages are fetched and how many kept, and who goes first."""

    candidates: Annotated[int, Meta(ge=1, le=1000)] | None = None
    keep: Annotated[int, Meta(ge=1, le=100)] | None = None
    priority: Priority | None = None
    """`interactive` when absent; `batch` work goes behind interactive work in every queue."""
    passages_only: bool | None = None
    """Answer with the passages that an answer would be written from, and write none."""


class ChatRequest(Closed, frozen=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=4096)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=4)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    deadline_ms: Milliseconds | None = None
    """Extension: the answer must be complete by then, counted from the arrival of the request."""
    edged: EdgedOptions | None = None
    """Extension: see `EdgedOptions`."""

    n: Absent = UNSET
    logprobs: Absent = UNSET
    top_logprobs: Absent = UNSET
    logit_bias: Absent = UNSET
    tools: Absent = UNSET
    tool_choice: Absent = UNSET
    functions: Absent = UNSET
    function_call: Absent = UNSET
    response_format: Absent = UNSET
    modalities: Absent = UNSET
    audio: Absent = UNSET
    prediction: Absent = UNSET
    web_search_options: Absent = UNSET
    reasoning_effort: Absent = UNSET
    verbosity: Absent = UNSET
    moderation: Absent = UNSET

    user: Absent = UNSET
    metadata: Absent = UNSET
    store: Absent = UNSET
    service_tier: Absent = UNSET
    parallel_tool_calls: Absent = UNSET
    safety_identifier: Absent = UNSET
    prompt_cache_key: Absent = UNSET
    prompt_cache_retention: Absent = UNSET
    prompt_cache_options: Absent = UNSET


class EmbeddingRequest(Closed, frozen=True):
    """The body of POST /v1/embeddings."""

    input: str | Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=2048)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    input_type: Literal["query", "search_query", "passage", "document", "search_document"] | None = None
    """Extension: whether the texts are questions or passages; `passage` when absent."""
    deadline_ms: Milliseconds | None = None
    priority: Priority | None = None
    """Extension: `interactive` or `batch`; when absent, by the number of inputs."""
    user: Absent = UNSET


class Document(msgspec.Struct, frozen=True):
    """A document to rerank, as an object; other keys are carried by clients and change nothing."""

    text: str


class RerankRequest(Closed, frozen=True):
    """The body of POST /v1/rerank."""

    query: Text
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=2048)]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    return_documents: bool | None = None
    deadline_ms: Milliseconds | None = None
    priority: Priority | None = None
    """Extension: `interactive` when absent."""
    rank_fields: Absent = UNSET
    max_chunks_per_doc: Absent = UNSET
    max_tokens_per_doc: Absent = UNSET
    user: Absent = UNSET


# ------------------------------------------------------------------- answers


class CitationInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that the answer rests on; `number` is the `[1]` of the text."""

    number: int
    source: str
    title: str
    heading: str
    first_line: int
    last_line: int
    page: int
    quote: str
    support: float
    text: str


class PassageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that an answer would be written from."""

    id: int
    """In the library; another one after the document is ingested again."""
    source: str
    title: str
    heading: str
    first_line: int
    last_line: int
    page: int
    text: str
    scores: dict[str, float]
    """By who gave them: dense, bm25, fused, rerank, blend."""


class EdgedInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What edged did for a request."""

    request_id: str
    model: str
    timings: tuple[StageTiming, ...]
    resumed: int
    """How often another worker continued the answer."""
    rung: str = "full"
    """Of the quality ladder, when the request was accepted."""
    bypassed: tuple[str, ...] = ()
    """Stages that the request passed by: see `edgectl stage bypass`."""
    node: str = ""
    """Who finished the answer: this node, or a peer."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens in and out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The assistant's turn."""

    role: str | UnsetType = UNSET
    content: str | None
    refusal: UnsetType | None = UNSET
    citations: list[CitationInfo] | UnsetType = UNSET
    passages: list[PassageInfo] | UnsetType = UNSET
    """Best first, where only they were asked for."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The only choice of an answer."""

    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: str


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer that is not streamed."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice]
    usage: Usage
    edged: EdgedInfo


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    citations: list[CitationInfo] | UnsetType = UNSET
    passages: list[PassageInfo] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The only choice of a chunk."""

    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    edged: EdgedInfo | UnsetType = UNSET


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One vector: a list of floats, or base64 of little-endian float32."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer of POST /v1/embeddings."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    edged: EdgedInfo


class RerankResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A document's place; `relevance_score` is in 0..1, the logistic function of the model's logit."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankList(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an answer of POST /v1/rerank, best first."""

    id: str
    object: str = "list"
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage
    edged: EdgedInfo


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A name that `model` may hold."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "edged"
    kind: str
    """`pipeline`, or the kind of the stage."""
    stages: tuple[str, ...]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The body of GET /v1/models."""

    object: str = "list"
    data: list[ModelInfo]
