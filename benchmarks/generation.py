"""P4, P4L: tokens through the daemon and through the engine's own server. G1, G1L: beside a long prompt.

All sides have the same weights, prompts, threads, arithmetic and number of sequences. P4 divides by the least
server around the engine (`_engine_server.py`), with the same clients on the same cores. Its detail has the
engine's own program beside (`_engines.py`), which serves nobody: no socket, no text, no client. G1 compares
with that one. P4 has `exact = false` on all sides, in the detail `exact = true`; G1 has what ships.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks._engines import CONTEXT_TOKENS, Engine, Load, Result
from benchmarks._streams import Order
from benchmarks.measurement import Row, percentile, say, spread
from benchmarks.setting import ALONE, ROOT, STATE, generators
from benchmarks.throughput import daemon_cpu_s
from edged.catalogue import Catalogue
from edged.governor.sensors import cpu_s
from edged.models.store import ModelStore
from edged.placement.sequences import BUDGETS
from edged.testing.daemon import RunningDaemon, running

MODEL = "smollm2-135m-instruct"
VARIANTS = {"openvino": "q4_1", "llama_cpp": "q4_0"}
"""The weights that each engine is fastest with (docs/operations.md)."""
STEP_TOKENS = {"openvino": 512, "llama_cpp": 128}
"""Most tokens of a step of the bare engines, where a run does not look for the best itself."""
TRIED_STEP_TOKENS = (128, 256, 512)
STREAMS = (1, 4, 8, 16)
LONG_CHARACTERS = 4500
RUNNING = 4
"""Streams that run while a long prompt is read."""


class Side(NamedTuple):
    """What one side gave in one round."""

    result: Result
    cpu_s: float
    client_cpu_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.result.tokens / self.result.wall_s


Ask = Callable[[Load], Side]


def texts() -> str:
    """Prose to ask about: the sample documents."""
    return " ".join(path.read_text() for path in sorted((ROOT / "examples" / "documents").glob("*.md")))


def prompts(count: int, seed: int) -> tuple[str, ...]:
    """Prompts of about 40 to 200 tokens whose answers are long; none is the beginning of another."""
    chooser, text = random.Random(seed), texts()
    starts = [chooser.randrange(len(text) - 700) for _ in range(count)]
    pieces = [text[start : start + chooser.randrange(40, 600)] for start in starts]
    return tuple(f"{n}. Explain at length, with examples: {piece}" for n, piece in enumerate(pieces, seed))


# ------------------------------------------------------------------------- the two sides


def config(backend: str, sequences: int, *, exact: bool) -> str:
    """A daemon with a generator and nothing else."""
    options = f"exact = {str(exact).lower()}, context_tokens = {CONTEXT_TOKENS}"
    return (
        f"[daemon]\nstate_dir = '{STATE}'\n{ALONE}"
        f"[stages.generator]\nmodel = '{MODEL}'\nbackend = '{backend}'\nvariant = '{VARIANTS[backend]}'\n"
        f"max_batch = {sequences}\noptions = {{ {options}, threads = {threads()} }}\n"
    )


def threads() -> int:
    """As many as there are cores, on both sides."""
    return len(os.sched_getaffinity(0))


def through(socket: Path, used_s: Callable[[], float], load: Load) -> Side:
    """Clients in a process of their own; `used_s` gives the CPU seconds of the server."""
    order = Order(socket=str(socket), model="generator", load=load)
    before_s = used_s()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._streams"],
        input=msgspec.json.encode(order),
        stdout=subprocess.PIPE,
        check=True,
    )
    result = msgspec.json.decode(done.stdout, type=Result)
    return Side(result, used_s() - before_s, result.cpu_s)


def through_daemon(daemon: RunningDaemon) -> Ask:
    """The daemon, asked over its socket."""
    return partial(through, daemon.client.socket, partial(daemon_cpu_s, daemon))


@contextmanager
def bare(backend: str, sequences: int, *, exact: bool, step_tokens: int) -> Iterator[Ask]:
    """The engine's own program, loaded; ended on leaving."""
    engine = _engine(backend, sequences, exact=exact, step_tokens=step_tokens)
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks._engines"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def exchange(message: msgspec.Struct) -> bytes:
            stdin.write(msgspec.json.encode(message) + b"\n")
            stdin.flush()
            if not (line := stdout.readline()):
                ended = process.wait()
                complaints.seek(0)
                raise RuntimeError(
                    f"the program on {backend} alone ended with {ended}: "
                    f"{complaints.read()[-500:].decode(errors='replace')}"
                )
            return line

        def ask(load: Load) -> Side:
            result = msgspec.json.decode(exchange(load), type=Result)
            return Side(result, result.cpu_s, 0.0)

        exchange(engine)
        yield ask
        stdin.close()


