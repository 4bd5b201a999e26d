"""The strongest program that we can write on OpenVINO GenAI: schedulers that share a socket.

Each lane has a reranker and a continuous-batching engine of its own and takes a connection when it has room.
One lane on two cores answers one client soonest; a lane for each core wastes nothing on the way from one
thread to two. Lanes are processes: GenAI's `step` holds the interpreter's lock, so that two engines in one
process would take turns.
"""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading

import msgspec

from benchmarks.contenders.lane import Ask, Lane
from benchmarks.contenders.settings import Settings, settings
from benchmarks.contenders.sockets import Emit, listen, serve

Questions = queue.SimpleQueue[tuple[Emit, Ask]]


def main() -> None:
    """Serve until killed; a further lane is this program again, given the listening socket."""
    given = settings()
    if given.address.isdecimal():
        run(given)
        return
    with listen(given.address) as listener:
        descriptor = listener.fileno()
        shared = msgspec.structs.replace(given, address=str(descriptor))
        command = [sys.executable, "-m", "benchmarks.contenders.lanes", msgspec.json.encode(shared).decode()]
        lanes = [subprocess.Popen(command, pass_fds=[descriptor]) for _ in range(given.replicas)]
        for lane in lanes:
            lane.wait()


def run(given: Settings) -> None:
    """One lane."""
    questions: Questions = queue.SimpleQueue()
    lane = Lane(given)
    threading.Thread(target=work, args=(questions, lane), daemon=True).start()
    with socket.socket(fileno=int(given.address)) as listener:
        serve(listener, lambda ask, emit: questions.put((emit, ask)), given.sequences)


def work(questions: Questions, lane: Lane) -> None:
    """Turns for ever; it waits for a question only when it has nothing else to do."""
    while True:
        while not (lane.busy and questions.empty()):
            lane.put(*questions.get())
        for piece in lane.turn():
            piece.key(piece)


if __name__ == "__main__":
    main()
