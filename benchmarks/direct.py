"""The stages of the pipeline without the daemon: one script, or one stage alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from edged.catalogue import Catalogue
from edged.config import Config
from edged.messages import Answer, ChatTask, Message, decoder, encode
from edged.models.store import ModelStore
from edged.placement.defaults import place
from edged.stages.contract import BatchStage, Broken, Finished, Item, TokenStage, as_streaming
from edged.stages.factory import build
from edged.workers.spec import StageSpec

FRONT = ("retriever", "reranker")
_decode: Callable[[bytes | memoryview], Answer] = decoder(Answer)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one request costs a stage."""

    wall_s: float
    cpu_s: float


class Script:
    """The daemon's stages on the same models with the same options, called in this process."""

    def __init__(self, config: Config, threads: int) -> None:
        store = ModelStore(config.daemon.state_dir / "models", Catalogue.discover())
        stages: dict[str, Any] = {
            name: build(_with_threads(name, config, store, threads)) for name in (*FRONT, "generator")
        }
        self._front: dict[str, BatchStage] = {name: stages[name] for name in FRONT}
        generator = as_streaming(stages["generator"])
        assert generator is not None
        self._generator: TokenStage = generator
        self._requests = 0
        for stage in stages.values():
            stage.set_cores(threads)

    def close(self) -> None:
        """Give the models' memory back."""
        for stage in self._front.values():
            stage.close()
        self._generator.close()

    def answer(self, question: str, max_tokens: int) -> Answer:
        """One question from its text to the whole answer."""
        payload = task(question, max_tokens)
        for name in FRONT:
            payload = self._run(name, [payload])[0]
        return self.generate([payload], 1)[0]

    def rate_per_s(self, questions: Iterable[str], max_tokens: int, duration_s: float) -> float:
        """Questions answered one after the other, per second."""
        began, count = time.perf_counter(), 0
        for question in questions:
            self.answer(question, max_tokens)
            count += 1
            if time.perf_counter() - began >= duration_s:
                break
        return count / (time.perf_counter() - began)

    def costs(self, questions: Sequence[str], max_tokens: int, batch: int) -> dict[str, Cost]:
        """Of each stage alone, a request: encoders on all questions, the generator at this batch."""
        payloads = [task(question, max_tokens) for question in questions]
        costs: dict[str, Cost] = {}
        for name in FRONT:
            clock = _Clock()
            payloads = self._run(name, payloads)
            costs[name] = clock.cost(len(questions))
        clock = _Clock()
        self.generate(payloads, batch)
        return costs | {"generator": clock.cost(len(questions))}

    def generate(self, payloads: Sequence[bytes], batch: int) -> list[Answer]:
        """Answer prompts, at most `batch` of them side by side, as room comes free."""
        waiting = list(enumerate(payloads))[::-1]
        answers: dict[int, Answer] = {}
        live: dict[int, int] = {}
        while waiting or live:
            while waiting and len(live) < batch and self._generator.room:
                self._requests += 1
                live[self._requests] = waiting[-1][0]
                self._generator.admit(Item(self._requests, "chat", memoryview(waiting.pop()[1])))
            for event in self._generator.step():
                assert not isinstance(event, Broken), event
                if isinstance(event, Finished):
                    answers[live.pop(event.request)] = _decode(_bytes(event.payload))
        return [answers[number] for number in range(len(payloads))]

    def _run(self, name: str, payloads: Sequence[bytes]) -> list[bytes]:
        items = [Item(number, "chat", memoryview(payload)) for number, payload in enumerate(payloads)]
        return [_bytes(result) for result in self._front[name].run(items)]


class _Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def cost(self, items: int) -> Cost:
        return Cost(
            wall_s=(time.perf_counter() - self._wall) / items, cpu_s=(time.process_time() - self._cpu) / items
        )


def task(question: str, max_tokens: int) -> bytes:
    """What the daemon's entry slot holds for a grounded question."""
    return encode(ChatTask(messages=(Message("user", question),), grounded=True, max_tokens=max_tokens))


def _bytes(payload: object) -> bytes:
    assert not isinstance(payload, Exception), payload
    return payload if isinstance(payload, bytes) else b"".join(bytes(part) for part in payload)  # type: ignore[attr-defined]


def _with_threads(name: str, config: Config, store: ModelStore, threads: int) -> StageSpec:
    spec = place(name, config.stages[name], config, store)
    return msgspec.structs.replace(spec, options={**spec.options, "threads": threads})
