"""The process that measures one form: `python -m edged.placement.probe`, driven line by line.

A `ProbeSpec` comes first, then `Run` and `Loop` commands, JSON lines on standard input; an answer to each
goes to standard output. Whatever a runtime does to this process happens to nobody else.
It imports what a worker with the stage imports and no more: its memory is part of the price.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from resource import RUSAGE_SELF, getrusage
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec

from edged.backend import Variant
from edged.birth import pin, settle
from edged.errors import EdgedError
from edged.governor.sensors import busy_s, cpu_s, energy, family, family_bytes, joules
from edged.messages import Answer, ChatTask, EmbedTask, decoder
from edged.placement.table import Work
from edged.placement.workload import Requests, Workload
from edged.stages.contract import BatchStage, Broken, Finished, Item, Progress, TokenStage, as_streaming
from edged.stages.factory import build
from edged.workers.spec import StageSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_decode_answer: Callable[[bytes | memoryview], Answer] = decoder(Answer)
_decode_chat: Callable[[bytes | memoryview], ChatTask] = decoder(ChatTask)
_decode_embed: Callable[[bytes | memoryview], EmbedTask] = decoder(EmbedTask)


class ProbeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe is told at birth."""

    parent: int
    stage: StageSpec
    workload: Workload


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Measure one batch."""

    batch: int
    work: Work


class Loop(msgspec.Struct, frozen=True, tag="loop"):
    """Run batches one behind the other, none begun after `until_s` of CLOCK_MONOTONIC."""

    batch: int
    until_s: float


Command = Run | Loop


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The stage is ready."""

    load_s: float


class Round(msgspec.Struct, frozen=True, kw_only=True, tag="round"):
    """What one batch took; see `Point` for the fields."""

    wall_s: float
    cpu_s: float
    first_s: float
    joules: float | None
    length: int
    cached_tokens: int
    new_tokens: int
    lanes: int
    memory_bytes: int
    others: float


