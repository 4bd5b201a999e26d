"""R6: the cable to a peer is cut in the middle of an answer. R6s: who must not be heard."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._hostile_peers import NAMES, Target, attacks
from benchmarks.measurement import Row, percentile, say, spread
from benchmarks.setting import ALONE, sample_models
from edged.catalogue import Catalogue
from edged.models.store import ModelStore
from edged.peers.book import Book, Peer
from edged.peers.keys import key_file, make_keys
from edged.peers.probe import probe
from edged.replies import Delta, Final
from edged.testing.daemon import RunningDaemon, running
from edged.testing.network import refusal
from edged.testing.pair import Pair, paired
from edged.transport.curve import new_keys

CUTS, QUICK_CUTS = 50, 5
ROUNDS, QUICK_ROUNDS = 20, 3
TOKENS = 64
SEED = 6
PROMPTS = (
    "Write a short story about a lighthouse keeper.",
    "Explain how a heat pump works.",
    "List the planets and say something about each.",
    "Describe a walk through a forest in autumn.",
)
MODEL = "smollm2-135m-instruct"
REAL = (
    f"{ALONE}[stages.generator]\nmodel = '{MODEL}'\nbackend = 'openvino'\nmax_batch = 4\n"
    "options = { exact = true, threads = 1 }\n"
)
IMPATIENT = "first_wait_s = 0.3\nlongest_wait_s = 0.5\n"
"""So that fifty cuts take minutes: a peer that fails fifty times in a row is left alone for a minute each.
How silence is noticed is as shipped."""


class Seen(NamedTuple):
    """One answer as its client saw it."""

    final: Final | None
    gap_s: float
    """The longest time without text behind the cut."""


def stream(
    daemon: RunningDaemon, prompt: str, after: int = 0, cut: Callable[[], None] = lambda: None
) -> Seen:
    """Ask; cut when so many characters have come."""
    length, last, gap_s, final = 0, 0.0, 0.0, None
    was_cut = False
    messages = [{"role": "user", "content": prompt}]
    for event in daemon.client.chat(messages, model="generator", max_tokens=TOKENS):
        now = time.perf_counter()
        if isinstance(event, Final):
            final = event
            continue
        assert isinstance(event, Delta)
        length += len(event.text)
        if was_cut:
            gap_s = max(gap_s, now - last)
        last = now
        if after and length >= after and not was_cut:
            was_cut = True
            cut()
            last = time.perf_counter()
    return Seen(final, gap_s)


def link_downs(quick: bool) -> tuple[float, dict[str, Any]]:
    """The 99th percentile of the gap, over cuts in the middle of an answer that the peer makes."""
    if why := refusal():
        raise RuntimeError(why)
    weights = ModelStore(sample_models() / "models", Catalogue.discover()).resolve(MODEL).path.parent
    wanted, chooser = (QUICK_CUTS if quick else CUTS), random.Random(SEED)
    gaps: list[float] = []
    violations: list[str] = []
    missed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        paired(Path(folder), lambda _: REAL, IMPATIENT, models=[weights]) as pair,
    ):
        alone = {prompt: stream(pair.home, prompt).final for prompt in PROMPTS}
        pair.home.admin.pin_rung("peer")
        while len(gaps) < wanted and missed < wanted:
            prompt = PROMPTS[(len(gaps) + missed) % len(PROMPTS)]
            settle(pair)
            before = pair.peer().returned
            try:
                seen = stream(pair.home, prompt, chooser.randrange(10, 120), pair.cable.cut)
            finally:
                pair.cable.mend()
            if pair.peer().returned == before:
                missed += 1  # the answer was over before the cut was noticed, or it was never away
                continue
            known = alone[prompt]
            assert known is not None
            if seen.final is None or (seen.final.text, seen.final.usage) != (known.text, known.usage):
                violations.append(f"{prompt!r}: {seen.final and seen.final.text!r} for {known.text!r}")
            gaps.append(seen.gap_s)
            say(f"  cut {len(gaps)}: {seen.gap_s:.2f} s without text")
    completed = len(gaps) - sum("None" in violation for violation in violations)
    detail: dict[str, Any] = {
        "cuts": len(gaps),
        "completed_share": round(completed / max(1, len(gaps)), 4),
        "identical_share": round(1 - len(violations) / max(1, len(gaps)), 4),
        "gap_s": spread(gaps),
        "gap_p50_s": round(percentile(gaps, 0.5), 3),
        "not_counted": missed,
        "violations": violations[:5],
    }
    return percentile(gaps, 0.99), detail


def settle(pair: Pair) -> None:
    """Wait until the box wants answers made elsewhere and the other one would make one."""
    pair.wait_useful()
    pair.home.wait_for(lambda status: bool(status.peers and status.peers.away), "a hot box")


def hostile(quick: bool) -> tuple[float, dict[str, Any]]:
    """Messages of attackers that reached the application, all attacks together."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    reached = dict.fromkeys(NAMES, 0)
    violations: list[str] = []
    with fortress() as (daemon, target):
        for _ in range(rounds):
            for name, attack in attacks(target).items():
                before = messages(daemon)
                try:
                    attack()
                except TimeoutError as error:
                    violations.append(f"{name}: {error}")
                reached[name] += messages(daemon) - before
            probe(Peer(name="it", key=target.server, endpoint=target.endpoint), target.friend, 5.0)
        status = daemon.client.status().peers
    assert status is not None
    detail: dict[str, Any] = {
        "rounds": rounds,
        "reached": reached,
        "handshakes_refused": status.refused,
        "honest_messages": status.messages,
        "violations": violations,
    }
    return float(sum(reached.values())), detail


@contextmanager
def fortress() -> Iterator[tuple[RunningDaemon, Target]]:
    """A daemon that listens for one peer, on loopback."""
    friend = new_keys()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "state").mkdir()
        keys = make_keys(key_file(folder / "state", {}), replace=False)
        Book(folder / "state").add(Peer(name="friend", key=friend.public))
        endpoint = "tcp://127.0.0.1:17443"
        config = f"[peers]\nenabled = true\nlisten = '{endpoint}'\n{ALONE}"
        generator = "[stages.generator]\nbackend = 'simulated'\ndevice = 'sim:cpu'\n"
        with running(folder, config + generator) as daemon:
            yield daemon, Target(endpoint, keys.public, friend)


def messages(daemon: RunningDaemon) -> int:
    """How many messages reached the application."""
    status = daemon.client.status().peers
    assert status is not None
    return status.messages


ROWS = (
    Row(
        id="R6",
        what="peer gone in the middle of an answer: longest time without text, 99th percentile",
        unit="s",
        gate=3.0,
        goal=1.0,
        better="lower",
        measure=link_downs,
    ),
    Row(
        id="R6s",
        what="strangers, plain text, wrong keys, replays, oversize: messages that reach the application",
        unit="messages",
        gate=0.0,
        goal=0.0,
        better="lower",
        measure=hostile,
    ),
)
