"""P3, P3b and P5b: the whole pipeline beside other ways to serve it.

    python -m benchmarks.rag [NAME...] [--quick]     print the table: every contender at 1, 4 and 16 clients

Without names, the table also chooses the strongest contenders for each number of clients, which the rows then
measure beside us. Every turn starts a server, lets it settle under load, measures a window and stops it, so
that nothing of one side is there while another is measured. P3 asks every question once; P3b asks a mix with
repeated topics.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from benchmarks.contenders.line_up import BY_NAME, Contender
from benchmarks.contenders.running import contending
from benchmarks.load import Answered, Order, Result
from benchmarks.measurement import Row, percentile, say, spread
from benchmarks.mixes import distinct, gold_answers, repeated
from benchmarks.setting import STATE, rag_library
from benchmarks.stage_costs import Costs, stage_costs
from edged.testing.daemon import running

CLIENTS = (1, 4, 16)
CHOICE = STATE / "bench" / "strongest.json"
STRONGEST = ("lanes", "litserve-stream")
"""Measured when nothing has chosen yet."""
Kind = Literal["same work", "as shipped"]
ROUNDS: dict[Kind, int] = {"same work": 4, "as shipped": 2}
OURS = "edged"
OUR_BEST = {1: ("turns", 1, 2, 8), 4: ("single", 2, 1, 2), 16: ("single", 2, 1, 8)}
"""How cores are lent, workers of the heavy stages, threads of each and answers side by side, by clients."""
BENEFIT = "bypass = 'benefit'\n"
"""Questions that reranking would change least pass it by, at no measurable loss (B1)."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One server under one load."""

    name: str
    per_s: float
    cpu_s: float
    """CPU seconds of all its processes per answer."""
    busy_cores: float
    first_p50_s: float
    p50_s: float
    p95_s: float
    tokens: float
    prompt_tokens: float
    answers: int
    right: float
    """Share of the answers that contain the collection's own answer."""
    errors: list[str]
    load_average: float


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """All turns at one number of clients."""

    clients: int
    turns: dict[str, list[Turn]]
    """By name, one a round."""
    strongest: str
    ratios: list[float]
    """Our answers per second divided by the strongest contender's, by round."""


def summarised(name: str, result: Result, gold: dict[int, str]) -> Turn:
    """What the clients saw within the window."""
    good = [answered for answered in result.answered if not answered.error]
    touching = [a for a in good if a.ended_s > 0 and a.began_s < result.window_s]
    within = [a for a in touching if a.began_s >= 0] or touching
    if not within:
        raise RuntimeError(f"{name}: no answer in {result.window_s:.0f} s; {_errors(result)}")
    rate = sum(share(answered, result.window_s) for answered in good) / result.window_s
    times = [answered.ended_s - answered.began_s for answered in within]
    return Turn(
        name=name,
        per_s=round(rate, 3),
        cpu_s=round(result.cpu_s / result.window_s / rate, 3),
        busy_cores=round(result.cpu_s / result.window_s, 2),
        first_p50_s=round(statistics.median(a.first_s - a.began_s for a in within), 3),
        p50_s=round(statistics.median(times), 3),
        p95_s=round(percentile(times, 0.95), 3),
        tokens=round(statistics.mean(a.tokens for a in within), 1),
        prompt_tokens=round(statistics.mean(a.prompt_tokens for a in within), 1),
        answers=len(within),
        right=round(statistics.mean(gold[a.question % len(gold)] in a.text.lower() for a in within), 3),
        errors=_errors(result),
        load_average=round(result.load_average, 2),
    )


def share(answered: Answered, window_s: float) -> float:
    """How much of a request lies in the window.

    >>> share(Answered(question=0, began_s=-1.0, ended_s=3.0), 2.0)
    0.5
    """
    inside_s = min(answered.ended_s, window_s) - max(answered.began_s, 0.0)
    return max(0.0, inside_s) / (answered.ended_s - answered.began_s)


def _errors(result: Result) -> list[str]:
    return sorted({answered.error for answered in result.answered if answered.error})[:3]


def order(dialect: Literal["edged", "plain"], address: str, pid: int, asked: Asked) -> Order:
    """What the clients are told."""
    return Order(
        address=address,
        dialect=dialect,
        questions=asked.questions,
        clients=asked.clients,
        settle_s=asked.settle_s,
        window_s=asked.window_s,
        server=pid,
    )


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A load, the same for all sides of a round."""

    library: Path
    questions: tuple[str, ...]
    gold: dict[int, str]
    """Lower case, by the question's number."""
    clients: int
    settle_s: float
    window_s: float
    kind: Kind


def load(kind: Kind, clients: int, number: int, *, quick: bool) -> Asked:
    """Questions that no earlier round asked; time to fill the batch, and caches where topics come back.

    Clients that begin together fill the batch only once the first of them have asked again: an answer among
    sixteen takes ten seconds.
    """
    library = rag_library(quick=False)
    answers = gold_answers()
    if kind == "same work":
        chosen = distinct(library.questions, number)
    else:
        chosen = repeated(library.questions, number)
    return Asked(
        library=library.folder,
        questions=tuple(text for text, _ in chosen),
        gold={place: answers[original] for place, (_, original) in enumerate(chosen)},
        clients=clients,
        settle_s=(16.0 if kind == "as shipped" and not quick else 2.0) + clients * (0.25 if quick else 0.75),
        window_s=8.0 if quick else 30.0,
        kind=kind,
    )


