"""The far end of one hop: `python -m benchmarks.hop KIND JSON` makes messages until told to stop.

It prints the CPU seconds that it used, which is the least noisy figure of all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from edged.messages import Batch, Done, Stop, Work
from edged.transport.links import Dealer
from edged.transport.slots import Arena, Geometry

NAME = "producer-1"
RESULTS = 1
"""Arena that the producer writes; 0 is the one that it reads."""


def edged(options: dict[str, Any]) -> None:
    """A worker as edged's are: descriptors over the link, payloads in its arena."""
    geometry = Geometry(options["slots"], options["slot_bytes"])
    results = Arena(options["results"], geometry, writable=True)
    sources = Arena(options["sources"], geometry, writable=False)
    produce = _producer(options, results, sources)
    link = Dealer(Path(options["path"]), NAME)
    link.send(Done(0, 0, results.describe(Work(0, 0, "", _ref(0), _ref(0), 0).target, 0), 0.0, 1))
    began = time.process_time()
    while not isinstance(message := link.receive(), Stop):
        if isinstance(message, Batch):
            link.send(*[Done(work.request, work.attempt, produce(work), 0.0, 1) for work in message.items])
    print(time.process_time() - began, flush=True)
    link.close()


def _ref(slot: int) -> Any:
    from edged.messages import SlotRef

    return SlotRef(RESULTS, slot, 0)


def _producer(options: dict[str, Any], results: Arena, sources: Arena) -> Any:
    """How a result comes into its slot: copied in, made in place, or what was read written back.

    Making is not the transport's to pay for: in place, what was made before gets the request's number.
    """
    size, mode = options["bytes"], options["mode"]
    payload = os.urandom(size)
    numbers = [np.frombuffer(results.slot(n)[:size], np.uint32) for n in range(options["slots"])]
    for slot in numbers if mode == "place" else ():
        slot[:] = np.frombuffer(payload, np.uint32)

    def in_place(work: Work) -> Any:
        numbers[work.target.slot][0] = work.request
        return results.describe(work.target, size)

    if mode == "place":
        return in_place
    if mode == "echo":
        return lambda work: results.write(work.target, [sources.read(work.source)])
    if mode == "echo_place":
        return lambda work: (sources.read(work.source), results.describe(work.target, size))[1]
    return lambda work: results.write(work.target, payload)


def pyzmq(options: dict[str, Any]) -> None:
    """PUSH that copies every payload into a message."""
    context = zmq.Context()
    sender, control = context.socket(zmq.PUSH), context.socket(zmq.PAIR)
    sender.connect(f"ipc://{options['path']}")
    control.connect(f"ipc://{options['path']}.c")
    payload = os.urandom(options["bytes"])
    control.send(b"")
    control.recv()
    began = time.process_time()
    for _ in range(options["messages"]):
        sender.send(payload)
    control.recv()  # everything has arrived
    print(time.process_time() - began, flush=True)
    context.destroy(linger=0)


def bare(options: dict[str, Any]) -> None:
    """A DEALER that sends back what it gets."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(f"ipc://{options['path']}")
        socket.send(bytes(64))
        for _ in range(options["messages"]):
            socket.send(socket.recv())


if __name__ == "__main__":
    chosen = json.loads(sys.argv[2])
    if chosen["cpu"] >= 0:
        os.sched_setaffinity(0, {chosen["cpu"]})
    {"edged": edged, "pyzmq": pyzmq, "bare": bare}[sys.argv[1]](chosen)
