"""From a conversation to prompt tokens, in the model's own chat format.

What a client or a document says must never become control tokens. So the chat template never sees it:
it is rendered over placeholders, its output is cut at them, its own pieces are tokenised with control
tokens recognised and the contents between them without. A message that contains `<|im_end|>` is seven
ordinary characters-worth of text to the model and cannot end its turn.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from edged.backend import Vocabulary
from edged.errors import BadRequest, ContextOverflow, ModelError
from edged.messages import ChatTask, Message, Passage
from edged.stages.options import at_most
from edged.stages.tables import spelled_out
from edged.stages.template import ChatTemplate

DEFAULT_MAX_TOKENS = 256
_OPEN, _CLOSE = "\ue000", "\ue001"
_PLACEHOLDER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
GROUNDED_SYSTEM = (
    "Answer the question from the numbered passages, in one sentence, and cite the passage like [1]."
)
GROUNDED_EXAMPLE = (
    Message(
        "user",
        "[1] Pump - Care: Clean the filter every second week with warm water.\n\n"
        "[2] Pump - Start: The pump starts at a level of 80 cm and runs for 5 minutes.\n\n"
        "Question: At which level does the pump start?",
    ),
    Message("assistant", "The pump starts at a level of 80 cm [2]."),
)
"""One worked exchange teaches a model of 135 million parameters what no instruction does.

It is the same in every prompt, so a runtime that caches prefixes computes it once.
"""
GROUNDED_STOPS = ("\n\n", "\nQuestion:")
"""One sentence is asked for: a small model that goes on repeats itself or invents the next question."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What to give the model, and how long its answer may be."""

    tokens: tuple[int, ...]
    max_tokens: int
    passages: tuple[Passage, ...] = ()
    """Those in the prompt, in its order: the first is [1], the best comes last."""
    passages_dropped: int = 0
    """How many of the worst passages did not fit the context."""


class PromptBuilder:
    """Builds prompts for one model.

    A model file without a chat template gets a plain format, `User: ...` and `Assistant: ...` on lines
    of their own behind the beginning-of-sequence token: the best guess for a base model.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        context_tokens: int,
        default_max_tokens: int = DEFAULT_MAX_TOKENS,
        *,
        most_passages: int = 0,
    ) -> None:
        """`most_passages` is how many the model can tell apart, from its manifest; 0 means any number."""
        self._vocabulary = vocabulary
        self._context_tokens = context_tokens
        self._default_max_tokens = default_max_tokens
        self._most_passages = most_passages
        if _OPEN in vocabulary.chat_template:
            raise ModelError("the model's chat template contains U+E000, which edged uses as a placeholder")
        self._template = ChatTemplate(vocabulary.chat_template) if vocabulary.chat_template else None

    def build(self, task: ChatTask) -> Prompt:
        """Build the prompt of `task`.

        Passages that do not fit are left out, worst (last) first. Raises `ContextOverflow` when what
        remains, or the tokens asked for, do not fit; `BadRequest` when the conversation is unusable.
        """
        if not task.messages:
            raise BadRequest("there is no message to answer", param="messages")
        if not task.grounded:
            return self._fit(self.encode(task.messages), task)
        most = at_most(self._most_passages or len(task.passages), task.ceiling.keep)
        task = msgspec.structs.replace(task, passages=task.passages[:most])
        kept = self._passages_that_fit(task)
        prompt = self._fit(self.encode(grounded(task.messages, task.passages[:kept])), task)
        dropped = len(task.passages) - kept
        return msgspec.structs.replace(prompt, passages=task.passages[:kept][::-1], passages_dropped=dropped)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Tokenise a conversation with the turn of the assistant opened."""
        pieces = _PLACEHOLDER.split(self._render(messages))
        lost = {n for n, m in enumerate(messages) if m.content} - {int(n) for n in pieces[1::2]}
        if lost:
            role = messages[min(lost)].role
            raise BadRequest(
                f"the model's chat format has no place for this {role} message", param="messages"
            )
        texts = [messages[int(p)].content if i % 2 else p for i, p in enumerate(pieces)]
        encode = self._vocabulary.encode
        return [token for i, text in enumerate(texts) if text for token in encode(text, special=i % 2 == 0)]

    def _render(self, messages: Sequence[Message]) -> str:
        marks = [f"{_OPEN}{n}{_CLOSE}" if m.content else "" for n, m in enumerate(messages)]
        beginning, end = self._vocabulary.beginning, self._vocabulary.end
        if self._template is None:
            turns = [f"{m.role.capitalize()}: {mark}\n" for m, mark in zip(messages, marks, strict=True)]
            return f"{beginning}{''.join(turns)}Assistant:"
        turns_ = [{"role": m.role, "content": mark} for m, mark in zip(messages, marks, strict=True)]
        return self._template.render(turns_, beginning, end)

    def _passages_that_fit(self, task: ChatTask) -> int:
        if task.max_tokens >= self._context_tokens:
            raise _overflow(task.max_tokens, self._context_tokens - 1, "max_tokens is", "max_tokens")
        reserve = task.max_tokens or min(self._default_max_tokens, self._context_tokens // 4)
        limit = self._context_tokens - reserve

        def too_long(count: int) -> bool:
            return len(self.encode(grounded(task.messages, task.passages[:count]))) > limit

        count = len(task.passages)
        kept = bisect_left(range(1, count + 1), True, key=too_long) if count and too_long(count) else count  # noqa: FBT003
        if count and not kept:
            got = len(self.encode(grounded(task.messages, task.passages[:1])))
            raise _overflow(got, limit, "the question and its best passage take", "messages")
        return kept

    def _fit(self, tokens: list[int], task: ChatTask) -> Prompt:
        left = self._context_tokens - len(tokens)
        if left < 1:
            raise _overflow(len(tokens), self._context_tokens - 1, "the messages take", "messages")
        if task.max_tokens > left:
            what = f"{len(tokens)} prompt tokens and max_tokens {task.max_tokens} make"
            raise _overflow(len(tokens) + task.max_tokens, self._context_tokens, what, "max_tokens")
        limit = task.max_tokens or min(self._default_max_tokens, left)
        return Prompt(tokens=tuple(tokens), max_tokens=at_most(limit, task.ceiling.answer_tokens))


def grounded(messages: Sequence[Message], passages: Sequence[Passage]) -> tuple[Message, ...]:
    """Put the passages in front of the last question, and an example in front of the conversation.

    The best passage (the first of `passages`) stands last and has the highest number: nearest to the
    question, a small model finds it; numbered against the order, a better model miscounts. A system
    message of the client is kept, behind our own instruction.
    """
    last = max((n for n, m in enumerate(messages) if m.role == "user"), default=None)
    if last is None:
        raise BadRequest("there is no user message to answer from the documents", param="messages")
    numbered = [_numbered(n, passage) for n, passage in enumerate(reversed(passages), 1)]
    asked = Message("user", "\n\n".join([*numbered, f"Question: {messages[last].content}"]))
    own = [GROUNDED_SYSTEM, *(m.content for m in messages[:1] if m.role == "system")]
    rest = messages[len(own) - 1 : last]
    return (Message("system", "\n".join(own)), *GROUNDED_EXAMPLE, *rest, asked, *messages[last + 1 :])


def _numbered(number: int, passage: Passage) -> str:
    label = passage.title or passage.source
    place = " - ".join(part for part in (label, passage.heading) if part)
    return f"[{number}] {place}: {spelled_out(passage.text.strip())}"


def _overflow(got: int, limit: int, what: str, param: str) -> ContextOverflow:
    return ContextOverflow(f"{what} {got} tokens; the limit is {limit}", param=param)
