"""The generator: conversations in, answers out token by token, several side by side.

An answer can be taken up again by another worker: the item then carries the tokens that the client's
answer already has. They are put behind the prompt where that is exact, and said again in silence where it
is not; everything (limit, usage, text, stop strings) is counted as if there had been no interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from edged.backend import (
    Detailed,
    Finish,
    Layered,
    Reaching,
    Sampling,
    TokenEvent,
    TokenSession,
    Usage,
    Variant,
)
from edged.errors import BadRequest, Cancelled, ConfigError, DeviceLost, EdgedError, from_code
from edged.layers.report import LayerReport
from edged.messages import Answer, CacheCounters, ChatTask, Citation, decoder, encode
from edged.stages.answers import Answers, greedy
from edged.stages.caches import identity_of, limit_option
from edged.stages.citations import cite, renumbered, unsupported_numbers
from edged.stages.contract import Broken, Finished, Item, Progress
from edged.stages.detokenizer import StopStrings, TextStream
from edged.stages.keeping import kept
from edged.stages.prompt import DEFAULT_MAX_TOKENS, GROUNDED_STOPS, Prompt, PromptBuilder
from edged.stages.repetition import circling

NOTHING_FOUND = "No documents matched: ingest some with `edgectl ingest PATH`."
"""The answer to a grounded question without passages; its `model` is empty, because no model spoke.

