"""Which token comes next: the last stage's part, with the library's own logits processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from edged.backend import Sampling
from edged.layers.wire import Opened

COLDEST = 1e-4
"""A temperature below it is greedy: float32 scores divided by it would overflow."""


class Choice:
    """How one sequence's tokens are chosen; greedy without penalties needs none of its state.

    Penalties look back on the answer, not on the prompt. Draws are one sequence of random numbers per seed,
    as the library makes them for a single stream: a sampled answer repeats from its prompt only.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._device = device
        self._plain = sampling == Sampling(seed=sampling.seed)
        self._answer: list[int] = []
        self._warpers = _warpers(sampling)
        self._random = torch.Generator(device=device)
        self._random.manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """Choose from [vocabulary] float32, and remember the token."""
        if self._plain:
            return int(logits.argmax())
        scores = self._punished(self._biased(logits.clone()))[None, :]
        answer: Any = torch.tensor([self._answer], dtype=torch.int64, device=self._device)
        greedy = self._sampling.temperature < COLDEST
        token = scores.argmax() if greedy else self._drawn(self._warpers(answer, scores))
        self._answer.append(int(token))
        return self._answer[-1]

    def _biased(self, logits: torch.Tensor) -> torch.Tensor:
        for token, bias in self._sampling.logit_bias.items():
            if 0 <= token < len(logits):
                logits[token] += bias
        return logits

    def _punished(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._answer:
            return logits
        answer: Any = torch.tensor(self._answer, dtype=torch.int64, device=self._device)
        if self._sampling.repetition_penalty != 1:
            penalty = RepetitionPenaltyLogitsProcessor(self._sampling.repetition_penalty)
            logits = penalty(answer[None, :], logits[None, :])[0]
        counts = torch.bincount(answer, minlength=len(logits))
        logits -= self._sampling.frequency_penalty * counts
        logits -= self._sampling.presence_penalty * (counts > 0)
        return logits

    def _drawn(self, scores: torch.Tensor) -> torch.Tensor:
        """Draw; where scores have overflowed there is nothing to draw from, and the highest is taken."""
        shares = scores.softmax(-1)
        if not bool(shares.isfinite().all()):
            return scores.nan_to_num().argmax()
        return torch.multinomial(shares, 1, generator=self._random)


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    """Return temperature, top-k, top-p and min-p, in the order in which the library applies them."""
    found = LogitsProcessorList()
    if sampling.temperature >= COLDEST and sampling.temperature != 1:
        found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        found.append(MinPLogitsWarper(sampling.min_p))
    return found


class Chooser:
    """The choices of all sequences of a pipeline, by their slot."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._choices: dict[int, Choice] = {}

    def open(self, opened: Sequence[Opened]) -> None:
        """Begin sequences; what their slots held before is over."""
        for each in opened:
            self._choices[each.slot] = Choice(each.sampling, self._device)

    def choose(self, slots: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Choose a token for each slot from [slots, vocabulary]; returns [slots] int64 on the CPU."""
        chosen = [self._choices[slot].choose(row) for slot, row in zip(slots, logits.float(), strict=True)]
        return torch.tensor(chosen, dtype=torch.int64)
