"""Continuous batching over llama.cpp's low-level batch API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from edged.backend import Sampling, TokenEvent, Vocabulary
from edged.errors import BackendError, BadRequest, ContextOverflow, DeviceLost
from edged.prefill import shares
from edged_backends.llama_cpp_batch import TokenBatch
from edged_backends.llama_cpp_runtime import free_model, runtime
from edged_backends.llama_cpp_sampler import Sampler
from edged_backends.llama_cpp_slots import Slots
from edged_backends.llama_cpp_vocabulary import LlamaVocabulary

_FAILED = -3
"""What `llama_decode` returns when a device refused to compute (`GGML_STATUS_FAILED`).

A driver that reports an error mostly ends the process instead (`ggml_abort`, or an exception of Vulkan that
nobody catches): the daemon takes SIGABRT of a worker on an accelerator for the same. Neither was ever seen on
hardware here.
"""


class Shape(NamedTuple):
    """The dimensions of a session."""

    context_tokens: int
    max_sequences: int
    slots: int
    """Sequences of the KV cache: those that can live, and room for what ended ones leave."""
    batch_tokens: int
    """Most tokens of a step while no answer runs."""
    running_batch_tokens: int
    """Most tokens of a step while answers run: it bounds the gap between two of their tokens."""
    prefix_bytes: int
    exact: bool
    """Whether a row is computed alike whatever stands beside it."""
    accelerated: bool
    """Whether another device than the CPU computes, which can be lost."""
    most_threads: int = 0
    """However many cores are lent; 0: as many as those."""


class _Sequence(msgspec.Struct, eq=False):
    """A live sequence: `done` of its `tokens` are in the KV cache of its slot."""

    number: int
    slot: int
    tokens: list[int]
    end: int
    """Length of prompt and answer at which it ends."""
    sampler: Sampler
    done: int
    running: bool = False
    """Whether its answer has begun."""

    @property
    def backlog(self) -> int:
        return len(self.tokens) - self.done


class _Part(NamedTuple):
    """What one decode does for one sequence: its next `take` tokens."""

    sequence: _Sequence
    take: int

    @property
    def complete(self) -> bool:
        """Whether logits of the last token are due."""
        return self.take == self.sequence.backlog


class LlamaTokenSession:
    """Sequences that share one context, each with a KV cache of its own.

    The caches are separate streams, so a sequence can never take another's room. One step reads at most a
    budget of tokens, every running answer first and the prompts as `edged.prefill` says, so that a long
    prompt neither stalls the answers nor keeps a short one waiting.
    """

    def __init__(
        self, model: Any, context: Any, shape: Shape, details: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._vocabulary = LlamaVocabulary(model)
        self.vocabulary: Vocabulary = self._vocabulary
        self.context_tokens, self.max_sequences = shape.context_tokens, shape.max_sequences
        self.exact_resume = shape.exact
        self.details = details
        self._shape = shape
        self._model = model
        self._context = context
        self._memory: Any = runtime.llama_get_memory(context)
        self._batch = TokenBatch(shape.batch_tokens)
        self._live: dict[int, _Sequence] = {}
        self._slots = Slots(shape.slots, shape.prefix_bytes, kv_token_bytes(model))
        self._closed = False

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        return self.max_sequences - len(self._live)

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """Start a sequence; `ContextOverflow` when prompt and new tokens exceed `context_tokens`.

        What a live or an ended sequence has computed of the same beginning is copied. `BadRequest` for a
        `logit_bias` of a token that the vocabulary lacks.
        """
        self._check(sequence, prompt, sampling, max_tokens)
        tokens = list(prompt)
        slot, shared = self._claim(tokens)
        sampler = Sampler(sampling, self._vocabulary.size)
        self._live[sequence] = _Sequence(sequence, slot, tokens, len(tokens) + max_tokens, sampler, shared)

    def step(self) -> list[TokenEvent]:
        """Advance every live sequence by one token or by a share of its prompt."""
        self._require_open()
        parts = self._plan()
        if not parts:
            return []
        status = self._decode(parts)
        if status == 0:
            return self._sample(parts)
        if status == _FAILED and self._shape.accelerated:
            raise DeviceLost(f"llama_decode returned {status}: the accelerator no longer computes")
        return self._decode_apart(parts)

    def cancel(self, sequence: int, /) -> None:
        """Forget a sequence and free its KV cache at once; unknown numbers are ignored."""
        if sequence in self._live:
            self._release(self._live[sequence])

    def prefix_counters(self) -> tuple[int, int, int]:
        """See `TokenSession.prefix_counters`; bytes are of keys and values kept beside live sequences."""
        return self._slots.found, self._slots.asked, self._slots.held_bytes

    def clear_prefixes(self) -> None:
        """See `TokenSession.clear_prefixes`."""
        for slot in self._slots.clear():
            self._empty(slot)

    def set_threads(self, count: int, /) -> bool:
        """See `TokenSession.set_threads`; the tokens do not depend on it."""
        self._require_open()
        count = min(count, self._shape.most_threads or count)
        runtime.llama_set_n_threads(self._context, count, count)
        return True

    def close(self) -> None:
        """Give the memory back; idempotent."""
        if self._closed:
            return
        self._closed = True
        for sequence in self._live.values():
            sequence.sampler.close()
        self._live.clear()
        self._batch.close()
        runtime.llama_free(self._context)
        free_model(self._model)

    def _claim(self, tokens: list[int]) -> tuple[int, int]:
        """Take a slot that holds the known beginning of `tokens`; give it and the length of that."""
        live = {other.slot: other.tokens[: other.done] for other in self._live.values()}
        slot, source, shared = self._slots.claim(tokens, live)
        if slot != source:
            self._empty(slot)
            if shared:
                # Between streams llama.cpp copies whole sequences only; the rest is cut off behind.
                runtime.llama_memory_seq_cp(self._memory, source, slot, -1, -1)
        if shared:
            runtime.llama_memory_seq_rm(self._memory, slot, shared, -1)
        return slot, shared

    def _empty(self, slot: int) -> None:
        runtime.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def _check(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> None:
        self._require_open()
        if sequence in self._live:
            raise BackendError(f"sequence {sequence} is alive already")
        if not self.free_sequences:
            raise BackendError(f"all {self.max_sequences} sequences are taken")
        if not prompt or max_tokens < 1:
            raise BackendError("a sequence needs a prompt and at least one new token")
        if len(prompt) + max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"{len(prompt)} prompt tokens and {max_tokens} new ones exceed the context "
                f"of {self.context_tokens} tokens"
            )
        self._vocabulary.check(prompt)
        if strange := [token for token in sampling.logit_bias if token >= self._vocabulary.size]:
            raise BadRequest(
                f"token {strange[0]} is outside the vocabulary of {self._vocabulary.size} tokens",
                param="logit_bias",
            )

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError("the session is closed")

    def _plan(self) -> list[_Part]:
        running = [sequence for sequence in self._live.values() if sequence.running]
        reading = [sequence for sequence in self._live.values() if not sequence.running]
        budget = self._shape.running_batch_tokens if running else self._shape.batch_tokens
        takes = shares([sequence.backlog for sequence in reading], budget - len(running))
        planned = [_Part(sequence, 1) for sequence in running]
        planned += [_Part(sequence, take) for sequence, take in zip(reading, takes, strict=True) if take]
        return sorted(planned, key=lambda part: part.sequence.slot)

    def _decode(self, parts: Sequence[_Part]) -> int:
        self._batch.clear()
        for sequence, take in parts:
            self._batch.add(
                sequence.slot, sequence.tokens[sequence.done : sequence.done + take], sequence.done
            )
        return int(runtime.llama_decode(self._context, self._batch.native))

    def _sample(self, parts: Sequence[_Part]) -> list[TokenEvent]:
        """Choose the next token of every sequence whose prompt is complete."""
        events, row = [], -1
        for part in parts:
            row += part.take
            complete = part.complete
            part.sequence.done += part.take
            if complete:
                events.append(self._extend(part.sequence, row))
        return events

    def _extend(self, sequence: _Sequence, row: int) -> TokenEvent:
        token = sequence.sampler.sample(self._context, row)
        if self._vocabulary.ends(token):
            self._release(sequence)
            return TokenEvent(sequence.number, finish="stop")
        sequence.tokens.append(token)
        sequence.running = True
        if len(sequence.tokens) < sequence.end:
            return TokenEvent(sequence.number, (token,))
        self._release(sequence)
        return TokenEvent(sequence.number, (token,), "length")

    def _decode_apart(self, parts: Sequence[_Part]) -> list[TokenEvent]:
        """After a refused batch: each sequence alone, so that only the culprit fails."""
        events: list[TokenEvent] = []
        for part in parts:
            self._rewind(part.sequence)
        for part in parts:
            status = self._decode([part])
            events += self._sample([part]) if status == 0 else [self._fail(part.sequence, status)]
        return events

    def _rewind(self, sequence: _Sequence) -> None:
        """Drop what a failed decode may have left behind the known length."""
        runtime.llama_memory_seq_rm(self._memory, sequence.slot, sequence.done, -1)

    def _fail(self, sequence: _Sequence, status: int) -> TokenEvent:
        self._release(sequence)
        reason = "no room in the KV cache" if status == 1 else "the computation failed"
        message = f"llama_decode returned {status} at token {sequence.done}: {reason}"
        return TokenEvent(sequence.number, finish="error", error=message)

    def _release(self, sequence: _Sequence) -> None:
        """End a sequence; what it has computed stays, as a prefix for others."""
        sequence.sampler.close()
        del self._live[sequence.number]
        for slot in self._slots.keep(sequence.slot, sequence.tokens[: sequence.done]):
            self._empty(slot)


def kv_token_bytes(model: Any) -> int:
    """Bytes of keys and values of one token in 16 bits, over all layers."""
    heads = int(runtime.llama_model_n_head_kv(model))
    head_width = int(runtime.llama_model_n_embd(model)) // int(runtime.llama_model_n_head(model))
    return int(runtime.llama_model_n_layer(model)) * heads * head_width * 2 * 2