The retriever finds a nearest passage for any question unless the library is empty, so this is what an
operator sees before the first ingest. To let the model answer from memory would be an invention.
"""

UNSUPPORTED = "\n\n(No passage supports this answer.)"
"""Follows a grounded answer that no passage bears out: a model that cannot find it may well invent it."""

NOT_IN_PASSAGES = "\n\n(Not in the passages: {}.)"
"""Follows a grounded answer with numbers that no passage holds, whatever else it cites."""

PREFIX = "prefix"
"""Name of the runtime's own cache: the state of prompts' beginnings, counted in prompt tokens."""

ANSWERS = "answers"

_decode_task: Callable[[bytes | memoryview], ChatTask] = decoder(ChatTask)
Event = Progress | Finished | Broken


class _Live(msgspec.Struct):
    """One answer in the making."""

    request: int
    prompt: Prompt
    stream: TextStream
    count: int
    """Tokens of the answer so far, with those before a resumption."""
    grounded: bool
    resumed: bool
    sampling: Sampling
    question: str
    known: tuple[int, ...]
    """Tokens that the answer had when it was resumed."""
    replay: tuple[int, ...] = ()
    """Those of them that the session has still to say again."""
    kept_under: bytes = b""
    """Where the answer is to be remembered; empty for nowhere."""
    said: list[int] = msgspec.field(default_factory=list)


class Generator:
    """A token stage over any continuous-batching session.

    Of `options` it reads `max_tokens`, the length of an answer for which the client named none, and
    `answers_cache_mib`, memory for whole answers to questions that come again (0, the default: none).
    """

    OPTIONS = frozenset({"max_tokens", "answers_cache_mib"})

    def __init__(self, session: TokenSession, variant: Variant, options: Mapping[str, Any]) -> None:
        self._session = session
        self._model = variant.model
        limit = _default_max_tokens(options)
        self._prompts = PromptBuilder(
            session.vocabulary,
            session.context_tokens,
            limit,
            most_passages=variant.details.get("passages", 0),
        )
        self._reaching = session if isinstance(session, Reaching) else None
        self._layered = session if isinstance(session, Layered) else None
        self._live: dict[int, _Live] = {}
        self._settled: dict[int, list[Event]] = {}
        """Events, by request, of answers that were complete when they were admitted."""
        self._next_sequence = 0
        kept_bytes = limit_option(options, "answers_cache_mib", default_mib=0)
        self._answers = Answers(identity_of(variant, str(limit), str(session.context_tokens)), kept_bytes)
        self.details: Mapping[str, Any] = {
            "model": variant.model,
            "context_tokens": session.context_tokens,
            "max_sequences": session.max_sequences,
            "max_tokens": limit,
            "chat_template": bool(session.vocabulary.chat_template),
            **(session.details if isinstance(session, Detailed) else {}),
        }

    @property
    def trouble(self) -> str:
        """See `TokenStage.trouble`."""
        return "" if self._reaching is None else self._reaching.trouble

    def layer_report(self) -> LayerReport | None:
        """See `TokenStage.layer_report`."""
        return None if self._layered is None else self._layered.layer_report()

    @property
    def room(self) -> int:
        """How many more items `admit` takes now."""
        return self._session.free_sequences

    @property
    def active(self) -> int:
        """How many items are being answered."""
        return len(self._live) + len(self._settled)

    def admit(self, item: Item, /) -> None:
        """Start an item, or raise the `EdgedError` that is its answer."""
        if item.operation != "chat":
            raise BadRequest(f"a generator answers chat, not {item.operation}", param="operation")
        task = kept(_decode_task(item.payload), item.keep)
        if task.passages_only:
            self._settled[item.request] = [Finished(item.request, encode(self._passages_of(task)))]
            return
        if task.grounded and not task.passages:
            self._settled[item.request] = _nothing_found(item)
            return
        kept_under = self._answers.key(item, task)
        if known := self._answers.recall(item.request, kept_under):
            self._settled[item.request] = [*known]
            return
        live = self._begin(item, task)
        live.kept_under = kept_under
        if live.stream.stopped or live.count >= live.prompt.max_tokens:
            self._settled[item.request] = self._finish(live, "stop" if live.stream.stopped else "length")
            return
        self._start(live)

    def _passages_of(self, task: ChatTask) -> Answer:
        """What an answer would be written from, by the prompt that it would get."""
        prompt = self._prompts.build(task)
        return Answer(
            text="",
            finish="stop",
            prompt_tokens=len(prompt.tokens),
            completion_tokens=0,
            model=self._model,
            passages_dropped=prompt.passages_dropped,
            passages=prompt.passages[::-1],
        )

    def _begin(self, item: Item, task: ChatTask) -> _Live:
        decode = self._session.vocabulary.decode
        stops = StopStrings(task.stop, GROUNDED_STOPS if task.grounded else ())
        return _Live(
            request=item.request,
            prompt=self._prompts.build(task),
            stream=TextStream(decode, stops, item.resume_tokens, item.resume_characters),
            count=len(item.resume_tokens),
            grounded=task.grounded,
            resumed=bool(item.resume_tokens),
            sampling=task.sampling,
            question=task.messages[-1].content,
            known=item.resume_tokens,
        )

    def _start(self, live: _Live) -> None:
        """Begin the answer, or repeat it up to where it was when prefill would not be exact."""
        if live.known and not (self._session.exact_resume and greedy(live.sampling)):
            live.replay = live.known
            self._admit(live, live.prompt.tokens, live.prompt.max_tokens)
        else:
            self._start_behind_known(live)

    def _start_behind_known(self, live: _Live) -> None:
        live.replay = ()
        self._admit(live, (*live.prompt.tokens, *live.known), live.prompt.max_tokens - live.count)

    def _admit(self, live: _Live, tokens: tuple[int, ...], max_tokens: int) -> None:
        sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        self._session.admit(sequence, tokens, live.sampling, max_tokens)
        self._live[sequence] = live

    def step(self) -> list[Event]:
        """Advance by one token boundary.

        A raised `BackendError` is about the session as a whole: its worker cannot go on.
        """
        events = [event for settled in self._settled.values() for event in settled]
        self._settled.clear()
        if self._live:
            for event in self._session.step():
                events += self._take(event)
        return events

    def _take(self, event: TokenEvent) -> list[Event]:
        live = self._live.get(event.sequence)
        if live is None:
            return []
        events: list[Event] = []
        ended = True
        try:
            fresh = self._unknown(live, event)
            if fresh is None:
                return []
            events, ended = self._advance(live, fresh)
        except DeviceLost:
            raise
        except EdgedError as error:
            events.append(Broken(live.request, error))
        if ended:
            self._live.pop(event.sequence, None)  # it is gone already where starting anew was refused
            if event.finish is None:
                self._session.cancel(event.sequence)
        return events

    def _unknown(self, live: _Live, event: TokenEvent) -> TokenEvent | None:
        """What an event adds to the answer that the client has; None while it only repeats it.

        A repetition that takes another turn (arithmetic need not be the same in other company) is
        given up: the answer goes on behind the known tokens instead, by prefill.
        """
        if not live.replay or event.finish == "error":
            return event
        expected, rest = live.replay[: len(event.tokens)], live.replay[len(event.tokens) :]
        if event.tokens[: len(expected)] != expected or (event.finish and rest):
            del self._live[event.sequence]
            self._session.cancel(event.sequence)
            self._start_behind_known(live)
            return None
        live.replay = rest
        fresh = event.tokens[len(expected) :]
        last = msgspec.structs.replace(event, tokens=fresh)
        return last if fresh or event.finish else None

    def _advance(self, live: _Live, event: TokenEvent) -> tuple[list[Event], bool]:
        if event.finish == "error":
            raise from_code(
                event.code, event.error or "the runtime gave up on this sequence and did not say why"
            )
        if event.finish == "cancelled":
            raise Cancelled("the runtime cancelled this sequence")
        events: list[Event] = []
        if event.tokens:
            text = live.stream.push(event.tokens)
            events.append(Progress(live.request, live.count, event.tokens, text))
            live.count += len(event.tokens)
            live.said += event.tokens
        in_circles = live.grounded and circling(live.stream.text)
        finish: Finish | None = "stop" if live.stream.stopped or in_circles else event.finish
        return (events + self._finish(live, finish, event.usage), True) if finish else (events, False)

    def _finish(self, live: _Live, finish: Finish, usage: Usage | None = None) -> list[Event]:
        rest, text = live.stream.finish(), live.stream.text
        citations = renumbered(text, cite(text, live.prompt.passages)) if live.grounded else ()
        note = self._note(live, text, citations) if live.grounded else ""
        answer = Answer(
            text=text + note,
            finish="length" if finish == "length" else "stop",
            prompt_tokens=usage.prompt_tokens if usage else len(live.prompt.tokens),
            completion_tokens=usage.completion_tokens if usage else live.count,
            model=self._model,
            citations=citations,
            resumed=int(live.resumed),
            passages_dropped=live.prompt.passages_dropped,
        )
        tail: list[Event] = [Progress(live.request, live.count, (), rest + note)] if rest + note else []
        payload = encode(answer)
        self._answers.keep(live.kept_under, live.said, payload)
        return [*tail, Finished(live.request, payload)]

    def _note(self, live: _Live, text: str, citations: tuple[Citation, ...]) -> str:
        """What the reader must know about a grounded answer that its passages do not bear out."""
        if not citations:
            return UNSUPPORTED
        strange = unsupported_numbers(text, live.prompt.passages, live.question)
        return NOT_IN_PASSAGES.format(", ".join(strange)) if strange else ""

    def cancel(self, request: int, /) -> None:
        """Drop an item at once; no event follows."""
        self._settled.pop(request, None)
        for sequence in [n for n, live in self._live.items() if live.request == request]:
            del self._live[sequence]
            self._session.cancel(sequence)

    def set_cores(self, count: int) -> None:
        """See `Housekeeping.set_cores`."""
        self._session.set_threads(count)

    def cache_counters(self) -> dict[str, CacheCounters]:
        """See `Housekeeping.cache_counters`."""
        counters = self._answers.counters
        kept = {ANSWERS: counters} if counters.limit_bytes else {}
        found, asked, held = self._session.prefix_counters()
        prefix = CacheCounters(entries=0, bytes=held, limit_bytes=0, hits=found, misses=asked - found)
        return kept | ({PREFIX: prefix} if asked else {})

    def clear_caches(self, names: Collection[str]) -> None:
        """See `Housekeeping.clear_caches`."""
        if not names or ANSWERS in names:
            self._answers.clear()
        if not names or PREFIX in names:
            self._session.clear_prefixes()

    def close(self) -> None:
        """Give memory back; idempotent."""
        self._live.clear()
        self._settled.clear()
        self._session.close()


def _default_max_tokens(options: Mapping[str, Any]) -> int:
    limit = options.get("max_tokens", DEFAULT_MAX_TOKENS)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ConfigError(
            f"max_tokens must be a whole number of at least 1, not {limit!r}", param="max_tokens"
        )
    return limit


def _nothing_found(item: Item) -> list[Event]:
    answer = Answer(text=NOTHING_FOUND, finish="stop", prompt_tokens=0, completion_tokens=0, model="")
    rest = NOTHING_FOUND[item.resume_characters :]
    progress: list[Event] = [Progress(item.request, 0, (), rest)] if rest else []
    return [*progress, Finished(item.request, encode(answer))]
