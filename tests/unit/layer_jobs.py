"""Stages of a layer pipeline and their jobs, for tests of weights and cache outside the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache

import msgspec
import torch

from edged.backend import Sampling
from edged.layers import runners
from edged.layers.share import Share
from edged.layers.spec import Loaded, StageSpec
from edged.layers.stage import Runner
from edged.layers.wire import Job, Opened, Row

RANDOM = "random:llama:layers={layers},hidden=64,heads=4,kv=2,intermediate=96,vocabulary=97,seed=5"
CONTEXT_TOKENS = 64
PROMPTS = ([5, 9, 2, 41, 8], [7], [3, 3, 90], [11, 12, 13, 14, 15, 16, 17], [1, 2])


def spec(layers: int = 5, **changes: object) -> StageSpec:
    share = Share(first=0, end=layers, embedding=True, head=True)
    plain = StageSpec(
        stage=0,
        stages=1,
        share=share,
        device="cpu",
        source=RANDOM.format(layers=layers),
        sequences=len(PROMPTS),
        context_tokens=CONTEXT_TOKENS,
    )
    return msgspec.structs.replace(plain, **changes)


def built(of: StageSpec) -> tuple[Runner, Loaded]:
    return runners.build(of, own_process=False)


def told(
    runner: Runner, prompts: Sequence[Sequence[int]] = PROMPTS, answer_tokens: int = 4
) -> list[list[int]]:
    """Answer prompts of unlike length; the second leaves early, and the first one's slot is used again."""
    answers = [list(prompt) for prompt in prompts]
    read = [0] * len(prompts)
    for number in range(answer_tokens):
        slots = [slot for slot in range(len(prompts)) if slot != 1 or number < 2]
        turn(runner, number, answers, read, slots)
    again, read_again = [list(prompts[-1])], [0]
    for number in range(2):
        turn(runner, 100 + number, again, read_again, [0])
    return [*answers, *again]


def turn(runner: Runner, number: int, answers: list[list[int]], read: list[int], slots: list[int]) -> None:
    fresh = [answers[slot][read[slot] :] for slot in slots]
    width = max(map(len, fresh))
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in fresh])
    rows = tuple(Row(slot, read[slot], len(each), True) for slot, each in zip(slots, fresh, strict=True))
    opened = tuple(Opened(slot, Sampling()) for slot in slots if not read[slot])
    chosen = runner.run(Job(number, 0, rows, opened), ids).tolist()
    for slot, token in zip(slots, chosen, strict=True):
        read[slot] = len(answers[slot])
        answers[slot].append(token)


COMBINATIONS = [("none", 1), ("single", 1), *(("multi", block) for block in (1, 2, 3, 4))]


@cache
def resident_answers(layers: int) -> list[list[int]]:
    """What a stage answers with everything on the device."""
    runner, _ = built(spec(layers))
    found = told(runner)
    runner.close()
    return found


def jobs(runner: Runner, count: int) -> None:
    answers, read = [list(prompt) for prompt in PROMPTS], [0] * len(PROMPTS)
    for number in range(count):
        turn(runner, number, answers, read, list(range(len(PROMPTS))))


def broken_after(count: int) -> Callable[..., int]:
    read, calls = os.preadv, []

    def preadv(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) > count:
            raise OSError(5, "Input/output error")
        return read(*arguments)  # type: ignore[arg-type]

    return preadv
