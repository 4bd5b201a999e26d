"""A simulated generator: every token is a pure function of all tokens before it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from edged.backend import Sampling, TokenEvent, Vocabulary
from edged.errors import BackendError, ContextOverflow
from edged.prefill import shares
from edged_backends.simulated_costs import Costs
from edged_backends.simulated_faults import Faults, Saboteur, contains
from edged_backends.simulated_prefixes import Prefixes

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
OFFSET = len(CONTROL)
"""Id of the token for byte 0."""
SIZE = OFFSET + 256
_ENDS = (0, 2)
_ALPHABET = b" abcdefghijklmnopqrstuvwxyz"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ByteVocabulary:
    """A token a byte, and ChatML's control tokens."""

    chat_template = _TEMPLATE
    beginning = CONTROL[0]
    end = CONTROL[2]

    def encode(self, text: str, /, *, special: bool) -> list[int]:
        """Tokenise; `special` says whether control tokens written in the text are recognised."""
        pieces = re.split("(" + "|".join(map(re.escape, CONTROL)) + ")", text) if special else [text]
        return [token for piece in pieces for token in _tokens(piece, special=special)]

    def decode(self, tokens: Sequence[int], /) -> str:
        """Turn ids to text, control tokens left out; an incomplete UTF-8 tail becomes U+FFFD."""
        return bytes(token - OFFSET for token in tokens if token >= OFFSET).decode("utf-8", "replace")


def _tokens(piece: str, *, special: bool) -> list[int]:
    if special and piece in CONTROL:
        return [CONTROL.index(piece)]
    return [byte + OFFSET for byte in piece.encode("utf-8", "replace")]


class Limits(NamedTuple):
    """The dimensions of a session."""

    context_tokens: int
    max_sequences: int
    batch_tokens: int
    end_one_in: int
    prefix_cache_tokens: int
    kv_token_bytes: int


class _Sequence(msgspec.Struct, eq=False):
    number: int
    prompt: list[int]
    seed: bytes
    """Mixed into every draw; empty under greedy decoding."""
    left: int
    """New tokens that it may still have."""
    state: Any
    """Running hash of all tokens so far."""
    unread: int
    """Prompt tokens that no step has read yet."""
    answer: list[int]

    @property
    def computed(self) -> list[int]:
        """The tokens that steps have read, or found: all but the last of an answer."""
        return self.prompt[: len(self.prompt) - self.unread] + self.answer[:-1]


