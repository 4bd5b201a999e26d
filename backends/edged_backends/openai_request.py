"""What a server is asked, in its own words: sampling, turns, and an answer that goes on. Pure."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from edged.backend import Sampling
from edged.errors import UnsupportedField
from edged_backends.openai_vocabulary import Asked, unmarked

DialectName = Literal["openai", "vllm", "llama_server", "llama_cpp_python", "edged"]
CHAT, TEXT = "/chat/completions", "/completions"


class Dialect(NamedTuple):
    """What a kind of server takes beyond what OpenAI documents."""

    top_k: bool = False
    min_p: bool = False
    repetition_penalty: str = ""
    """Its name for it; empty when it has none."""
    continues: bool = False
    """Whether it goes on with an assistant's turn that stands last, instead of beginning another."""
    say_continue: bool = False
    """Whether it has to be told so, with `continue_final_message`."""
    usage: bool = True
    """Whether it takes `stream_options`."""


DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(),
    "vllm": Dialect(
        top_k=True, min_p=True, repetition_penalty="repetition_penalty", continues=True, say_continue=True
    ),
    "llama_server": Dialect(top_k=True, min_p=True, repetition_penalty="repeat_penalty", continues=True),
    "llama_cpp_python": Dialect(top_k=True, min_p=True, repetition_penalty="repeat_penalty", usage=False),
    "edged": Dialect(top_k=True, min_p=True, repetition_penalty="repetition_penalty"),
}


class Request(NamedTuple):
    """A path and a body, and how far the answer is expected to repeat what is known."""

    path: str
    body: dict[str, Any]
    repeated: str
    """What the answer has to say again before anything new; empty when it goes on at once."""


def sampling_fields(sampling: Sampling, dialect: Dialect, name: str) -> dict[str, Any]:
    """The sampling in a server's words; `UnsupportedField` names what it cannot honour."""
    if sampling.logit_bias:
        raise UnsupportedField(
            "logit_bias names tokens of a tokenizer that the server keeps to itself; leave it out",
            param="logit_bias",
        )
    fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    fields["presence_penalty"] = sampling.presence_penalty
    fields["frequency_penalty"] = sampling.frequency_penalty
    if sampling.temperature > 0:
        fields["seed"] = sampling.seed
    extensions = (
        ("top_k", "top_k" if dialect.top_k else "", sampling.top_k, 0),
        ("min_p", "min_p" if dialect.min_p else "", sampling.min_p, 0.0),
        ("repetition_penalty", dialect.repetition_penalty, sampling.repetition_penalty, 1.0),
    )
    for field, theirs, value, neutral in extensions:
        if theirs:
            fields[theirs] = value  # said even when neutral: the server's own default may not be
        elif value != neutral:
            raise UnsupportedField(
                f"a server of dialect {name!r} has no {field}; leave it out, or name the server's dialect",
                param=field,
            )
    return fields


def request_for(asked: Asked, said: str, max_tokens: int, dialect: Dialect) -> Request:
    """Ask for an answer of which `said` is there already; `max_tokens` is what may follow behind it.

    A conversation is continued where the server can; elsewhere it is asked again from the start.
    """
    body: dict[str, Any] = {"max_tokens": max_tokens, "stream": True}
    if dialect.usage:
        body["stream_options"] = {"include_usage": True}
    if not asked.turns:
        return Request(TEXT, body | {"prompt": asked.text + said}, "")
    messages = [{"role": role, "content": content} for role, content in asked.turns]
    if not said or not dialect.continues:
        return Request(CHAT, body | {"messages": messages}, said)
    messages.append({"role": "assistant", "content": unmarked(said)})
    if dialect.say_continue:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return Request(CHAT, body | {"messages": messages}, "")


class Repetition:
    """Lets pass what comes behind a text that has to be said again first, however it is cut."""

    def __init__(self, expected: str) -> None:
        self._expected = expected

    @property
    def complete(self) -> bool:
        """Whether everything was said again."""
        return not self._expected

    def push(self, text: str) -> str | None:
        """What of a piece is new; None when it is not what was said before."""
        if self._expected.startswith(text):
            self._expected = self._expected[len(text) :]
            return ""
        if text.startswith(self._expected):
            fresh, self._expected = text[len(self._expected) :], ""
            return fresh
        return None
