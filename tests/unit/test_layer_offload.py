"""Weights and cache outside the device change no token, and copies keep to their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
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
    for turn in range(answer_tokens):
        slots = [slot for slot in range(len(prompts)) if slot != 1 or turn < 2]
        _turn(runner, turn, answers, read, slots)
    again, read_again = [list(prompts[-1])], [0]
    for turn in range(2):
        _turn(runner, 100 + turn, again, read_again, [0])
    return [*answers, *again]


def _turn(runner: Runner, number: int, answers: list[list[int]], read: list[int], slots: list[int]) -> None:
    fresh = [answers[slot][read[slot] :] for slot in slots]
    width = max(map(len, fresh))
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in fresh])
    rows = tuple(Row(slot, read[slot], len(each), True) for slot, each in zip(slots, fresh, strict=True))
    opened = tuple(Opened(slot, Sampling()) for slot in slots if not read[slot])
    chosen = runner.run(Job(number, 0, rows, opened), ids).tolist()
    for slot, token in zip(slots, chosen, strict=True):
        read[slot] = len(answers[slot])
        answers[slot].append(token)


@pytest.fixture(scope="module")
def resident_answers() -> dict[int, list[list[int]]]:
    found = {}
    for layers in (1, 2, 5):
        runner, _ = built(spec(layers))
        found[layers] = told(runner)
        runner.close()
    return found


COMBINATIONS = [("none", 1), ("single", 1), *(("multi", block) for block in (1, 2, 3, 4))]


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("offload_cache", [False, True])
@pytest.mark.parametrize("source", ["memory", "disk"])
@pytest.mark.parametrize(("overlap", "block"), COMBINATIONS)
def test_the_answers_are_those_of_resident_weights(
    resident_answers, tmp_path: Path, overlap: str, block: int, source: str, offload_cache: bool, layers: int
):
    changes = {"overlap": overlap, "block": block, "overlap_from": source, "offload_cache": offload_cache}
    runner, _ = built(spec(layers, **changes, overlap_folder=str(tmp_path)))
    try:
        assert told(runner) == resident_answers[layers]
    finally:
        runner.close()
