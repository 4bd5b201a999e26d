"""Runs of a layer pipeline outside the daemon: prompts to answers, and what the stages did meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from edged.backend import Sampling, TokenSession
from edged.layers.assembly import Assembly
from edged.layers.head import HeadShape
from edged.layers.meter import Meter, StageTimes
from edged.layers.pipeline import Pipeline
from edged.layers.planning import bubble
from edged.layers.spec import Loaded

Progress = Callable[[int, int], None]
"""Called with the tokens so far and the most there can be."""


class PipelineSession(TokenSession, Protocol):
    """What the adapter `torch_pipeline` opens."""

    meter: Meter
    assembly: Assembly
    loaded: tuple[Loaded, ...]


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Bubbles are shares of the stages' time that was not spent computing."""

    mode: str
    stages: int
    micro_batches: int
    """That had work: no more than there were sequences."""
    room: int
    """Micro-batches that could have had some."""
    micro_batch: int
    answers: tuple[tuple[int, ...], ...]
    tokens: int
    seconds: float
    bubble: float
    formula: float
    """For stages that take equally long, answers of one length, and the micro-batches that had work."""
    times: tuple[StageTimes, ...]

    @property
    def tokens_per_s(self) -> float:
        """Of all answers together, prompts included in the time."""
        return self.tokens / self.seconds if self.seconds else 0.0


def run(
    session: PipelineSession,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | Sequence[int],
    progress: Progress = lambda _done, _most: None,
) -> Ran:
    """Answer the prompts greedily; those that find no room wait until an answer ends and takes its place."""
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = iter(range(len(prompts)))
    began_s = time.monotonic()
    live = 0
    for number in _admitted(session, waiting, prompts, limits):
        live += number is not None
    while live:
        for event in session.step():
            answers[event.sequence] += event.tokens
            if event.finish is not None:
                live -= 1
                live += sum(each is not None for each in _admitted(session, waiting, prompts, limits))
        progress(sum(map(len, answers)), sum(limits))
    shape = session.assembly.shape
    return _ran(shape, session.meter, answers, time.monotonic() - began_s, max(limits))


def _admitted(
    session: TokenSession, waiting: Iterator[int], prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> Iterator[int]:
    while session.free_sequences and (number := next(waiting, None)) is not None:
        session.admit(number, prompts[number], Sampling(), limits[number])
        yield number


def run_synthetic(
    assembly: Assembly,
    tokens: int,
    meter: Meter | None = None,
    progress: Progress = lambda _done, _most: None,
) -> Ran:
    """Drive stages that only wait: every micro-batch full, `tokens` tokens of each sequence."""
    meter = meter or Meter(assembly.shape.stages)
    pipeline = assembly.start(lambda _token: False)
    try:
        _driven(
            pipeline, assembly.max_sequences, 1, lambda _done, _most: None
        )  # links connect at the first message
        pipeline.head.meter = meter
        began_s = time.monotonic()
        answers = _driven(pipeline, assembly.max_sequences, tokens, progress)
        seconds = time.monotonic() - began_s
    finally:
        pipeline.close()
    return _ran(assembly.shape, meter, answers, seconds, tokens)


def _driven(pipeline: Pipeline, sequences: int, tokens: int, progress: Progress) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in range(sequences)]
    for number in range(sequences):
        pipeline.head.start(number, (1,), Sampling(), tokens)
    while (events := pipeline.turn()) is not None:
        for event in events:
            answers[event.sequence] += event.tokens
        progress(sum(map(len, answers)), sequences * tokens)
    return answers


def _ran(
    shape: HeadShape, meter: Meter, answers: Sequence[Sequence[int]], seconds: float, tokens: int
) -> Ran:
    working = min(shape.micro_batches, len(answers))  # a sequence joins the emptiest
    return Ran(
        mode=shape.mode,
        stages=shape.stages,
        micro_batches=working,
        room=shape.micro_batches,
        micro_batch=shape.micro_batch,
        answers=tuple(map(tuple, answers)),
        tokens=sum(map(len, answers)),
        seconds=seconds,
        bubble=meter.bubble(time.monotonic()),
        formula=bubble.formula(shape.mode, shape.stages, working, tokens),
        times=tuple(meter.stages),
    )