@contextmanager
def served(backend: str, sequences: int, *, exact: bool, step_tokens: int) -> Iterator[Ask]:
    """The least server around the engine, loaded; ended on leaving."""
    engine = _engine(backend, sequences, exact=exact, step_tokens=step_tokens)
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "engine.sock"
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks._engine_server", str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(msgspec.json.encode(engine) + b"\n")
                process.stdin.flush()
                if not process.stdout.readline():
                    raise RuntimeError(f"the server on {backend} alone ended with {process.wait()}")
                yield partial(through, socket, lambda: cpu_s(process.pid))
            finally:
                process.kill()


def _engine(backend: str, sequences: int, *, exact: bool, step_tokens: int) -> Engine:
    variant = ModelStore(STATE / "models", Catalogue.discover()).resolve(MODEL, VARIANTS[backend])
    return Engine(
        backend=backend,
        path=str(variant.path),
        threads=threads(),
        sequences=sequences,
        exact=exact,
        step_tokens=step_tokens,
    )


@contextmanager
def both(backend: str, sequences: int, *, exact: bool, step_tokens: int = 0) -> Iterator[tuple[Ask, Ask]]:
    """The daemon and the bare engine, loaded and warm; whoever is not asked is idle."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), config(backend, sequences, exact=exact)) as daemon,
        bare(backend, sequences, exact=exact, step_tokens=step_tokens or STEP_TOKENS[backend]) as alone,
    ):
        sides = (through_daemon(daemon), alone)
        _warm_up(sides, sequences)
        yield sides


def _warm_up(sides: Sequence[Ask], sequences: int) -> None:
    for ask in sides:
        ask(Load(prompts=prompts(sequences, 10**6), streams=sequences, max_tokens=4))


# -------------------------------------------------------------------- P4: tokens per second


def generation(backend: str, streams: int, quick: bool) -> tuple[float, dict[str, Any]]:
    """Tokens per second of all streams through the daemon, divided by those of the engine's own server."""
    generators(VARIANTS[backend])
    step_tokens = STEP_TOKENS[backend] if quick else best_step_tokens(backend, streams)
    measure = partial(rates, backend, streams, step_tokens=step_tokens, quick=quick)
    sides = measure(2 if quick else 5, exact=False)
    detail = _compared(sides) | {
        "engine_tokens_a_step": step_tokens,
        "compared": f"{MODEL} {VARIANTS[backend]}, {threads()} threads, exact = false on all sides",
    }
    if not quick:
        detail["exact"] = _compared(measure(3, exact=True))
    return detail["ratio"]["median"], detail


def _compared(sides: Sequence[list[Side]]) -> dict[str, Any]:
    ours, server, alone = sides

    def over(theirs: list[Side], figure: Callable[[Side], float]) -> dict[str, float]:
        return spread([figure(a) / figure(b) for a, b in zip(ours, theirs, strict=True)])

    return {
        "ratio": over(server, lambda side: side.tokens_per_s),
        "cpu_ratio": over(server, _cpu),
        "ratio_to_engine_alone": over(alone, lambda side: side.tokens_per_s),
        "daemon": summary(ours),
        "server": summary(server),
        "engine_alone": summary(alone),
    }


def best_step_tokens(backend: str, streams: int) -> int:
    """The engine's best step for this many streams, by a load on each."""
    found: dict[int, float] = {}
    for step_tokens in TRIED_STEP_TOKENS:
        with bare(backend, streams, exact=False, step_tokens=step_tokens) as ask:
            ask(Load(prompts=prompts(streams, 10**6), streams=streams, max_tokens=4))
            load = Load(prompts=prompts(max(8, 2 * streams), 10**7), streams=streams, max_tokens=96)
            found[step_tokens] = ask(load).tokens_per_s
        say(f"{backend} alone, {streams} streams, {step_tokens} tokens a step: {found[step_tokens]:.1f}/s")
    return max(found, key=lambda step_tokens: found[step_tokens])


def rates(
    backend: str, streams: int, rounds: int, *, exact: bool, step_tokens: int, quick: bool
) -> tuple[list[Side], list[Side], list[Side]]:
    """Rounds of the same prompts on the daemon, the server and the engine alone, the order reversed each."""
    given: tuple[list[Side], list[Side], list[Side]] = ([], [], [])
    count = max(2, streams) if quick else max(8, 3 * streams)
    with (
        both(backend, streams, exact=exact, step_tokens=step_tokens) as (daemon, alone),
        served(backend, streams, exact=exact, step_tokens=step_tokens) as server,
    ):
        _warm_up([server], streams)
        sides = (daemon, server, alone)
        for number in range(rounds):
            load = Load(
                prompts=prompts(count, 1000 * number), streams=streams, max_tokens=24 if quick else 96
            )
            for index in range(3) if number % 2 else reversed(range(3)):
                given[index].append(sides[index](load))
            last = ", ".join(f"{side[-1].tokens_per_s:.1f}" for side in given)
            say(f"{backend} {streams}, exact {exact}: daemon, server, engine alone: {last} tokens/s")
    return given


