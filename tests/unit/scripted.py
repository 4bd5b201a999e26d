"""A session that says what a test has written down, and a generator over it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from edged.backend import Sampling, TokenEvent, Variant
from edged.errors import BackendError
from edged.messages import Answer, ChatTask, Message, Passage, decoder, encode
from edged.stages.contract import Broken, Finished, Item, Progress
from edged.stages.generator import Generator

VARIANT = Variant(model="scripted", name="q4", task="generate", format="gguf", path=Path("none"))
START, END = 256, 257
REPLY = "Hold the recessed button for 12 s ½😀.\nThen wait."
GATEWAY = Passage(id=7, text="To reset, hold the recessed button for 12 s.", source="manual.md")


class Vocabulary:
    """A byte a token; control tokens for the turns."""

    chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    beginning = ""
    end = "<|im_end|>"

    def encode(self, text: str, /, *, special: bool) -> list[int]:
        parts = re.split(r"(<\|im_start\|>|<\|im_end\|>)", text) if special else [text]
        control = {"<|im_start|>": [START], "<|im_end|>": [END]}
        return [t for part in parts for t in (control.get(part, []) if special else []) or part.encode()]

    def decode(self, tokens: Sequence[int], /) -> str:
        if -1 in tokens:
            raise BackendError("token -1 is outside the vocabulary")
        return bytes(t for t in tokens if t < 256).decode("utf-8", "replace")


class Scripted:
    """Continues every prompt with what is missing of the reply: resumable as a greedy model is."""

    def __init__(
        self, reply: str = REPLY, context: int = 2_000, *, per_event: int = 1, exact: bool = True
    ) -> None:
        self.vocabulary = Vocabulary()
        self.context_tokens = context
        self.max_sequences = 4
        self.exact_resume = exact
        self.reply = reply.encode()
        self.per_event = per_event
        self.live: dict[int, tuple[int, int]] = {}
        """Sequence to tokens of the reply already there, and where it must end."""
        self.admitted: list[tuple[list[int], Sampling, int]] = []
        self.inject: Callable[[int], TokenEvent | None] = lambda sequence: None
        self.closed = False

    @property
    def free_sequences(self) -> int:
        return self.max_sequences - len(self.live)

    def prefix_counters(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def clear_prefixes(self) -> None:
        pass

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        if not self.free_sequences:
            raise BackendError("full")
        tokens = list(prompt)
        begin = len(tokens) - tokens[::-1].index(START) + len("assistant\n")
        self.live[sequence] = (len(tokens) - begin, len(tokens) - begin + max_tokens)
        self.admitted.append((tokens, sampling, max_tokens))

    def step(self) -> list[TokenEvent]:
        return [self.inject(sequence) or self.advance(sequence) for sequence in list(self.live)]

    def advance(self, sequence: int) -> TokenEvent:
        at, end = self.live[sequence]
        tokens = tuple(self.reply[at : min(at + self.per_event, end)])
        at += len(tokens)
        finish = "length" if at == end else "stop" if at == len(self.reply) else None
        self.live[sequence] = (at, end)
        if finish:
            del self.live[sequence]
        return TokenEvent(sequence, tokens, finish)

    def cancel(self, sequence: int, /) -> None:
        self.live.pop(sequence, None)

    def close(self) -> None:
        self.closed = True


def item(request: int = 1, resume: Sequence[int] = (), characters: int = 0, **task: object) -> Item:
    fields = {"messages": (Message("user", "How do I reset it?"),)} | task
    payload = memoryview(encode(ChatTask(**fields)))  # type: ignore[arg-type]
    return Item(request, "chat", payload, 1_000, tuple(resume), characters)


def stage(session: Scripted | None = None, **options: object) -> Generator:
    return Generator(session or Scripted(), VARIANT, options)


def drain(generator: Generator) -> list[Progress | Finished | Broken]:
    events: list[Progress | Finished | Broken] = []
    while generator.active:
        events += generator.step()
    return events


def answer(event: object) -> Answer:
    assert isinstance(event, Finished), event
    return decoder(Answer)(event.payload)  # type: ignore[arg-type]


def run(generator: Generator, work: Item) -> tuple[list[Progress], Answer]:
    generator.admit(work)
    *progress, last = drain(generator)
    assert all(isinstance(event, Progress) for event in progress)
    return progress, answer(last)  # type: ignore[return-value]
