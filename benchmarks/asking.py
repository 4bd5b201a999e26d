"""Clients that ask round and round while something is done to the daemon."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def asking(clients: int, seed: int, ask: Callable[[random.Random], object]) -> Iterator[None]:
    """Have each client call `ask` with a chooser of its own until the end of the block.

    What a client raises is raised there: one that broke down would be an answer that nobody counts.
    """
    stop = threading.Event()

    def client(number: int) -> None:
        chooser = random.Random(seed + number)
        while not stop.is_set():
            ask(chooser)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        try:
            yield
        finally:
            stop.set()
    for ended in running:
        ended.result()