def _cpu(side: Side) -> float:
    return side.cpu_s / side.result.tokens


def summary(sides: list[Side]) -> dict[str, Any]:
    """What an engineer wants to know of one side."""
    firsts = [h.marks_s[0] - h.asked_s for side in sides for h in side.result.heard if h.marks_s]
    gaps = [gap for side in sides for h in side.result.heard for gap in _gaps(h.marks_s)]
    return {
        "tokens_per_s": spread([side.tokens_per_s for side in sides]),
        "cpu_s_per_1000_tokens": spread([1000 * _cpu(side) for side in sides]),
        "client_cpu_s_per_1000_tokens": spread([1e3 * s.client_cpu_s / s.result.tokens for s in sides]),
        "first_token_ms": {"p50": _ms(firsts, 0.5), "p99": _ms(firsts, 0.99)},
        "gap_ms": {"p50": _ms(gaps, 0.5), "p99": _ms(gaps, 0.99)},
    }


def _gaps(marks_s: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(marks_s)]


def _ms(values_s: list[float], share: float) -> float:
    return round(1e3 * percentile(values_s, share), 2) if values_s else 0.0


# ------------------------------------------------------------- G1: a long prompt in company


def gaps(backend: str, quick: bool) -> tuple[float, dict[str, Any]]:
    """95th percentile of the gaps of 4 running answers while a long prompt is read / the same before."""
    generators(VARIANTS[backend])
    beside: tuple[list[float], list[float]] = ([], [])
    details: list[dict[str, Any]] = []
    with both(backend, RUNNING + 1, exact=True) as sides:
        for number in range(1 if quick else 7):
            load = Load(
                prompts=prompts(RUNNING, 500 * number),
                streams=RUNNING,
                max_tokens=100 if quick else 160,
                late=f"{number}. Sum this up: {_piece(number, 1200 if quick else LONG_CHARACTERS)}",
            )
            for index in (0, 1) if number % 2 else (1, 0):
                stall = stalled(sides[index](load).result)
                beside[index].append(stall["p95_ratio"])
                details.append({"side": ("daemon", "engine")[index]} | stall)
            say(f"{backend}: gaps grow by {beside[0][-1]:.1f}, in the engine alone {beside[1][-1]:.1f}")
    return statistics.median(beside[0]), {
        "p95_ratio": spread(beside[0]),
        "engine_alone_p95_ratio": spread(beside[1]),
        "rounds": details,
        "prompt_tokens_a_step": BUDGETS[backend].beside,
        "engine_alone_prompt_tokens_a_step": STEP_TOKENS[backend],
    }


def _piece(number: int, characters: int) -> str:
    text = texts()
    start = 997 * number % len(text)
    return (text * 3)[start : start + characters]


def stalled(result: Result) -> dict[str, float]:
    """Gaps of the running answers before a late prompt came, and until its first token."""
    *running, late = result.heard
    until_s = late.marks_s[0] if late.marks_s else result.wall_s
    settled_s = max(heard.marks_s[0] for heard in running)
    ends = [pair for heard in running for pair in pairwise(heard.marks_s)]
    before = [b - a for a, b in ends if a > settled_s and b <= late.asked_s]
    during = [b - a for a, b in ends if b > late.asked_s and a < until_s]
    if len(during) < len(running):
        raise RuntimeError("the running answers ended before the long prompt was read")
    return {
        "p95_ratio": round(percentile(during, 0.95) / percentile(before, 0.95), 2),
        "p50_ratio": round(statistics.median(during) / statistics.median(before), 2),
        "before_p50_ms": _ms(before, 0.5),
        "during_p50_ms": _ms(during, 0.5),
        "during_max_ms": _ms(during, 1.0),
        "long_first_token_ms": _ms([until_s - late.asked_s], 1.0),
    }


def _rows() -> Iterator[Row]:
    for id_, backend in (("P4", "openvino"), ("P4L", "llama_cpp")):
        for streams in STREAMS:
            yield Row(
                id=f"{id_}@{streams}",
                what=f"tokens/s of {streams} streams through the daemon / the least server around {backend}",
                unit="ratio",
                gate=0.95,
                goal=1.0,
                better="higher",
                measure=partial(generation, backend, streams),
            )
    for id_, backend in (("G1", "openvino"), ("G1L", "llama_cpp")):
        yield Row(
            id=id_,
            what=f"gaps (p95) of 4 streams on {backend} while a long prompt is read / before",
            unit="ratio",
            gate=8.0,
            goal=4.0,
            better="lower",
            measure=partial(gaps, backend),
        )


ROWS = tuple(_rows())
