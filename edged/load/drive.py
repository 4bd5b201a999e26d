"""Load: clients that ask one question after the other, or questions that arrive by themselves."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any

from edged.client import Client
from edged.errors import EdgedError
from edged.load.sample import Sample
from edged.replies import Delta, Final

MOST_IN_FLIGHT = 512
"""Of an open loop: arrivals beyond it are counted as `client_overrun`, never dropped in silence."""
TOO_MANY_REQUESTS = 429
PAUSE_S = 0.05, 1.0
"""Shortest and longest wait of a client that was refused."""

Ask = Callable[[str, float, float], Sample]


class Asker:
    """Asks one question and takes the times."""

    def __init__(self, client: Client, model: str, fields: dict[str, Any]) -> None:
        self._client = client
        self._model = model
        self._fields = fields

    def ask(self, question: str, began_s: float, due_s: float) -> Sample:
        """Ask and wait for the end; a failure of the daemon is a sample too, a bad request is raised.

        `began_s` is the monotonic time at which the run began; `due_s` counts from there.
        """
        marks: list[float] = []
        answer: Final | None = None
        messages = [{"role": "user", "content": question}]
        try:
            with closing(self._client.chat(messages, model=self._model, **self._fields)) as events:
                for event in events:
                    if isinstance(event, Delta):
                        marks.append(time.monotonic() - began_s)
                    else:
                        answer = event
        except EdgedError as error:
            if error.status < TOO_MANY_REQUESTS and not error.retryable:
                raise  # it would come every time: the request itself is wrong
            _pause(error)
            return Sample(due_s=due_s, end_s=time.monotonic() - began_s, error=error.code)
        return _sample(due_s, time.monotonic() - began_s, marks, answer)


def _pause(error: EdgedError) -> None:
    """Do as a well-behaved client does when it is told to come back later."""
    least, most = PAUSE_S
    time.sleep(min(max(error.retry_after_s or 0.0, least), most))


def _sample(due_s: float, end_s: float, marks: Sequence[float], answer: Final | None) -> Sample:
    return Sample(
        due_s=due_s,
        end_s=end_s,
        first_s=marks[0] if marks else None,
        tokens=answer.usage.completion_tokens if answer and answer.usage else 0,
        gaps_s=tuple(after - before for before, after in pairwise(marks)),
        timings=answer.timings if answer else (),
    )


class Run:
    """A load run in threads. Construct, then iterate `samples`; `stop` ends it early."""

    def __init__(self, ask: Ask, questions: Sequence[str], duration_s: float) -> None:
        self._ask = ask
        self._questions = questions
        self._duration_s = duration_s
        self._stopped = threading.Event()
        self._results: queue.SimpleQueue[Sample | EdgedError | None] = queue.SimpleQueue()
        self._asked = iter(range(1 << 62))
        self._lock = threading.Lock()
        self._in_flight = 0
        self.peak_in_flight = 0

    def closed(self, clients: int) -> Iterator[Sample]:
        """Yield samples of `clients` that each ask again as soon as they are answered."""
        self._begin(clients)
        for _ in range(clients):
            self._start(self._client)
        return self.rest()

    def open(self, rate_per_s: float, seed: int = 0) -> Iterator[Sample]:
        """Yield samples of arrivals at random (Poisson) that wait for nobody."""
        self._begin(1)
        self._start(self._arrivals, rate_per_s, seed)
        return self.rest()

    def stop(self) -> None:
        """Send nothing more; what is under way is waited for."""
        self._stopped.set()

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began_s

    def _begin(self, threads: int) -> None:
        self._began_s = time.monotonic()
        self._running = threads

    def _over(self) -> bool:
        return self._stopped.is_set() or self.elapsed_s >= self._duration_s

    def _question(self) -> str:
        return self._questions[next(self._asked) % len(self._questions)]

    def _client(self) -> None:
        with self._reporting():
            while not self._over():
                self._results.put(self._ask(self._question(), self._began_s, self.elapsed_s))

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Tell the collector that this thread is done, and why if it could not go on."""
        try:
            yield
        except EdgedError as error:
            self._stopped.set()
            self._results.put(error)
        finally:
            self._results.put(None)

    def _arrivals(self, rate_per_s: float, seed: int) -> None:
        """Start each request when it is due: a late start counts against the daemon, not for it."""
        chance = random.Random(seed)  # noqa: S311 - a reproducible load, not a secret
        due_s = chance.expovariate(rate_per_s)
        threads: list[threading.Thread] = []
        with self._reporting():
            while due_s < self._duration_s and not self._stopped.wait(max(0.0, due_s - self.elapsed_s)):
                threads.append(self._start(self._one, due_s))
                due_s += chance.expovariate(rate_per_s)
            for thread in threads:
                thread.join()

    def _one(self, due_s: float) -> None:
        with self._lock:
            overrun = self._in_flight >= MOST_IN_FLIGHT
            self._in_flight += not overrun
            self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        if overrun:
            self._results.put(Sample(due_s=due_s, end_s=due_s, error="client_overrun"))
            return
        try:
            self._results.put(self._ask(self._question(), self._began_s, due_s))
        except EdgedError as error:
            self._stopped.set()
            self._results.put(error)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _start(self, target: Callable[..., None], *arguments: float) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    def rest(self) -> Iterator[Sample]:
        """Yield the samples that are still to come; raises what made a request impossible."""
        while self._running:
            result = self._results.get()
            if result is None:
                self._running -= 1
            elif isinstance(result, EdgedError):
                raise result
            else:
                yield result
