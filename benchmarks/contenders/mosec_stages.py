"""mosec: batches formed by its server, streamed by its SSE worker.

Either one stage that does everything (a process for each replica) or, with `front_workers`, retrieval and
reranking in processes of their own in front of it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from mosec import Server, SSEWorker, Worker

from benchmarks.contenders.lane import Ask
from benchmarks.contenders.settings import settings
from benchmarks.contenders.work import Engine, Front, Piece
from edged.messages import Passage

given = settings()


class Prepared(msgspec.Struct):
    """What goes from one stage to the next."""

    ask: Ask
    passages: tuple[Passage, ...]


class Retrieve(Worker):
    """The first of two stages."""

    def __init__(self) -> None:
        super().__init__()
        self._front = Front(given)

    def serialize_ipc(self, data: Prepared) -> bytes:
        return msgspec.msgpack.encode(data)

    def forward(self, data: Any) -> Prepared:
        ask = msgspec.convert(data, Ask)
        return Prepared(ask, self._front.passages(ask.question))


class Generate(SSEWorker):
    """The second of two stages: a static batch, each answer streamed as it grows."""

    def __init__(self) -> None:
        super().__init__()
        self._engine = Engine(given)

    def deserialize_ipc(self, data: bytes) -> Prepared:
        return msgspec.msgpack.decode(data, type=Prepared)

    def prepared(self, data: Any) -> Prepared:
        return data

    def forward(self, data: Any) -> Any:
        batch = data if isinstance(data, list) else [data]
        for index, item in enumerate(batch):
            ready = self.prepared(item)
            prompt = self._engine.prompt(ready.ask.question, ready.passages, ready.ask.max_tokens)
            self._engine.add(index, prompt)
        while self._engine.active:
            for piece in self._engine.step():
                self.send_stream_event(_text(piece), index=piece.key)
        return data


class Everything(Generate):
    """The only stage."""

    def __init__(self) -> None:
        super().__init__()
        self._front = Front(given)

    def prepared(self, data: Any) -> Prepared:
        ask = msgspec.convert(data, Ask)
        return Prepared(ask, self._front.passages(ask.question))


def _text(piece: Piece) -> str:
    return msgspec.json.encode({"text": piece.text, "reply": piece.reply}).decode()


def main() -> None:
    """Serve until killed; the port comes from the environment, as mosec has it."""
    server = Server()
    wait_ms = max(1, round(1000 * given.wait_s))
    if given.front_workers:
        server.append_worker(Retrieve, num=given.front_workers, timeout=300, route="/ask")
    server.append_worker(
        Generate if given.front_workers else Everything,
        num=given.replicas,
        max_batch_size=given.sequences,
        max_wait_time=wait_ms,
        timeout=300,
        route="/ask",
    )
    server.run()


if __name__ == "__main__":
    main()