class SimulatedTokenSession:
    """A continuous-batching engine without a model; greedy and sampled answers resume identically."""

    def __init__(self, limits: Limits, costs: Costs, saboteur: Saboteur) -> None:
        self.vocabulary: Vocabulary = ByteVocabulary()
        self.context_tokens = limits.context_tokens
        self.max_sequences = limits.max_sequences
        self.exact_resume = True
        self._limits = limits
        self._costs = costs
        self._saboteur = saboteur
        self._live: dict[int, _Sequence] = {}
        self._prefixes = Prefixes(limits.prefix_cache_tokens)
        self._closed = False

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        return self.max_sequences - len(self._live)

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """Start a sequence; of `sampling`, only the temperature (0 or not) and the seed matter."""
        self._check(sequence, prompt, max_tokens)
        seed = sampling.seed.to_bytes(4, "little") if sampling.temperature > 0 else b""
        state = blake2b(_packed(prompt), digest_size=8)
        known = self._prefixes.look_up(prompt, [other.computed for other in self._live.values()])
        unread = len(prompt) - known
        self._live[sequence] = _Sequence(sequence, list(prompt), seed, max_tokens, state, unread, [])

    def step(self) -> list[TokenEvent]:
        """Read up to `batch_tokens` of the prompts, in equal shares, and extend what is read."""
        if self._closed:
            raise BackendError("the session is closed")
        if not self._live:
            return []
        read = self._read_prompts()
        ready = [sequence for sequence in self._live.values() if not sequence.unread]
        faults = self._saboteur.working(len(ready), lambda faults: any(self._concerned(faults)))
        self._costs.spend(self._costs.step_ms(len(ready), read), self._saboteur.slow_factor())
        failed = self._fail_concerned(faults) if faults.raising == "item" else []
        alive = [sequence for sequence in ready if sequence.number in self._live]
        return failed + [self._extend(sequence, faults) for sequence in alive]

    def cancel(self, sequence: int, /) -> None:
        """Forget a sequence at once; unknown numbers are ignored."""
        if sequence in self._live:
            self._end(self._live[sequence])

    def prefix_counters(self) -> tuple[int, int, int]:
        """See `TokenSession.prefix_counters`; bytes are as declared, `kv_token_bytes` a token."""
        return self._prefixes.found, self._prefixes.asked, self._prefixes.held * self._limits.kv_token_bytes

    def clear_prefixes(self) -> None:
        """See `TokenSession.clear_prefixes`."""
        self._prefixes.clear()

    def set_threads(self, _count: int, /) -> bool:
        """See `TokenSession.set_threads`: declared costs hold for any number."""
        return False

    def close(self) -> None:
        """End the session; idempotent."""
        self._closed = True
        self._live.clear()

    def _check(self, sequence: int, prompt: Sequence[int], max_tokens: int) -> None:
        if self._closed:
            raise BackendError("the session is closed")
        if sequence in self._live or not self.free_sequences:
            raise BackendError(f"sequence {sequence} is alive already, or all {self.max_sequences} are taken")
        if not prompt or max_tokens < 1:
            raise BackendError("a sequence needs a prompt and at least one new token")
        if not all(0 <= token < SIZE for token in prompt):
            raise BackendError(f"a token is outside the vocabulary of {SIZE} tokens")
        if len(prompt) + max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"{len(prompt)} prompt tokens and {max_tokens} new ones exceed the context "
                f"of {self.context_tokens} tokens"
            )

    def _read_prompts(self) -> int:
        """Some of each, as `edged.prefill` says; how many tokens in all."""
        reading = [sequence for sequence in self._live.values() if sequence.unread]
        takes = shares([sequence.unread for sequence in reading], self._limits.batch_tokens)
        for sequence, take in zip(reading, takes, strict=True):
            sequence.unread -= take
        return sum(takes)

    def _concerned(self, faults: Faults) -> list[_Sequence]:
        """Return the sequences whose prompt holds what the faults wait for."""
        needles = (self.vocabulary.encode(faults.on_text, special=False), faults.on_tokens)
        return [
            sequence
            for sequence in self._live.values()
            if all(contains(sequence.prompt, needle) for needle in needles)
        ]

    def _fail_concerned(self, faults: Faults) -> list[TokenEvent]:
        concerned = self._concerned(faults)
        for sequence in concerned:
            self._end(sequence)
        reason = "the simulated runtime failed for this sequence, as its fault file asks"
        return [TokenEvent(sequence.number, finish="error", error=reason) for sequence in concerned]

    def _extend(self, sequence: _Sequence, faults: Faults) -> TokenEvent:
        token = OFFSET + os.urandom(1)[0] if faults.garbage else self._next(sequence)
        if token in _ENDS:
            self._end(sequence)
            return TokenEvent(sequence.number, finish="stop")
        sequence.state.update(_packed([token]))
        sequence.answer.append(token)
        sequence.left -= 1
        if sequence.left:
            return TokenEvent(sequence.number, (token,))
        self._end(sequence)
        return TokenEvent(sequence.number, (token,), "length")

    def _end(self, sequence: _Sequence) -> None:
        del self._live[sequence.number]
        self._prefixes.keep(sequence.computed)

    def _next(self, sequence: _Sequence) -> int:
        draw = sequence.state.copy()
        draw.update(sequence.seed)
        value = int.from_bytes(draw.digest(), "little")
        if self._limits.end_one_in and value % self._limits.end_one_in == 0:
            return _ENDS[1]
        return OFFSET + _ALPHABET[(value >> 32) % len(_ALPHABET)]


def _packed(tokens: Sequence[int]) -> bytes:
    return b"".join(token.to_bytes(2, "little") for token in tokens)