def drive(given: Order) -> Result:
    """Run the clients in a process of their own."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=msgspec.json.encode(given),
        stdout=subprocess.PIPE,
        check=True,
        cwd=STATE.parent,
    )
    return msgspec.json.decode(ran.stdout, type=Result)


def take_turn(name: str, asked: Asked) -> Turn:
    """Start a side, measure it, stop it."""
    result = _ours(asked) if name == OURS else _theirs(BY_NAME[name], asked)
    turn = summarised(name, result, asked.gold)
    say(
        f"{asked.clients:3} clients  {name:16} {turn.per_s:6.3f}/s  CPU {turn.cpu_s:.3f} s  "
        f"first {turn.first_p50_s:6.2f} s  p50 {turn.p50_s:6.2f} s  p95 {turn.p95_s:6.2f} s  "
        f"tokens {turn.tokens:4.1f}  busy {turn.busy_cores:.2f}  load {turn.load_average}"
    )
    return turn


def _theirs(contender: Contender, asked: Asked) -> Result:
    with contending(contender, asked.library, contender.settings(asked.clients)) as program:
        return drive(order("plain", program.address, program.pid, asked))


def _ours(asked: Asked) -> Result:
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), our_config(asked)) as daemon,
    ):
        for _ in daemon.client.chat([{"role": "user", "content": "Is anybody there?"}], max_tokens=2):
            pass
        return drive(order("edged", str(daemon.client.socket), daemon.process.pid, asked))


def our_config(asked: Asked) -> str:
    """The built-in pipeline, as the contenders are set up: for each number of clients; or an applied plan."""
    base = f"[daemon]\nstate_dir = '{STATE}'\n[library]\ndir = '{asked.library}'\n[queue]\nslots = 64\n"
    answers = "answers_cache_mib = 8" if asked.kind == "as shipped" else "answers_cache_mib = 0"
    if asked.kind == "as shipped" and planned():
        return base + f"[stages.reranker]\n{BENEFIT}[stages.generator]\noptions = {{ {answers} }}\n"
    mode, workers, threads, sequences = OUR_BEST[asked.clients]
    encoder = "options = { threads = 1 }\n" if threads == 1 else ""
    bypass = BENEFIT if asked.kind == "as shipped" else ""
    return base + (
        f"[placement]\nleases = '{mode}'\n[stages.reranker]\nmax_batch = 1\nworkers = {workers}\n"
        f"{encoder}{bypass}[stages.generator]\nvariant = 'q4_1'\nbackend = 'openvino'\nworkers = {workers}\n"
        f"max_batch = {sequences}\noptions = {{ exact = false, threads = {threads}, "
        f"max_num_batched_tokens = 512, running_batch_tokens = {512 if threads == 1 else 256}, {answers} }}\n"
    )


def planned() -> bool:
    """Whether a plan is applied in the state folder."""
    return (STATE / "plan.json").exists()


@cache
def contest(kind: Kind, clients: int, *, quick: bool) -> Contest:
    """Measure the strongest contenders beside us in turns."""
    peers = strongest(clients)[: 2 if kind == "same work" else 1]
    names = [OURS, *peers]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(1 if quick else ROUNDS[kind]):
        asked = load(kind, clients, number + 1, quick=quick)
        for name in names if number % 2 else reversed(names):
            turns[name].append(take_turn(name, asked))
    best = max(peers, key=lambda name: statistics.median(turn.per_s for turn in turns[name]))
    ratios = [ours.per_s / theirs.per_s for ours, theirs in zip(turns[OURS], turns[best], strict=True)]
    return Contest(clients=clients, turns=turns, strongest=best, ratios=ratios)


def strongest(clients: int) -> tuple[str, ...]:
    """The two best of the last table, best first; where there is none yet, those that were best for us."""
    known: dict[str, list[str]] = json.loads(CHOICE.read_bytes()) if CHOICE.exists() else {}
    return tuple(known.get(str(clients), STRONGEST))


def choose(table: dict[str, list[Turn]]) -> None:
    """Remember the two best contenders for each number of clients; one of them streams, for P5b."""
    best = {}
    for place, clients in enumerate(CLIENTS):
        ranked = sorted(set(table) - {OURS}, key=lambda name: -table[name][place].per_s)
        streaming = [name for name in ranked if BY_NAME[name].streams]
        best[str(clients)] = list(dict.fromkeys([ranked[0], streaming[0], *ranked]))[:2]
    CHOICE.parent.mkdir(parents=True, exist_ok=True)
    CHOICE.write_text(json.dumps(best))


@cache
def costs(*, quick: bool) -> Costs:
    """What the stages cost alone."""
    return stage_costs(rag_library(quick=False).folder, 8 if quick else 16)


def throughput(kind: Kind, clients: int, quick: bool) -> tuple[float, dict[str, Any]]:
    """Our answers per second divided by the strongest contender's."""
    began = time.monotonic()
    held = contest(kind, clients, quick=quick)
    detail = described(held)
    if kind == "as shipped":
        detail["plan"] = (
            "applied" if planned() else "none: the settings of P3, answers kept, bypass by benefit"
        )
    elif not quick:
        alone = costs(quick=quick)
        ours = statistics.median(turn.per_s for turn in held.turns[OURS])
        detail["bound_per_s"] = round(alone.bound_per_s(), 3)
        detail["share_of_bound"] = round(ours / alone.bound_per_s(), 3)
        detail["bound_at_this_batch_per_s"] = round(alone.bound_per_s(clients), 3)
        detail["one_core_cpu_s"] = msgspec.to_builtins(alone, str_keys=True)
    detail["elapsed_s"] = round(time.monotonic() - began, 1)
    return statistics.median(held.ratios), detail


