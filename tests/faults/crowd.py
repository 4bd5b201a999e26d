"""Many clients at once, what each of them saw, and the hands that kill."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from edged.client import Client, UnixConnection
from edged.errors import ConnectionLost, EdgedError, from_code
from edged.replies import Delta, Final
from edged.report import Status
from edged.stages.tensor import encode_tensors
from edged.testing.daemon import RunningDaemon

CLIENTS = 8


@dataclass
class Outcome:
    """How one request ended, as its client saw it."""

    question: str
    text: str = ""
    terminals: int = 0
    code: str = ""
    resumed: int = 0


def ask(
    client: Client,
    question: str,
    model: str = "generator",
    begun: list[str] | None = None,
    **fields: object,
) -> Outcome:
    """Stream one answer and note every terminal event; `begun` gets the question at the first text."""
    seen = Outcome(question)
    try:
        for event in client.chat([{"role": "user", "content": question}], model=model, **fields):
            if seen.terminals:
                seen.code = "something followed the end"
            elif isinstance(event, Delta):
                if not seen.text and begun is not None:
                    begun.append(question)
                seen.text += event.text
            else:
                seen.terminals += 1
                seen.resumed = event.resumed
                if event.text != seen.text:
                    seen.code = "the streamed text is not the final text"
    except EdgedError as error:
        seen.terminals += 1
        seen.code = error.code
    return seen


def turn_over(client: Client, number: int, pipeline: str = "line") -> Outcome:
    """Send tensors that nobody else sends; an answer that is not theirs is somebody else's."""
    body = b"".join(bytes(part) for part in encode_tensors({"input": np.full((1, 64), number, np.int64)}))
    seen = Outcome(str(number), terminals=1)
    try:
        if tensors(client, body, pipeline) != body:
            seen.code = "somebody else's answer"
    except EdgedError as error:
        seen.code = error.code
    return seen


def tensors(client: Client, body: bytes, pipeline: str) -> bytes:
    """POST bytes through a tensor pipeline."""
    with closing(UnixConnection(client.socket, 60.0)) as connection:
        try:
            connection.request(
                "POST",
                f"/edged/v1/tensors/{pipeline}",
                body,
                {"Content-Type": "application/octet-stream", "Connection": "close"},
            )
            with connection.getresponse() as response:
                answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLost(str(error)) from error
    if response.status == 200:
        return answer
    fault = json.loads(answer)["error"]
    raise from_code(fault["code"], fault["message"])


@dataclass
class Crowd:
    """Clients that ask round and round until told to stop."""

    asks: list[Callable[[random.Random], Outcome]]
    """One for each client."""
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for number, ask in enumerate(self.asks):
            thread = threading.Thread(target=self._run, args=(ask, random.Random(self.seed + number)))
            thread.start()
            self._threads.append(thread)
        return self

    def _run(self, ask: Callable[[random.Random], Outcome], chooser: random.Random) -> None:
        while not self._stop.is_set():
            self.outcomes.append(ask(chooser))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads), "a request never ended"

    @property
    def codes(self) -> Counter[str]:
        """How the requests ended; `` is well."""
        return Counter(outcome.code for outcome in self.outcomes)

    def judge(self, reference: dict[str, str]) -> None:
        """Each ended once and well, and says what an undisturbed answer says."""
        assert {outcome.terminals for outcome in self.outcomes} == {1}
        assert set(self.codes) == {""}, self.codes
        differing = [o for o in self.outcomes if o.text != reference.get(o.question, o.text)]
        assert not differing, [(o.question, o.resumed, o.text, reference[o.question]) for o in differing]


class Spared:
    """Workers that may have finished nothing yet: a stage that is never let work is given up, and rightly."""

    def __init__(self) -> None:
        self._done_when_seen: dict[int, int] = {}

    def no_more(self, status: Status) -> list[int]:
        """Ready workers since whose readiness their stage has finished an item for each of its workers."""
        return [
            worker.pid
            for stage in status.stages
            for worker in stage.workers
            if worker.state == "ready"
            and stage.done >= self._done_when_seen.setdefault(worker.pid, stage.done) + len(stage.workers)
        ]


def under_fire(
    daemon: RunningDaemon,
    chooser: random.Random,
    blows: int,
    pause_s: tuple[float, float],
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL,),
) -> Counter[str]:
    """Strike workers at random moments, each once; give how often what was done."""
    done: Counter[str] = Counter()
    struck: set[int] = set()
    spared = Spared()
    while len(struck) < blows:
        time.sleep(chooser.uniform(*pause_s))
        ready = [pid for pid in spared.no_more(daemon.client.status()) if pid not in struck]
        if not ready:
            continue
        victim, number = chooser.choice(ready), chooser.choice(signals)
        with suppress(ProcessLookupError):
            os.kill(victim, number)
            struck.add(victim)
            done[number.name] += 1
    return done


def healed(daemon: RunningDaemon) -> None:
    """Wait until nothing is left over and everything works again."""
    daemon.wait_for(
        lambda status: (
            status.state == "ready"
            and status.outstanding == 0
            and status.entry_slots_used == 0
            and all(stage.slots_used == 0 and stage.queued == 0 for stage in status.stages)
        ),
        "healed",
        60,
    )


def final(client: Client, text: str = "hello", **fields: object) -> Final:
    """One whole answer of the generator; raises what the client is told."""
    *_, last = client.chat([{"role": "user", "content": text}], model="generator", **fields)
    assert isinstance(last, Final)
    return last