class Laps(msgspec.Struct, frozen=True, tag="laps"):
    """Begin and end of each batch of a loop, CLOCK_MONOTONIC."""

    times: tuple[tuple[float, float], ...]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The form cannot do what was asked."""

    code: str
    message: str


Reply = Loaded | Round | Laps | Refused


class Outcome(msgspec.Struct, frozen=True):
    """What a batch gave: seconds until all had their first token, tokens by request, cores it went over."""

    first_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    lanes: int = 1


def main() -> int:
    """Load, then answer commands until standard input ends."""
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=ProbeSpec, dec_hook=_path)
    settle("edged:probe", spec.parent)
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)  # what a runtime prints is no answer
        try:
            _serve(spec, out)
        except EdgedError as error:
            _say(out, Refused(error.code, error.message))
            return 1
    return 0


def _path(kind: type[Any], value: Any) -> Any:
    return kind(value)


def _serve(spec: ProbeSpec, out: BinaryIO) -> None:
    started = time.perf_counter()
    pin(spec.stage.device)
    bench = Bench(spec)
    _say(out, Loaded(time.perf_counter() - started))
    for line in sys.stdin.buffer:
        match msgspec.json.decode(line, type=Command):
            case Run(batch, work):
                _say(out, bench.round(batch, work))
            case Loop(batch, until_s):
                _say(out, bench.laps(batch, until_s))
    bench.close()


def _say(out: BinaryIO, reply: Reply) -> None:
    out.write(msgspec.json.encode(reply) + b"\n")


class Bench:
    """A loaded stage and the requests to run it with."""

    def __init__(self, spec: ProbeSpec) -> None:
        self._stage = build(spec.stage)
        keep = spec.stage.variant.details.get("passages", 0)
        inputs = self._stage.details.get("inputs", ("input",))
        self._requests = Requests(spec.workload, spec.stage.kind, keep, inputs)
        self._tokenizer = _tokenizer(spec.stage.variant)

    def round(self, batch: int, work: Work) -> Round:
        """Run one batch of new requests; raises what the stage raises or answers."""
        items = self._requests.batch(batch, work)
        length = _length(self._tokenizer, items)
        before, cpu_s, everybody_s, started = energy(), _cpu_s(), busy_s(), time.perf_counter()
        outcome = self._run(items)
        wall_s = time.perf_counter() - started
        cpu_s = _cpu_s() - cpu_s
        return Round(
            wall_s=wall_s,
            cpu_s=cpu_s,
            first_s=outcome.first_s or wall_s,
            joules=joules(before, energy()),
            length=outcome.prompt_tokens or length,
            cached_tokens=outcome.cached_tokens,
            new_tokens=outcome.new_tokens,
            lanes=outcome.lanes,
            memory_bytes=family_bytes(os.getpid()),
            others=max(busy_s() - everybody_s - cpu_s, 0.0) / wall_s,
        )

    def laps(self, batch: int, until_s: float) -> Laps:
        """Run batches until the time is over; one at least."""
        times: list[tuple[float, float]] = []
        while not times or time.monotonic() < until_s:
            items = self._requests.batch(batch, "typical")
            started = time.monotonic()
            self._run(items)
            times.append((started, time.monotonic()))
        return Laps(tuple(times))

    def _run(self, items: Sequence[Item]) -> Outcome:
        streaming = as_streaming(self._stage)
        if streaming is not None:
            return _generate(streaming, items)
        stage = cast("BatchStage", self._stage)
        for result in stage.run(items):
            if isinstance(result, EdgedError):
                raise result
        return Outcome(lanes=stage.lanes)

    def close(self) -> None:
        """Give the memory back."""
        self._stage.close()


def _generate(stage: TokenStage, items: Sequence[Item]) -> Outcome:
    """Decode all items together; the batch ends with its last sequence."""
    started, waiting = time.perf_counter(), {item.request for item in items}
    found, first_s, answers = _found(stage), 0.0, []
    for item in items:
        stage.admit(item)
    while stage.active:
        for event in stage.step():
            match event:
                case Broken(_, error):
                    raise error
                case Finished(_, payload):
                    answers.append(_decode_answer(cast("bytes", payload)))
                case Progress(request, _, tokens, _) if tokens and request in waiting:
                    waiting.discard(request)
                    first_s = time.perf_counter() - started
    count = max(len(answers), 1)
    prompt_tokens = sum(answer.prompt_tokens for answer in answers) // count
    new_tokens = round(sum(answer.completion_tokens for answer in answers) / count)
    return Outcome(first_s, prompt_tokens, (_found(stage) - found) // count, new_tokens)


def _found(stage: TokenStage) -> int:
    """Prompt tokens that the runtime did not read, because earlier prompts began alike."""
    from edged.stages.generator import PREFIX

    counters = stage.cache_counters().get(PREFIX)
    return counters.hits if counters else 0


def _cpu_s() -> float:
    """CPU seconds of this process, all threads, user and system, and of the processes that it has started."""
    usage = getrusage(RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime + sum(map(cpu_s, family(os.getpid())[1:]))


def _tokenizer(variant: Variant) -> Tokenizer | None:
    if variant.tokenizer is None:
        return None
    from edged.stages.encoder import open_tokenizer

    tokenizer = open_tokenizer(variant)
    tokenizer.enable_truncation(variant.context_tokens)
    return tokenizer


def _length(tokenizer: Tokenizer | None, items: Sequence[Item]) -> int:
    """Tokens of one text of an encoder's batch, special tokens included; 0 where no tokenizer says it."""
    texts = _texts(items) if tokenizer is not None else []
    if tokenizer is None or not texts:
        return 0
    encodings = tokenizer.encode_batch(texts)
    return sum(len(encoding.ids) for encoding in encodings) // len(encodings)


def _texts(items: Sequence[Item]) -> list[Any]:
    from edged.stages.reranker import passage_text
    from edged.stages.retriever import question

    texts: list[Any] = []
    for item in items:
        if item.operation == "embed":
            texts += _decode_embed(item.payload).texts
        elif item.operation == "chat":
            task = _decode_chat(item.payload)
            texts += [(question(task), passage_text(p)) for p in task.passages] or [question(task)]
    return texts


if __name__ == "__main__":
    sys.exit(main())
