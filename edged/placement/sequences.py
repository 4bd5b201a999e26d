"""What a token engine does step by step: prompts in parts, all running answers one token further: pure.

The rules of the adapters: a step reads at most `alone` prompt tokens, and at most `beside` while answers run,
so that these do not stall; of which prompts, `edged.prefill` says; a prompt that is read to its end gives its
first token in the same step.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edged.placement.table import Form
from edged.prefill import least_tokens, shares


class Budget(msgspec.Struct, frozen=True):
    """Prompt tokens of a step, and what a step costs that does both."""

    alone: int
    beside: int
    one_pass: bool = False
    """A step that reads and writes goes through the weights once. Else reading and writing add up."""
    block: int = 1
    """A part that does not end its prompt is so many tokens or a multiple of them."""
    counts_running: bool = False
    """`beside` holds the tokens of running answers, too."""


BUDGETS = {
    "openvino": Budget(256, 128, one_pass=True, block=32),
    "llama_cpp": Budget(256, 48, counts_running=True),
}
"""What adapters do unless `options` say otherwise.

`one_pass` was measured, in CPU milliseconds of a step on one thread. openvino: 11, 20 and 29 for 1, 4 and 7
answers, so 8 for the weights; 45 for 64 prompt tokens; 49, 55 to 71 and 70 to 75 for both (48, 57 and 66 by
this rule). llama_cpp, on two threads, 48 prompt tokens beside four answers: 235, added up 200.
"""
OTHERWISE = Budget(256, 256)
_ALONE = ("batch_tokens", "max_num_batched_tokens")
_BESIDE = "running_batch_tokens"


def budget_of(form: Form) -> Budget:
    """The budget of a form; its options win."""
    usual, options = BUDGETS.get(form.backend, OTHERWISE), dict(form.options)
    alone = next((int(options[name]) for name in _ALONE if name in options), usual.alone)
    beside = min(alone, int(options.get(_BESIDE, usual.beside)))
    return msgspec.structs.replace(usual, alone=alone, beside=beside)


class Step(msgspec.Struct, frozen=True):
    """What the next step does."""

    read: int
    """Prompt tokens."""
    running: int
    """Answers that get a token without reading."""
    first: tuple[int, ...]
    """Requests that get their first token."""
    finished: tuple[int, ...]


@dataclass(slots=True)
class _Sequence:
    unread: int
    unwritten: int


class Sequences:
    """The live sequences of one worker."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._live: dict[int, _Sequence] = {}

    def __len__(self) -> int:
        return len(self._live)

    def admit(self, request: int, unread: int, new_tokens: int) -> None:
        """Begin a sequence; `unread` are the prompt tokens that are in no cache."""
        self._live[request] = _Sequence(max(1, unread), max(1, new_tokens))

    def step(self) -> Step:
        """Advance every sequence by at most one token, and drop those that are finished."""
        running = [number for number, each in self._live.items() if not each.unread]
        reading = [number for number, each in self._live.items() if each.unread]
        takes = shares(
            [self._live[number].unread for number in reading],
            self._room(len(running)),
            self._budget.block,
        )
        for number, take in zip(reading, takes, strict=True):
            self._live[number].unread -= take
        first = [number for number in reading if not self._live[number].unread]
        for number in [*running, *first]:
            self._live[number].unwritten -= 1
        finished = [number for number, each in self._live.items() if not each.unwritten]
        for number in finished:
            del self._live[number]
        return Step(sum(takes), len(running), tuple(first), tuple(finished))

    def _room(self, running: int) -> int:
        """Prompt tokens of the next step."""
        if not running:
            return max(least_tokens(self._budget.block), self._budget.alone)
        beside = self._budget.beside - running * self._budget.counts_running
        return max(least_tokens(self._budget.block), beside)
