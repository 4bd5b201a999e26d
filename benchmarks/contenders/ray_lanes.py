"""Ray Serve: a deployment of lanes, streamed through its HTTP proxy."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import msgspec
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

from benchmarks.contenders.lane import Ask, Lane
from benchmarks.contenders.settings import Settings, settings
from benchmarks.contenders.sockets import event
from benchmarks.contenders.work import Piece


@serve.deployment
class Answers:
    """One replica: a lane on a thread, fed by the replica's event loop."""

    def __init__(self, encoded: bytes) -> None:
        given = msgspec.json.decode(encoded, type=Settings)
        self._questions: queue.SimpleQueue[tuple[Any, Ask]] = queue.SimpleQueue()
        self._lane = Lane(given)
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        lane = self._lane
        while True:
            while lane.room and not (lane.busy and self._questions.empty()):
                lane.put(*self._questions.get())
            for piece in lane.turn():
                loop, pieces = piece.key
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

    async def __call__(self, request: Request) -> StreamingResponse:
        ask = msgspec.json.decode(await request.body(), type=Ask)
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._questions.put(((asyncio.get_running_loop(), pieces), ask))
        return StreamingResponse(_events(pieces), media_type="text/event-stream")


async def _events(pieces: asyncio.Queue[Piece]) -> AsyncIterator[bytes]:
    piece = Piece(None, "")
    while piece.reply is None:
        piece = await pieces.get()
        yield event(piece)


def main() -> None:
    """Serve until killed."""
    given = settings()
    host, _, port = given.address.partition(":")
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    serve.start(http_options={"host": host, "port": int(port)})
    answers: Any = Answers
    deployment = answers.options(
        num_replicas=given.replicas,
        max_ongoing_requests=given.sequences * 2,
        ray_actor_options={"num_cpus": 0},
    )
    serve.run(deployment.bind(msgspec.json.encode(given)), route_prefix="/ask")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
