"""What a token engine does step by step: prompts in parts, all running answers one token further: pure.

The rules of the adapters: a step reads at most `alone` prompt tokens, and at most `beside` while answers run,
so that these do not stall; prompts that are being read share them equally; a prompt that is read to its end
gives its first token in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edged.placement.table import Form


class Budget(msgspec.Struct, frozen=True):
    """Prompt tokens of a step, and what a step costs that does both."""

    alone: int
    beside: int
    hides: bool = False
    """The tokens of running answers cost no more in a step that reads than prompt tokens do: it is one pass
    over the weights. Else reading and writing add up."""


BUDGETS = {"openvino": Budget(256, 64, hides=True), "llama_cpp": Budget(256, 48)}
"""What adapters do unless `options` say otherwise.

`hides` was measured, in CPU seconds of a step that reads beside four answers, on two threads: openvino 0.077
(one pass 0.078, added up 0.110), llama_cpp 0.235 (one pass 0.173, added up 0.200).
"""
OTHERWISE = Budget(256, 256)
_ALONE = ("batch_tokens", "max_num_batched_tokens")
_BESIDE = "running_batch_tokens"


def budget_of(form: Form) -> Budget:
    """The budget of a form; its options win."""
    usual, options = BUDGETS.get(form.backend, OTHERWISE), dict(form.options)
    alone = next((int(options[name]) for name in _ALONE if name in options), usual.alone)
    return Budget(alone, min(alone, int(options.get(_BESIDE, usual.beside))), usual.hides)


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

    def admit(self, request: int, prompt_tokens: int, new_tokens: int) -> None:
        """Begin a sequence."""
        self._live[request] = _Sequence(max(1, prompt_tokens), max(1, new_tokens))

    def step(self) -> Step:
        """Advance every sequence by at most one token, and drop those that are finished."""
        running = [number for number, each in self._live.items() if not each.unread]
        reading = [number for number, each in self._live.items() if each.unread]
        budget = self._budget.beside if running else self._budget.alone
        takes = shares([self._live[number].unread for number in reading], budget)
        for number, take in zip(reading, takes, strict=True):
            self._live[number].unread -= take
        first = [number for number in reading if not self._live[number].unread]
        for number in [*running, *first]:
            self._live[number].unwritten -= 1
        finished = [number for number, each in self._live.items() if not each.unwritten]
        for number in finished:
            del self._live[number]
        return Step(sum(takes), len(running), tuple(first), tuple(finished))


def shares(wanted: Sequence[int], budget: int) -> list[int]:
    """Divide a budget equally; what a short one leaves goes to the others.

    >>> shares([20, 900, 900], 128)
    [20, 54, 54]
    """
    takes, left = [0] * len(wanted), budget
    for rank, place in enumerate(sorted(range(len(wanted)), key=lambda place: wanted[place])):
        takes[place] = min(wanted[place], max(1, left // (len(wanted) - rank)) if left else 0)
        left -= takes[place]
    return takes
