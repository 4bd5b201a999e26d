"""How a contender uses the runtimes: one struct, so that every program is told in the same way."""

from __future__ import annotations

import sys

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a program uses the runtimes; the line-up gives each contender the best that was found."""

    library: str
    models: str
    cache: str
    """Where OpenVINO's form of the generator lies; made when it is missing."""
    address: str
    """A Unix socket's path, or `host:port`."""
    variant: str = "q4_1"
    threads: int = 2
    """Of the engine; and how many runs of the reranker go side by side, each on one thread, which costs
    less than one run on several."""
    replicas: int = 1
    """Copies of the whole program, where the framework can."""
    front_workers: int = 1
    """Threads or processes that retrieve and rerank."""
    intra_threads: int = 1
    """Threads of one run of an encoder."""
    spinning: bool = False
    """Whether these threads wait busily."""
    rerank_rows: int = 2
    """Pairs of one run, sorted by length, so that padding costs little."""
    sequences: int = 8
    """Answers decoded together, or requests of a static batch."""
    wait_s: float = 0.0
    """How long a static batch waits for company."""
    step_tokens: int = 512
    """Prompt tokens of one step of the engine."""
    group: int = 1
    """Requests let in together, where the program decides that itself."""
    unwanted_fusions: tuple[str, ...] = ("SkipLayerNormFusion",)
    """Of onnxruntime: this one is slower than its parts, and edged's adapter leaves it out too."""
    precision: str = "f32"
    prefix_caching: bool = True


def settings() -> Settings:
    """What the first argument says, as JSON."""
    return msgspec.json.decode(sys.argv[1], type=Settings)