def described(held: Contest) -> dict[str, Any]:
    """What an engineer wants to know of a contest."""
    ours, best = held.turns[OURS], held.turns[held.strongest]
    answers = min(sum(turn.answers for turn in side) for side in (ours, best))
    failed = [f"{turn.name}: {turn.errors}" for side in held.turns.values() for turn in side if turn.errors]
    unequal = _unequal(ours, best) if answers >= 32 else []
    return {
        "ratio": spread(held.ratios),
        "strongest": held.strongest,
        "turns": {name: [msgspec.to_builtins(t) for t in side] for name, side in held.turns.items()},
        "violations": [*failed, *unequal],
    }


def _unequal(ours: list[Turn], best: list[Turn]) -> list[str]:
    """Where one side does less: shorter answers or other prompts by more than a tenth."""
    found = []
    for name in ("tokens", "prompt_tokens"):
        mine, theirs = (statistics.mean(getattr(turn, name) for turn in side) for side in (ours, best))
        if not 0.9 <= mine / theirs <= 1.1:
            found.append(f"{name}: {mine:.1f} here, {theirs:.1f} there: not the same work")
    return found


def first_token(quick: bool) -> tuple[float, dict[str, Any]]:
    """Our time to the first token divided by the best streaming peer's, both with 16 clients."""
    held = contest("same work", 16, quick=quick)
    peers = {name: side for name, side in held.turns.items() if name != OURS and BY_NAME[name].streams}
    if not peers:
        raise RuntimeError("no streaming contender was measured")
    waits = {name: statistics.median(turn.first_p50_s for turn in side) for name, side in peers.items()}
    best = min(waits, key=lambda name: waits[name])
    ratio = statistics.median(turn.first_p50_s for turn in held.turns[OURS]) / waits[best]
    detail = described(held)
    slower = statistics.median(held.ratios) < 1.0
    detail["violations"] += ["our throughput is below the best peer's"] if slower else []
    return ratio, detail | {"best_streaming_peer": best, "first_p50_s": waits, "throughput": detail["ratio"]}


def _row(kind: Kind, clients: int, gate: float, goal: float) -> Row:
    name = "P3" if kind == "same work" else "P3b"
    return Row(
        id=f"{name}@{clients}",
        what=f"RAG answers per second, {kind}, {clients} clients / best contender",
        unit="ratio",
        gate=gate,
        goal=goal,
        better="higher",
        measure=lambda quick: throughput(kind, clients, quick),
    )


ROWS = (
    *(
        _row("same work", clients, 1.0, goal)
        for clients, goal in zip(CLIENTS, (1.1, 1.15, 1.15), strict=True)
    ),
    *(
        _row("as shipped", clients, gate, goal)
        for clients, gate, goal in zip(CLIENTS, (1.2, 1.3, 1.4), (1.5, 1.8, 2.0), strict=True)
    ),
    Row(
        id="P5b",
        what="first token with 16 clients / best streaming peer's, at no less throughput",
        unit="ratio",
        gate=1.0,
        goal=0.5,
        better="lower",
        measure=first_token,
    ),
)


def main(arguments: list[str]) -> None:
    """Print answers per second at 1, 4 and 16 clients, then CPU seconds and first token at 16."""
    quick = "--quick" in arguments
    names = [name for name in arguments if not name.startswith("-")] or [OURS, *BY_NAME]
    loads = [load("same work", clients, 0, quick=quick) for clients in CLIENTS]
    table = {name: [take_turn(name, asked) for asked in loads] for name in names}
    if set(BY_NAME) <= set(names):
        choose(table)
    print(f"{'':18}" + "".join(f"{n:>9}" for n in CLIENTS) + f"{'CPU s':>9}{'first s':>9}{'p95 s':>9}")
    for name, turns in sorted(table.items(), key=lambda row: -row[1][-1].per_s):
        rates = "".join(f"{turn.per_s:9.3f}" for turn in turns)
        print(f"{name:18}{rates}{turns[-1].cpu_s:9.3f}{turns[-1].first_p50_s:9.2f}{turns[-1].p95_s:9.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
