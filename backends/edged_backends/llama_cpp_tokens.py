"""Continuous batching over llama.cpp's low-level batch API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edged.backend import Sampling, TokenEvent, Vocabulary
from edged.errors import BackendError, ContextOverflow
from edged_backends.llama_cpp_runtime import free_model, runtime
from edged_backends.llama_cpp_sampler import Sampler
from edged_backends.llama_cpp_vocabulary import LlamaVocabulary


class Shape(NamedTuple):
    """The dimensions of a session."""

    context_tokens: int
    max_sequences: int
    batch_tokens: int
    sequence_rows: int
    """Most tokens of one sequence in one batch."""


class _Sequence(msgspec.Struct, eq=False):
    """A live sequence: `done` of its `tokens` are in the KV cache of its slot."""

    number: int
    slot: int
    tokens: list[int]
    end: int
    """Length of prompt and answer at which it ends."""
    sampler: Sampler
    done: int = 0

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


def shares(backlogs: Sequence[int], budget: int) -> list[int]:
    """Divide the tokens of a batch: one each, then evenly; nobody gets more than its backlog.

    What a short one leaves is divided among the others. `budget` is at least one each.

    >>> shares([1, 1, 500, 20], 100)
    [1, 1, 78, 20]
    """
    given = [0] * len(backlogs)
    left = budget
    smallest_first = sorted(range(len(backlogs)), key=lambda index: backlogs[index])
    for rank, index in enumerate(smallest_first):
        given[index] = min(backlogs[index], left // (len(backlogs) - rank))
        left -= given[index]
    return given


class LlamaTokenSession:
    """Sequences that share one context, each with a KV cache of its own.

    The caches are separate streams, so a sequence can never take another's room, and the floats of an
    answer do not depend on who else runs.
    """

    def __init__(self, model: Any, context: Any, shape: Shape) -> None:
        self._vocabulary = LlamaVocabulary(model)
        self.vocabulary: Vocabulary = self._vocabulary
        self.context_tokens, self.max_sequences = shape.context_tokens, shape.max_sequences
        # Identical to the bit for short prompts; with 480 tokens on two threads 2 to 3 of 7 answers differed.
        self.exact_resume = False
        self._shape = shape
        self._model = model
        self._context = context
        self._memory: Any = runtime.llama_get_memory(context)
        self._batch = _Batch(shape.batch_tokens)
        self._live: dict[int, _Sequence] = {}
        self._free_slots = set(range(self.max_sequences))
        self._closed = False

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        return len(self._free_slots)

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """Start a sequence; `ContextOverflow` when prompt and new tokens exceed `context_tokens`.

        Under one seed a sampled sequence, too, goes on as it would have when it is resumed.
        """
        self._check(sequence, prompt, max_tokens)
        slot = min(self._free_slots)
        sampler = Sampler(sampling, self._vocabulary.size, prompt, self.context_tokens)
        self._free_slots.remove(slot)
        self._live[sequence] = _Sequence(sequence, slot, list(prompt), len(prompt) + max_tokens, sampler)

    def step(self) -> list[TokenEvent]:
        """Advance every live sequence by one token or by a share of its prompt."""
        self._require_open()
        parts = self._plan()
        if not parts:
            return []
        status = self._decode(parts)
        if status == 0:
            return self._sample(parts)
        return self._decode_apart(parts)

    def cancel(self, sequence: int, /) -> None:
        """Forget a sequence and free its KV cache at once; unknown numbers are ignored."""
        if sequence in self._live:
            self._release(self._live[sequence])

    def close(self) -> None:
        """Give the memory back; idempotent."""
        if self._closed:
            return
        self._closed = True
        for sequence in list(self._live.values()):
            self._release(sequence)
        self._batch.close()
        runtime.llama_free(self._context)
        free_model(self._model)

    def _check(self, sequence: int, prompt: Sequence[int], max_tokens: int) -> None:
        self._require_open()
        if sequence in self._live:
            raise BackendError(f"sequence {sequence} is alive already")
        if not self._free_slots:
            raise BackendError(f"all {self.max_sequences} sequences are taken")
        if not prompt or max_tokens < 1:
            raise BackendError("a sequence needs a prompt and at least one new token")
        if len(prompt) + max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"{len(prompt)} prompt tokens and {max_tokens} new ones exceed the context "
                f"of {self.context_tokens} tokens"
            )
        self._vocabulary.check(prompt)

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError("the session is closed")

    def _plan(self) -> list[_Part]:
        live = sorted(self._live.values(), key=lambda sequence: sequence.slot)
        backlogs = [min(sequence.backlog, self._shape.sequence_rows) for sequence in live]
        takes = shares(backlogs, self._shape.batch_tokens)
        return [_Part(sequence, take) for sequence, take in zip(live, takes, strict=True)]

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
        token = sequence.sampler.sample(self._context, row, len(sequence.tokens))
        if self._vocabulary.ends(token):
            self._release(sequence)
            return TokenEvent(sequence.number, finish="stop")
        sequence.tokens.append(token)
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
        runtime.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        sequence.sampler.close()
        del self._live[sequence.number]
        self._free_slots.add(sequence.slot)


class _Batch:
    """A `llama_batch` that is filled through numpy views of its arrays."""

    def __init__(self, capacity: int) -> None:
        self.native: Any = runtime.llama_batch_init(capacity, 0, 1)
        shape = (capacity,)
        self._tokens = np.ctypeslib.as_array(self.native.token, shape)
        self._positions = np.ctypeslib.as_array(self.native.pos, shape)
        self._counts = np.ctypeslib.as_array(self.native.n_seq_id, shape)
        self._wanted = np.ctypeslib.as_array(self.native.logits, shape)
        self._counts[:] = 1

    def clear(self) -> None:
        self.native.n_tokens = 0

    def add(self, slot: int, tokens: Sequence[int], position: int) -> None:
        """Append tokens of one sequence; logits are wanted for the last."""
        first = self.native.n_tokens
        last = first + len(tokens)
        self._tokens[first:last] = tokens
        self._positions[first:last] = np.arange(position, position + len(tokens))
        self._wanted[first:last] = 0
        self._wanted[last - 1] = 1
        for row in range(first, last):
            self.native.seq_id[row][0] = slot
        self.native.n_tokens = last

    def close(self) -> None:
        runtime.llama_batch_free(self.native)
