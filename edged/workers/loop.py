"""The stage loops: take work, do it, say so.

A bad item fails alone. A lost device, or anything unforeseen, ends the process: only the dispatcher
knows where else the work could go on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping

from edged.errors import DeviceLost, EdgedError
from edged.messages import (
    Batch,
    Cancel,
    ClearCaches,
    Cores,
    Done,
    Failed,
    Gone,
    Ping,
    Pong,
    SlotRef,
    Stop,
    Tokens,
    ToWorker,
    Trouble,
    Work,
)
from edged.stages.contract import (
    BatchStage,
    Broken,
    Finished,
    Item,
    Judged,
    Payload,
    Progress,
    TokenStage,
)
from edged.transport.links import Dealer
from edged.transport.slots import Arena
from edged.workers.coalescing import Coalescing, Event
from edged.workers.telling import cache_teller, layer_teller, soonest

Arenas = Mapping[int, Arena]

BEAT_S = 1.0
"""A loop that turns over but has nothing to tell (a long prefill, a long batch) says so this often."""


class BatchLoop:
    """Runs a batch stage. It is paused by giving it no batch."""

    def __init__(self, stage: BatchStage, link: Dealer, arenas: Arenas) -> None:
        self._stage = stage
        self._link = link
        self._arenas = arenas
        self._later: deque[ToWorker] = deque()
        """What came while a batch ran and can wait for its end."""
        self._broken: EdgedError | None = None
        """What was wrong with the wire while a batch ran."""
        self._beat_at = 0.0
        self._caches = cache_teller(stage, link)
        stage.attend(self._look)

    def run(self) -> None:
        """Answer micro-batches until told to stop."""
        while not isinstance(message := self._next(), Stop):
            self._take(message)
            self._caches.tell(now=isinstance(message, ClearCaches))

    def _next(self) -> ToWorker | None:
        if self._broken is not None:
            raise self._broken
        return self._later.popleft() if self._later else self._link.receive(self._caches.patience_ms())

    def _take(self, message: ToWorker | None) -> None:
        match message:
            case Batch(items):
                self._answer(items)
            case Ping(nonce):
                self._link.send(Pong(nonce))
            case Cores(count):
                self._stage.set_cores(max(1, count))
            case ClearCaches(names):
                self._stage.clear_caches(names)
            case _:  # a batch that is cancelled is done already
                pass

    def _look(self) -> None:
        """Between two runs of a batch: its lease counts at once, and a batch that gets on is not silent."""
        if (now := time.monotonic()) - self._beat_at > BEAT_S:
            self._beat_at = now
            self._link.send(Pong(0))
        try:
            while (message := self._link.receive(0)) is not None:
                if isinstance(message, Cores | Ping):
                    self._take(message)
                else:
                    self._later.append(message)
        except EdgedError as error:  # no fault of the item in hand
            self._broken = error

    def _answer(self, works: tuple[Work, ...]) -> None:
        items: list[tuple[Work, Item]] = []
        for work in works:
            try:
                items.append((work, _item(work, self._arenas)))
            except EdgedError as error:
                self._link.send(_failed(work, error))
        if not items:
            return
        began = time.perf_counter()
        told: list[Done | Failed] = []
        for (work, _), (result, more) in zip(items, self._results([item for _, item in items]), strict=True):
            told.append(_answer(self._arenas, work, result, time.perf_counter() - began, len(items)))
            if not more:
                self._link.send(*told)
                told = []
            began = time.perf_counter()
        self._link.send(*told)

    def _results(self, items: list[Item]) -> Iterator[tuple[Payload | EdgedError, bool]]:
        """The stage's results, and whether the next is there already.

        An error of the stage is the result of every item that has none yet.
        """
        given = 0
        try:
            results = self._stage.run(items)
            for result in results:
                given += 1
                yield result, isinstance(results, list)
        except DeviceLost:
            raise
        except EdgedError as error:
            yield from [(error, True)] * (len(items) - given)


def _item(work: Work, arenas: Arenas) -> Item:
    payload = arenas[work.source.arena].read(work.source)
    return Item(
        work.request,
        work.operation,
        payload,
        work.remaining_ms,
        work.resume_tokens,
        work.resume_characters,
        work.keep,
    )


def _answer(
    arenas: Arenas, work: Work, result: Payload | EdgedError, compute_s: float, batch: int
) -> Done | Failed:
    if isinstance(result, EdgedError):
        return _failed(work, result)
    try:
        target = _write(arenas, work.target, result)
    except EdgedError as error:
        return _failed(work, error)
    judgement = result.judgement if isinstance(result, Judged) else None
    return Done(work.request, work.attempt, target, compute_s, batch, judgement=judgement)


def _write(arenas: Arenas, target: SlotRef, payload: Payload) -> SlotRef:
    return arenas[target.arena].write(target, payload)


def _failed(work: Work, error: EdgedError) -> Failed:
    return Failed(work.request, work.attempt, error.code, error.message, error.param)


class TokenLoop:
    """Runs a token stage: items join, stream and leave at token boundaries."""

    def __init__(
        self, stage: TokenStage, link: Dealer, arenas: Arenas, stream_interval_s: float = 0.0
    ) -> None:
        self._stage = stage
        self._link = link
        self._arenas = arenas
        self._held: dict[int, tuple[Work, float]] = {}
        self._stopping = False
        self._paused = False
        self._told_at = 0.0
        self._caches = cache_teller(stage, link)
        self._layers = layer_teller(stage, link)
        self._told_trouble = ""
        self._coalescing = Coalescing(stream_interval_s)

    def run(self) -> None:
        """Work until told to stop and everything taken is finished."""
        while self._held or not self._stopping:
            self._tell_trouble()
            while (message := self._link.receive(self._patience_ms())) is not None:
                self._take(message)
                if self._stopping and not self._held:
                    return
            if self._held and not self._paused:
                self._tell(self._coalescing.pass_on(self._stage.step(), time.monotonic()))
            self._beat()
            self._caches.tell()
            self._layers.tell()

    def _tell_trouble(self) -> None:
        if (trouble := self._stage.trouble) != self._told_trouble:
            self._told_trouble = trouble
            self._link.send(Trouble(trouble))

    def _tell(self, events: list[Event]) -> None:
        if events:
            self._link.send(*(self._report(event) for event in events))

    def _patience_ms(self) -> int | None:
        """How long to wait for a message: not at all between steps, else until there is something to do."""
        if not self._held:
            return soonest(self._caches.patience_ms(), self._layers.patience_ms())
        return round(BEAT_S * 1000) if self._paused else 0

    def _beat(self) -> None:
        if self._held and time.monotonic() - self._told_at > BEAT_S:
            self._told_at = time.monotonic()
            self._link.send(Pong(0))

    def _take(self, message: ToWorker) -> None:
        match message:
            case Batch(items):
                for work in items:
                    self._admit(work)
            case Cancel(request, attempt):
                self._cancel(request, attempt)
            case Ping(nonce):
                self._link.send(Pong(nonce))
            case Cores(count):
                self._paused = count == 0
                if count:
                    self._stage.set_cores(count)
                else:
                    self._tell(self._coalescing.flush())
            case ClearCaches(names):
                self._stage.clear_caches(names)
                self._caches.tell(now=True)
            case Stop():
                self._stopping = True

    def _admit(self, work: Work) -> None:
        try:
            self._stage.admit(_item(work, self._arenas))
        except DeviceLost:
            raise
        except EdgedError as error:
            self._link.send(_failed(work, error))
        else:
            self._held[work.request] = (work, time.perf_counter())

    def _cancel(self, request: int, attempt: int) -> None:
        held = self._held.get(request)
        if held is None or held[0].attempt != attempt:
            return
        del self._held[request]
        self._stage.cancel(request)
        self._coalescing.forget(request)
        self._link.send(Gone(request, attempt))

    def _report(self, event: Event) -> Tokens | Done | Failed:
        work, started = self._held[event.request]
        self._told_at = time.monotonic()
        match event:
            case Progress(request, first, tokens, text):
                return Tokens(request, work.attempt, first, tokens, text)
            case Finished(request, payload):
                del self._held[request]
                elapsed_s = time.perf_counter() - started
                return _answer(self._arenas, work, payload, elapsed_s, len(self._held) + 1)
            case Broken(request, error):
                del self._held[request]
                return _failed(work, error)
