"""A layer pipeline as a continuous-batching engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edged.backend import Sampling, TokenEvent, Vocabulary
from edged.errors import BackendError, ContextOverflow
from edged.layers.account import account
from edged.layers.assembly import Assembly
from edged.layers.meter import Meter
from edged.layers.pipeline import Pipeline
from edged.layers.report import LayerReport
from edged_backends.torch_vocabulary import TorchVocabulary


class PipelineTokenSession:
    """Sequences over the micro-batches of a pipeline. Its first stage computes in this process.

    A greedy answer is computed alike alone and in company but for rounding; a resumed one is replayed.
    """

    exact_resume = False

    def __init__(self, assembly: Assembly, vocabulary: TorchVocabulary) -> None:
        self.vocabulary: Vocabulary = vocabulary
        self.context_tokens = assembly.context_tokens
        self.max_sequences = assembly.max_sequences
        self._known = vocabulary
        self._asked = 0
        self.meter = Meter(assembly.shape.stages)
        self.assembly = assembly
        self._live: set[int] = set()
        self._pipeline: Pipeline | None = assembly.start(vocabulary.ends, self.meter)
        self.loaded = self._pipeline.loaded
        self.pids = self._pipeline.pids

    @property
    def details(self) -> Mapping[str, Any]:
        """See `Detailed.details`: devices that were asked for and have no stage, and why."""
        left_out = [f"{each.device}: {each.why}" for each in self.assembly.left_out]
        return {"left_out": left_out} if left_out else {}

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        return self.max_sequences - len(self._live)

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """See `TokenSession.admit`."""
        pipeline = self._open()
        if sequence in self._live or not self.free_sequences:
            raise BackendError(f"sequence {sequence} is alive already, or all {self.max_sequences} are taken")
        if not prompt or max_tokens < 1:
            raise BackendError("a sequence needs a prompt and at least one new token")
        self._known.check(prompt)
        if len(prompt) + max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"{len(prompt)} prompt tokens and {max_tokens} new ones exceed the context "
                f"of {self.context_tokens} tokens"
            )
        self._asked += len(prompt)
        self._live.add(sequence)
        pipeline.head.start(sequence, prompt, sampling, max_tokens)

    def step(self) -> list[TokenEvent]:
        """Go round once: one turn of each micro-batch that has work, the next turns begun meanwhile."""
        pipeline = self._open()
        events: list[TokenEvent] = []
        left = pipeline.head.busy_lanes
        while left:
            flying = pipeline.head.flying
            told = pipeline.turn()
            if told is None:
                break
            events += told
            left -= pipeline.head.flying < flying
        self._live.difference_update(event.sequence for event in events if event.finish is not None)
        return events

    def cancel(self, sequence: int, /) -> None:
        """Forget a sequence at once; unknown numbers are ignored."""
        self._live.discard(sequence)
        if self._pipeline is not None:
            self._pipeline.head.drop(sequence)

    def prefix_counters(self) -> tuple[int, int, int]:
        """See `TokenSession.prefix_counters`: a layer pipeline keeps no prefixes."""
        return 0, self._asked, 0

    def clear_prefixes(self) -> None:
        """See `TokenSession.clear_prefixes`."""

    def set_threads(self, count: int, /) -> bool:
        """See `TokenSession.set_threads`: only where no other process takes part."""
        if self.pids:
            return False
        torch.set_num_threads(count)
        return True

    def bubble(self) -> float:
        """Share of the stages' time that was not spent computing, while there was work."""
        return self.meter.bubble(time.monotonic())

    def layer_report(self) -> LayerReport:
        """See `Layered.layer_report`."""
        self._open().look()
        return account(
            self.assembly.specs, self.assembly.shape.micro_batches, self.loaded, self.pids, self.meter
        )

    def close(self) -> None:
        """End all stages; idempotent."""
        if self._pipeline is not None:
            self._pipeline.close()
        self._pipeline = None

    def _open(self) -> Pipeline:
        if self._pipeline is None:
            raise BackendError("the session is closed")
        return self._pipeline
