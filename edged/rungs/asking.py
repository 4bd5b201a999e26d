"""Questions on their way to the daemon, some at a time, and what the box spends on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from msgspec.structs import replace

from edged.client import AdminClient, Client
from edged.errors import EdgedError
from edged.governor.sensors import cpu_s, energy, joules
from edged.messages import Answer, Citation, Passage
from edged.replies import Cited, Delta, Final
from edged.report import Status
from edged.rungs.record import Answered, Found, Load, Question
from edged.rungs.scores import found, packed
from edged.stages.citations import supported

T = TypeVar("T")
NOTHING = "-"
"""Stands for an answer without text where it is embedded."""


class Asker:
    """Asks one pipeline; `clients` questions are under way at a time."""

    def __init__(
        self, client: Client, admin: AdminClient, pipeline: str, clients: int, *, embedder: str = ""
    ) -> None:
        """`embedder` is the stage that embeds answers, so that their meanings can be compared."""
        self._embedder = embedder
        self._client = client
        self._admin = admin
        self._pipeline = pipeline
        self._clients = clients

    def search(self, questions: Mapping[int, Question]) -> dict[int, Found]:
        """What answers would be written from, scored; a question that the daemon refused is left out."""
        return self._all(self._found, questions)

    def answer(self, questions: Mapping[int, Question]) -> tuple[dict[int, Answered], Load]:
        """Answers with all caches empty, and what they took."""
        self._admin.clear_caches()
        pids = _processes(self._client.status())
        energy_before, cpu_before_s, began_s = energy(), _cpu_s(pids), time.monotonic()
        answers = self._all(self._answered, questions)
        load = Load(
            clients=self._clients,
            answered=len(answers),
            duration_s=time.monotonic() - began_s,
            cpu_s=_cpu_s(pids) - cpu_before_s,
            joules=joules(energy_before, energy()),
        )
        return self._embedded(answers), load

    def _embedded(self, answers: Mapping[int, Answered]) -> dict[int, Answered]:
        if not self._embedder or not answers:
            return dict(answers)
        texts = [answer.text or NOTHING for answer in answers.values()]
        vectors = self._client.embed(texts, model=self._embedder)
        return {
            number: replace(answer, vector=packed(vector))
            for (number, answer), vector in zip(answers.items(), vectors, strict=True)
        }

    def _all(self, ask: Callable[[Question], T], questions: Mapping[int, Question]) -> dict[int, T]:
        """Ask them side by side; a refusal that will pass costs a question, any other ends it all."""
        executor = ThreadPoolExecutor(self._clients, thread_name_prefix="ladder")
        try:
            futures = {number: executor.submit(ask, each) for number, each in questions.items()}
            outcomes = {number: (future.exception(), future) for number, future in futures.items()}
        finally:
            executor.shutdown(cancel_futures=True)
        errors = [error for error, _ in outcomes.values() if error is not None]
        serious = [error for error in errors if not (isinstance(error, EdgedError) and error.retryable)]
        if serious or len(errors) == len(outcomes):
            raise next(iter(serious or errors))
        return {number: future.result() for number, (error, future) in outcomes.items() if error is None}

    def _found(self, question: Question) -> Found:
        options = {"passages_only": True}
        messages = [{"role": "user", "content": question.text}]
        with closing(
            self._client.chat(messages, model=self._pipeline, stream=False, edged=options)
        ) as events:
            final = next(event for event in events if isinstance(event, Final))
        return found(final.passages, question.relevant)

    def _answered(self, question: Question) -> Answered:
        began_s, first_s, final = time.monotonic(), None, None
        messages = [{"role": "user", "content": question.text}]
        with closing(self._client.chat(messages, model=self._pipeline)) as events:
            for event in events:
                if isinstance(event, Delta):
                    first_s = first_s or time.monotonic() - began_s
                else:
                    final = event
        assert final is not None  # the client raises where a stream is cut
        return Answered(
            text=final.text,
            supported=supported(_as_written(final)),
            latency_s=time.monotonic() - began_s,
            first_s=first_s,
            tokens=final.usage.completion_tokens if final.usage else 0,
        )


def _processes(status: Status) -> list[int]:
    return [status.pid, *(worker.pid for stage in status.stages for worker in stage.workers)]


def _cpu_s(pids: Sequence[int]) -> float:
    return sum(map(cpu_s, pids))


def _as_written(final: Final) -> Answer:
    """The answer as the generator gave it, as far as it matters to who judges its citations."""
    return Answer(
        text=final.text,
        finish="stop",
        prompt_tokens=0,
        completion_tokens=0,
        model=final.model,
        citations=tuple(map(_citation, final.citations)),
    )


def _citation(cited: Cited) -> Citation:
    passage = Passage(id=0, text=cited.text, source=cited.source, title=cited.title, heading=cited.heading)
    return Citation(number=cited.number, passage=passage, quote=cited.quote, support=cited.support)
