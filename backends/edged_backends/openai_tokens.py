"""A `TokenSession` over an OpenAI-compatible server: sequences are requests, steps listen to all of them.

The event loop of the connections runs inside `step` and nowhere else, in the caller's thread: who does not
step does not read, and the server waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from edged.backend import Sampling, TokenEvent, Vocabulary
from edged.breaker import Breaker
from edged.errors import BackendError, ConfigError, ContextOverflow, EdgedError, StageUnavailable, Upstream
from edged_backends.openai_answer import Conversation, Task, logger
from edged_backends.openai_http import Server, Target
from edged_backends.openai_request import DIALECTS, sampling_fields
from edged_backends.openai_vocabulary import PieceVocabulary, asked

LISTEN_S = 0.02
"""How long a step waits for a word: so long may a cancellation wait for its step."""
PAUSE_S = 0.5
"""Steps further apart than this are a pause of ours, for which no server is blamed."""
CLOSE_S = 0.5
"""How long a connection may take to close in an orderly way."""
DEFAULT_CONTEXT_TOKENS = 4096


class Shape(NamedTuple):
    """The dimensions of a session."""

    dialect: str
    max_sequences: int
    context_tokens: int
    """0: as the server says, else `DEFAULT_CONTEXT_TOKENS`."""
    tries: int


class _Live(NamedTuple):
    conversation: Conversation
    work: asyncio.Task[None]


class OpenaiTokenSession:
    """Sequences of one server, side by side."""

    def __init__(self, target: Target, shape: Shape, breaker: Breaker) -> None:
        self.vocabulary: Vocabulary = PieceVocabulary()
        self.max_sequences = shape.max_sequences
        self.context_tokens = shape.context_tokens or DEFAULT_CONTEXT_TOKENS
        self._dialect = DIALECTS[shape.dialect]
        self.exact_resume = not self._dialect.continues
        self._shape, self._target, self._breaker = shape, target, breaker
        self._live: dict[int, _Live] = {}
        self._server = Server(target, lambda: self._paused_s)
        self._loop: asyncio.AbstractEventLoop | None = asyncio.new_event_loop()
        self._news = asyncio.Event()
        self._stepped_at_s = time.monotonic()
        self._paused_s = 0.0
        self._asked_tokens = self._cached_tokens = 0

    @property
    def trouble(self) -> str:
        """What keeps the server from being asked, as a sentence; empty when nothing does."""
        if self._breaker.state == "closed":
            return ""
        return f"circuit breaker {self._breaker.state}: {self._breaker.reason}"

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        return self.max_sequences - len(self._live)

    def greet(self) -> None:
        """Ask what the server serves; `ConfigError` when it does not take the key. It may be down for now."""
        loop = self._open_loop()
        try:
            models = loop.run_until_complete(self._server.models())
        except Upstream as error:
            raise ConfigError(error.message, param="api_key_file") from error
        except EdgedError as error:
            self._breaker.failed(time.monotonic(), error.message, self._breaker.first_wait_s)
            logger.warning("server does not answer yet", extra={"why": error.message})
            return
        names = [str(model.get("id", "")) for model in models]
        if names and self._target.model not in names:
            logger.warning("server does not list the model", extra={"model": self._target.model})
        told: dict[str, Any] = next((model for model in models if model.get("id") == self._target.model), {})
        if not self._shape.context_tokens and isinstance(told.get("max_model_len"), int):
            self.context_tokens = told["max_model_len"]

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """Start a sequence; see `TokenSession.admit`.

        `UnsupportedField` names sampling that the server cannot honour; `StageUnavailable` when the breaker
        is open.
        """
        loop = self._open_loop()
        self._check(sequence, prompt, max_tokens)
        fields = sampling_fields(sampling, self._dialect, self._shape.dialect)
        task = Task(sequence, asked(prompt), {"model": self._target.model, **fields}, max_tokens)
        if not self._breaker.begin(time.monotonic()):
            wait_s = max(1.0, self._breaker.refusal_s(time.monotonic()))
            raise StageUnavailable(f"{self.trouble}; try again in {wait_s:.0f} s", retry_after_s=wait_s)
        conversation = Conversation(task, self._server, self._dialect, self._breaker)
        work = loop.create_task(conversation.run(self._shape.tries, self._news.set))
        self._live[sequence] = _Live(conversation, work)

    def step(self) -> list[TokenEvent]:
        """Listen for a moment, give each sequence's next token; see `TokenSession.step`."""
        loop = self._open_loop()
        if not self._live:
            return []
        now_s = time.monotonic()
        if now_s - self._stepped_at_s > PAUSE_S:
            self._paused_s += now_s - self._stepped_at_s
        patience_s = (
            0.0 if any(not live.conversation.events.empty() for live in self._live.values()) else LISTEN_S
        )
        loop.run_until_complete(self._listen(patience_s))
        self._stepped_at_s = time.monotonic()
        return [event for live in list(self._live.values()) if (event := self._next(live))]

    def cancel(self, sequence: int, /) -> None:
        """Close the sequence's connection at once; no event follows. Unknown numbers are ignored."""
        live = self._live.pop(sequence, None)
        if live is None:
            return
        if live.conversation.probing:
            self._breaker.abandoned()
        live.work.cancel()
        self._open_loop().run_until_complete(asyncio.wait({live.work}, timeout=CLOSE_S))

    def prefix_counters(self) -> tuple[int, int, int]:
        """See `TokenSession.prefix_counters`; as far as the server tells, in its own tokens."""
        return self._cached_tokens, self._asked_tokens, 0

    def clear_prefixes(self) -> None:
        """See `TokenSession.clear_prefixes`: the server's cache is the server's."""

    def set_threads(self, _count: int, /) -> bool:
        """See `TokenSession.set_threads`: the work is done elsewhere."""
        return False

    def close(self) -> None:
        """Close every connection; idempotent."""
        if self._loop is None:
            return
        for sequence in list(self._live):
            self.cancel(sequence)
        self._loop.run_until_complete(self._server.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        self._loop = None

    async def _listen(self, patience_s: float) -> None:
        self._news.clear()
        if not patience_s:
            await asyncio.sleep(0)
            return
        waiting = asyncio.ensure_future(self._news.wait())
        await asyncio.wait({waiting}, timeout=patience_s)
        waiting.cancel()

    def _next(self, live: _Live) -> TokenEvent | None:
        if live.conversation.events.empty():
            if live.work.done():  # no foreign exception ends in silence
                live.work.result()
            return None
        event = live.conversation.events.get_nowait()
        if event.finish:
            del self._live[event.sequence]
            ending = live.conversation.ending
            self._asked_tokens += ending.usage.prompt_tokens if ending.usage else 0
            self._cached_tokens += ending.cached_tokens
        return event

    def _check(self, sequence: int, prompt: Sequence[int], max_tokens: int) -> None:
        if not prompt or max_tokens < 1:
            raise BackendError("a sequence needs a prompt and room for at least one token")
        if sequence in self._live:
            raise BackendError(f"sequence {sequence} is alive already")
        if not self.free_sequences:
            raise BackendError(f"all {self.max_sequences} sequences of this stage are taken")
        if len(prompt) + max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"about {len(prompt)} prompt + {max_tokens} new tokens exceed the context "
                f"of {self.context_tokens}"
            )

    def _open_loop(self) -> Any:
        if self._loop is None:
            raise BackendError("the session is closed")
        return self._loop
