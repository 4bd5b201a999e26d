"""Tokens through OpenVINO GenAI: continuous batching over a GGUF file.

Sequences are given as token ids and read back as token ids, one per step. The engine keeps the KV cache of
earlier prompts (prefix caching), so a shared beginning is computed once.

Only the CPU has been run. On an NPU, GenAI has no continuous batching: such a device is opened with one
sequence at a time by this same code, which could not be tried for want of the hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edged.backend import Finish, Sampling, TokenEvent, Variant, Vocabulary
from edged.errors import BackendError, ContextOverflow, DeviceLost, UnsupportedField
from edged.prefill import shares
from edged_backends.openvino_devices import ERRORS, translated
from edged_backends.openvino_prefixes import BLOCK_TOKENS, PrefixBooks
from edged_backends.openvino_runtime import genai, ov
from edged_backends.openvino_vocabulary import OpenvinoVocabulary

_RUNS_ON = genai.GenerationFinishReason.NONE


class _Live(msgspec.Struct, eq=False):
    """A sequence: its prompt is being read, part by part, or the engine is answering it."""

    tokens: list[int]
    prompt_tokens: int
    config: Any
    read: int = 0
    """Prompt tokens that the engine has computed, as far as whole blocks go."""
    handle: Any = None
    """Of the part being read, or of the answer."""
    answering: bool = False


class Shape(NamedTuple):
    """The dimensions of a session."""

    context_tokens: int
    max_sequences: int
    batch_tokens: int
    running_batch_tokens: int
    exact: bool
    prefixes: bool


class OpenvinoTokens:
    """A `TokenSession` over one continuous-batching pipeline.

    The engine itself reads prompts first come, first served, in steps of one fixed size. So it is given a
    prompt part by part, each a request for one token that is thrown away, and finds the parts before in its
    prefix cache: the parts of all prompts share a step, and are smaller while answers run.
    """

    def __init__(self, load: Callable[[], Any], variant: Variant, shape: Shape) -> None:
        self._load = load
        self._engine: Any = load()
        vocabulary = OpenvinoVocabulary(self._engine.get_tokenizer())
        self.vocabulary: Vocabulary = vocabulary
        self._stops = vocabulary.stops
        self.context_tokens, self.max_sequences = shape.context_tokens, shape.max_sequences
        self.exact_resume = shape.exact
        self._shape = shape
        self._model = f"{variant.model} {variant.name}"
        self._live: dict[int, _Live] = {}
        self._requests = 0
        self._stale = False
        self._books = PrefixBooks(*self._blocks())

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        return self.max_sequences - len(self._live)

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """Start a sequence; see `TokenSession.admit`. `UnsupportedField` for a `logit_bias`."""
        self._check(sequence, prompt, sampling, max_tokens)
        if self._stale and not self._live:
            self._renew()
        config = generation_config(sampling, max_tokens, self._stops)
        known = self._books.look_up(prompt) if self._shape.prefixes else 0
        live = _Live(list(prompt), len(prompt), config, known)
        if not self._shape.prefixes:
            self._answer(live)
        self._live[sequence] = live

    def step(self) -> list[TokenEvent]:
        """Advance every live sequence by at most one token; see `TokenSession.step`."""
        engine = self._open_engine()
        try:
            self._read_on()
            if engine.has_non_finished_requests():
                engine.step()
            events = [self._take(sequence, live) for sequence, live in self._live.items()]
        except ERRORS as error:
            raise translated(error, f"openvino failed in a step of {self._model}") from error
        for event in events:
            if event.finish:
                self._forget(event.sequence)
        return [event for event in events if event.tokens or event.finish]

    def cancel(self, sequence: int, /) -> None:
        """Forget a sequence at once; no event follows. Unknown numbers are ignored."""
        live = self._live.get(sequence)
        if live is None:
            return
        if live.handle is not None:
            live.handle.cancel()
        self._forget(sequence)
        if not self._live and self._engine.has_non_finished_requests():
            self._engine.step()  # the engine frees the blocks of a cancelled request in its next step

    def prefix_counters(self) -> tuple[int, int, int]:
        """See `TokenSession.prefix_counters`; by our own books, of whole blocks, rather less than more."""
        return self._books.found, self._books.asked, self._books.held_bytes

    def clear_prefixes(self) -> None:
        """See `TokenSession.clear_prefixes`: loads the engine anew, when the last live sequence is gone."""
        self._books.clear()
        self._stale = self._shape.prefixes
        if self._stale and not self._live:
            self._renew()

    def set_threads(self, _count: int, /) -> bool:
        """See `TokenSession.set_threads`: this engine keeps the threads that it was opened with."""
        return False

    def close(self) -> None:
        """Give the memory back; idempotent."""
        for sequence in list(self._live):
            self.cancel(sequence)
        self._engine = None

    def _renew(self) -> None:
        self._books.clear()
        self._engine, self._stale = None, False
        try:
            self._engine = self._load()
        except (*ERRORS, BackendError) as error:  # without an engine this process is good for nothing
            raise DeviceLost(f"openvino cannot load {self._model} again: {error}") from error

    def _blocks(self) -> tuple[int, int]:
        """How many blocks the KV cache has, and their size: one token takes one of them."""
        handle = self._request([next(iter(self._stops))], _part_config())
        self._engine.step()
        handle.read_all()
        metrics = self._engine.get_metrics()
        blocks = round(100 / metrics.cache_usage) if metrics.cache_usage else 0
        return blocks, metrics.cache_size_in_bytes // max(1, blocks)

    def _read_on(self) -> None:
        """Give the engine the next parts of the prompts: see `edged.prefill`."""
        reading = [live for live in self._live.values() if not live.answering and live.handle is None]
        running = any(live.answering for live in self._live.values())
        budget = self._shape.running_batch_tokens if running else self._shape.batch_tokens
        takes = shares([live.prompt_tokens - live.read for live in reading], budget, BLOCK_TOKENS)
        for live, take in zip(reading, takes, strict=True):
            if live.read + take == live.prompt_tokens:
                self._answer(live)
            elif take:
                live.read += take
                live.handle = self._request(live.tokens[: live.read], _part_config())

    def _answer(self, live: _Live) -> None:
        live.handle, live.answering = self._request(live.tokens, live.config), True

    def _request(self, tokens: Sequence[int], config: Any) -> Any:
        self._requests += 1
        try:
            return self._engine.add_request(
                self._requests, ov.Tensor(np.array([tokens], dtype=np.int64)), config
            )
        except ERRORS as error:
            raise translated(error, f"openvino does not take the sequence for {self._model}") from error

    def _forget(self, sequence: int) -> None:
        live = self._live.pop(sequence)
        if live.answering and len(live.tokens) > live.prompt_tokens:
            self._note(live)

    def _note(self, live: _Live) -> None:
        """Book what the engine has computed of a sequence: all but its last token."""
        if self._shape.prefixes:
            taken = sum(len(other.tokens) for other in self._live.values() if other is not live)
            self._books.add(live.tokens[:-1], taken)

    def _open_engine(self) -> Any:
        if self._engine is None:
            raise BackendError(f"the session of {self._model} is closed")
        return self._engine

    def _check(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> None:
        self._open_engine()
        if sampling.logit_bias:
            raise UnsupportedField(
                "the backend openvino has no logit_bias; leave it out, or serve the model with llama_cpp",
                param="logit_bias",
            )
        if not prompt or max_tokens < 1:
            raise BackendError("a sequence needs a prompt and room for at least one token")
        if sequence in self._live:
            raise BackendError(f"sequence {sequence} is alive already")
        if not self.free_sequences:
            raise BackendError(f"all {self.max_sequences} sequences of {self._model} are taken")
        if len(prompt) + max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"{len(prompt)} prompt + {max_tokens} new tokens exceed the context of {self.context_tokens}"
            )

    def _take(self, sequence: int, live: _Live) -> TokenEvent:
        """What the engine has to say about a sequence; a part that is read says nothing."""
        if live.handle is None:
            return TokenEvent(sequence)
        event = self._read(sequence, live.handle)
        if live.answering:
            first = len(live.tokens) == live.prompt_tokens
            live.tokens += event.tokens
            if first and event.tokens:
                self._note(live)
            return event
        if event.finish:
            live.handle = None
        return event if event.finish == "error" else TokenEvent(sequence)

    def _read(self, sequence: int, handle: Any) -> TokenEvent:
        tokens: list[int] = []
        reason = _RUNS_ON
        while handle.can_read():
            for output in handle.read().values():
                tokens.extend(output.generated_ids)
                reason = output.finish_reason
        if not tokens and handle.get_status() == genai.GenerationStatus.IGNORED:
            return TokenEvent(sequence, (), "error", "the KV cache is full: raise cache_size_mib")
        if reason == _RUNS_ON:
            return TokenEvent(sequence, tuple(tokens))
        if reason == genai.GenerationFinishReason.STOP:
            return TokenEvent(sequence, tuple(t for t in tokens if t not in self._stops), "stop")
        finish: Finish | None = "length" if reason == genai.GenerationFinishReason.LENGTH else None
        return TokenEvent(sequence, tuple(tokens), finish)


def _part_config() -> Any:
    return genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)


def generation_config(sampling: Sampling, max_tokens: int, stops: frozenset[int]) -> Any:
    """Say the sampling in GenAI's words; temperature 0 is greedy."""
    config = genai.GenerationConfig(
        max_new_tokens=max_tokens,
        stop_token_ids=set(stops),
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
    )
    if sampling.temperature > 0:
        config.update_generation_config(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            rng_seed=sampling.seed,
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
        )
    return config
