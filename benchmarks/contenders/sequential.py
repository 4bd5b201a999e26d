"""The script that everybody writes first: one question after the other, on all cores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from benchmarks.contenders.lane import Ask, Lane
from benchmarks.contenders.settings import settings
from benchmarks.contenders.sockets import Emit, listen, serve


def main() -> None:
    """Serve until killed."""
    given = settings()
    lane = Lane(given)
    pool = ThreadPoolExecutor(1)

    def one(ask: Ask, emit: Emit) -> None:
        lane.put(None, ask)
        while lane.busy:
            for piece in lane.turn():
                emit(piece)

    serve(listen(given.address), lambda ask, emit: pool.submit(one, ask, emit))


if __name__ == "__main__":
    main()
