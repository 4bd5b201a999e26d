"""A pool of threads that retrieve and rerank, and one thread that steps the engine for all of them."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

from benchmarks.contenders.lane import Ask
from benchmarks.contenders.settings import Settings, settings
from benchmarks.contenders.sockets import Emit, listen, serve
from benchmarks.contenders.work import Engine, Front
from edged.stages.prompt import Prompt

Prompts = queue.SimpleQueue[tuple[Prompt, Emit]]


def main() -> None:
    """Serve until killed."""
    given = settings()
    engine = Engine(given)
    prompts: Prompts = queue.SimpleQueue()
    own = threading.local()
    pool = ThreadPoolExecutor(given.front_workers, initializer=lambda: setattr(own, "front", Front(given)))

    def one(ask: Ask, emit: Emit) -> None:
        passages = own.front.passages(ask.question)
        prompts.put((engine.prompt(ask.question, passages, ask.max_tokens), emit))

    threading.Thread(target=generate, args=(engine, prompts, given), daemon=True).start()
    serve(listen(given.address), lambda ask, emit: pool.submit(one, ask, emit))


def generate(engine: Engine, prompts: Prompts, given: Settings) -> None:
    """Step for ever; wait for prompts only when nothing is being answered."""
    while True:
        while engine.active < given.sequences and not (engine.active and prompts.empty()):
            prompt, emit = prompts.get()
            engine.add(emit, prompt)
        for piece in engine.step():
            piece.key(piece)


if __name__ == "__main__":
    main()
