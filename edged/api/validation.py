"""From a request's body to a task: what is honoured, what is neutral, what is refused by name."""

from __future__ import annotations

import difflib
import re
import secrets
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from edged.api.openai import ChatRequest, EdgedOptions, EmbeddingRequest, Part, RerankRequest, Turn
from edged.backend import Sampling
from edged.errors import BadRequest, UnknownField, UnsupportedField
from edged.messages import ChatTask, Message, from_json

T = TypeVar("T", bound=msgspec.Struct)

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "moderation": (),
    "rank_fields": (["text"],),
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "tool_calls": ([],),
    "tool_call_id": (),
}
"""Fields that would change the answer, with the values that would not; null is always one of them."""

IGNORED: tuple[str, ...] = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
)
"""Fields that OpenAI clients send and that change nothing here, whatever they hold."""


def decode(body: bytes, kind: type[T]) -> T:
    """Decode a body; `UnknownField` names a field that `kind` lacks, `BadRequest` anything else."""
    try:
        return from_json(body, kind)
    except BadRequest as error:
        unknown = _UNKNOWN.fullmatch(error.message)
        if unknown is None:
            raise
        raise _unknown_field(unknown[1], error.param, kind) from error


def chat_task(request: ChatRequest, *, grounded: bool) -> ChatTask:
    """Check a chat request and make the task of it."""
    refuse_unsupported(request)
    options = request.edged or EdgedOptions()
    messages = tuple(_message(index, turn) for index, turn in enumerate(request.messages))
    if grounded and not any(message.role == "user" for message in messages):
        raise BadRequest("an answer from documents needs a message with role user", param="messages")
    return ChatTask(
        messages=messages,
        sampling=_sampling(request),
        max_tokens=request.max_completion_tokens or request.max_tokens or 0,
        stop=_stop(request.stop),
        grounded=grounded,
        candidates=options.candidates or 0,
        keep=options.keep or 0,
        passages_only=_passages_only(options, grounded=grounded),
    )


def _passages_only(options: EdgedOptions, *, grounded: bool) -> bool:
    if options.passages_only and not grounded:
        raise BadRequest(
            "this model answers without documents, so it has no passages", param="edged.passages_only"
        )
    return bool(options.passages_only)


def embedding_texts(request: EmbeddingRequest) -> tuple[str, ...]:
    """List the texts to embed; `UnsupportedField` for token ids."""
    refuse_unsupported(request)
    items = [request.input] if isinstance(request.input, str) else request.input
    texts = tuple(item for item in items if isinstance(item, str))
    if len(texts) != len(items):
        raise UnsupportedField("token ids are not supported: send texts", param="input")
    if "" in texts:
        raise BadRequest("an input is empty", param=f"input[{texts.index('')}]")
    return texts


def rerank_documents(request: RerankRequest) -> tuple[str, ...]:
    """List the documents to score, as texts."""
    refuse_unsupported(request)
    return tuple(item if isinstance(item, str) else item.text for item in request.documents)


def refuse_unsupported(request: msgspec.Struct, path: str = "") -> None:
    """Raise `UnsupportedField` for a field that would change the answer and is not at a neutral value."""
    for name in request.__struct_fields__:
        if name in NEUTRAL and not _is_neutral(getattr(request, name), NEUTRAL[name]):
            raise UnsupportedField(f"{path}{name} is not supported with this value", param=f"{path}{name}")


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    if value is None or value is UNSET:
        return True
    return any(type(value) is type(known) and value == known for known in neutral)


def _unknown_field(name: str, parent: str | None, kind: type[msgspec.Struct]) -> UnknownField:
    known = kind.__struct_fields__ if parent is None else _nested_fields()
    nearest = difflib.get_close_matches(name, known, n=1)
    shown = name if len(name) <= 64 else name[:61] + "..."  # noqa: PLR2004 - a field's name, not a novel
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return UnknownField(f"unknown field {shown!r}{hint}", param=f"{parent}.{shown}" if parent else shown)


def _nested_fields() -> list[str]:
    return [*Turn.__struct_fields__, *Part.__struct_fields__, *EdgedOptions.__struct_fields__]


def _message(index: int, turn: Turn) -> Message:
    path = f"messages[{index}]."
    refuse_unsupported(turn, path)
    if turn.role == "tool" or turn.role == "function":  # noqa: PLR1714 - narrows the type
        raise UnsupportedField(f"role {turn.role!r} is not supported", param=f"{path}role")
    role = "system" if turn.role == "developer" else turn.role
    return Message(role, _content(turn.content, path))


def _content(content: str | list[Part] | None, path: str) -> str:
    if content is None:
        raise BadRequest("a message has no content", param=f"{path}content")
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"{path}content[{index}]") for index, part in enumerate(content))


def _part(part: Part, path: str) -> str:
    if part.type != "text":
        raise UnsupportedField(f"content of type {part.type[:32]!r} is not supported: text only", param=path)
    if part.text is None:
        raise BadRequest("a text part has no text", param=f"{path}.text")
    return part.text


def _sampling(request: ChatRequest) -> Sampling:
    """Greedy unless asked otherwise; a sampled answer without a seed gets one, so that it can be resumed."""
    temperature = request.temperature or 0.0
    seed = request.seed
    if seed is None:
        seed = secrets.randbelow(2**31) if temperature else 0
    return Sampling(
        temperature=temperature,
        top_k=request.top_k or 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        seed=seed,
    )


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
