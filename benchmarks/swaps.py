"""R4: hot swaps of every stage under eight streaming clients. Nothing may fail, be cut or read otherwise."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

from benchmarks.asking import asking
from benchmarks.measurement import Row, percentile, say
from benchmarks.reliability import CLIENTS, SEED, Outcome, ask
from benchmarks.setting import QUESTIONS, ROOT, STATE, generators
from edged.backend import TensorSession
from edged.config import Library as Settings
from edged.documents.ingest import ingest
from edged.plugins import load
from edged.report import SwapReport
from edged.stages.encoder import Encoder
from edged.stages.factory import find_device
from edged.testing.daemon import RunningDaemon, running

EMBEDDER = "all-minilm-l6-v2"
TOKENS = 12
CALM_ANSWERS = 24
"""Had before the first swap, to compare with."""
MEMORY_TOLERANCE = 1.1
"""Of old + new: a worker's memory is sampled, and grows a little with every length that it has not met."""
CONFIG = f"""
[daemon]
state_dir = "{{state}}"
[stages.retriever]
model = "{EMBEDDER}"
variant = "int8"
backend = "onnx"
device = "cpu"
options = {{{{ candidates = 6 }}}}
[stages.reranker]
backend = "onnx"
device = "cpu"
options = {{{{ keep = 1 }}}}
[stages.generator]
variant = "q4_0"
backend = "llama_cpp"
device = "cpu"
"""

Form = dict[str, str]
FORMS: dict[str, tuple[Form, ...]] = {
    "retriever": ({"variant": "fp32"}, {"backend": "openvino"}, {"device": "cpu:0"}),
    "reranker": ({"backend": "openvino"}, {"device": "cpu:0"}, {"backend": "onnx"}),
    "generator": ({"variant": "q8_0"}, {"device": "cpu:0"}, {"backend": "openvino"}),
}
"""One swap behind the other; the fourth goes back to the configuration. The reranker has one variant."""


class Timed(NamedTuple):
    """An answer and when it was asked for and had."""

    outcome: Outcome
    began_s: float
    ended_s: float


class Swap(NamedTuple):
    """A swap, from when to when, between which of its stage's forms, and the most memory on the way."""

    stage: str
    before: int
    after: int
    began_s: float
    ended_s: float
    took_s: float
    peak_bytes: int


class Stand:
    """A daemon, what it answers in each form of each stage, and what its workers take in them."""

    def __init__(self, daemon: RunningDaemon, questions: Sequence[str]) -> None:
        self.daemon = daemon
        self.questions = questions
        self.texts: dict[tuple[str, int], dict[str, str]] = {}
        self.steady_bytes: Counter[tuple[str, int]] = Counter()
        self.problems: list[str] = []

    def learn(self) -> None:
        """Every form of every stage once, with nobody else there."""
        first = self._answers()
        for stage, forms in FORMS.items():
            self.texts[stage, 0] = first
            for form in range(1, len(forms) + 2):
                self.swap(stage, form - 1)
                here = form % (len(forms) + 1)
                if here:
                    self.texts[stage, here] = self._answers()

    def _answers(self) -> dict[str, str]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            found = pool.map(lambda question: ask(self.daemon.client, question, TOKENS), self.questions)
        return {outcome.question: outcome.text for outcome in found}

    def swap(self, stage: str, before: int) -> Swap:
        """Go on to the stage's next form, and wait until the old worker is gone."""
        forms = FORMS[stage]
        after = (before + 1) % (len(forms) + 1)
        self._note_steady(stage, before)
        began_s = time.monotonic()
        if after:
            self.daemon.admin.swap_stage(stage, **forms[after - 1])  # type: ignore[arg-type]
        else:
            self.daemon.admin.revert_stage(stage)
        report, peak_bytes = self._followed(stage)
        if report.problem:
            self.problems.append(report.problem)
        self._note_steady(stage, after)
        return Swap(stage, before, after, began_s, time.monotonic(), report.took_s, peak_bytes)

    def _followed(self, stage: str) -> tuple[SwapReport, int]:
        peak_bytes = 0
        while True:
            report = self.daemon.admin.swap_report()
            peak_bytes = max(peak_bytes, self._memory(stage))
            if not report.under_way:
                return report, peak_bytes
            time.sleep(0.05)

    def _memory(self, stage: str) -> int:
        return sum(worker.memory_bytes for worker in self.daemon.stage(stage).workers)

    def _note_steady(self, stage: str, form: int) -> None:
        self.steady_bytes[stage, form] = max(self.steady_bytes[stage, form], self._memory(stage))


def swaps_under_load(quick: bool) -> tuple[float, dict[str, Any]]:
    """Swap each stage round and round under load; the figure is everything that went wrong."""
    each = 4 if quick else 200
    questions = QUESTIONS[: 3 if quick else 8]
    with tempfile.TemporaryDirectory() as folder:
        state = _state(Path(folder))
        with running(Path(folder), CONFIG.format(state=state)) as daemon:
            stand = Stand(daemon, questions)
            stand.learn()
            answers: list[Timed] = []

            def client(chooser: random.Random) -> None:
                began_s = time.monotonic()
                outcome = ask(stand.daemon.client, chooser.choice(stand.questions), TOKENS)
                answers.append(Timed(outcome, began_s, time.monotonic()))

            with asking(CLIENTS, SEED, client):
                while len(answers) < CALM_ANSWERS * (1 if quick else 10):
                    time.sleep(0.1)
                calm_until_s = time.monotonic()
                swaps = _swapped(stand, each, answers)
            daemon.wait_for(lambda status: status.outstanding == 0, "healed")
    return _judged(stand, answers, swaps, calm_until_s)


def _swapped(stand: Stand, each: int, answers: list[Timed]) -> list[Swap]:
    swaps: list[Swap] = []
    for stage, forms in FORMS.items():
        for number in range(each):
            swaps.append(stand.swap(stage, number % (len(forms) + 1)))
            say(f"R4: {stage} {number + 1} of {each} in {swaps[-1].took_s:.1f} s, {len(answers)} answers")
    return swaps


def _judged(
    stand: Stand, answers: list[Timed], swaps: list[Swap], calm_until_s: float
) -> tuple[float, dict[str, Any]]:
    failed = [timed for timed in answers if timed.outcome.terminals != 1 or timed.outcome.code]
    differing = [timed for timed in answers if timed not in failed and not _fits(stand, swaps, timed)]
    codes = Counter(timed.outcome.code or "no end" for timed in failed)
    calm_s = [timed.ended_s - timed.began_s for timed in answers if timed.ended_s < calm_until_s]
    swapped_s = [timed.ended_s - timed.began_s for timed in answers if _meanwhile(swaps, timed)]
    peaks = [
        swap.peak_bytes
        / (stand.steady_bytes[swap.stage, swap.before] + stand.steady_bytes[swap.stage, swap.after])
        for swap in swaps
    ]
    violations = [
        *(f"{count} answers ended in {code}" for code, count in codes.items()),
        *(f"answer differs: {timed.outcome.question!r}: {timed.outcome.text!r}" for timed in differing[:5]),
        *stand.problems,
        *([] if swapped_s else ["no answer was under way during a swap: nothing was tested"]),
        *([] if max(peaks) <= MEMORY_TOLERANCE else [f"peak memory {max(peaks):.2f} x old + new"]),
    ]
    return float(len(failed) + len(differing)), {
        "swaps": len(swaps),
        "swap_s": {
            stage: round(statistics.median(swap.took_s for swap in swaps if swap.stage == stage), 2)
            for stage in FORMS
        },
        "answers": len(answers),
        "answers_during_swaps": len(swapped_s),
        "failed_or_truncated": len(failed),
        "differing": len(differing),
        "resumed": sum(timed.outcome.resumed > 0 for timed in answers),
        "p50_ms": {"calm": _ms(calm_s, 0.5), "during_swaps": _ms(swapped_s, 0.5)},
        "p99_ms": {"calm": _ms(calm_s, 0.99), "during_swaps": _ms(swapped_s, 0.99)},
        "p99_bump": round(percentile(swapped_s, 0.99) / percentile(calm_s, 0.99), 2)
        if calm_s and swapped_s
        else None,
        "peak_memory_to_old_plus_new": round(max(peaks), 3),
        "seed": SEED,
        "violations": violations,
    }


def _ms(seconds: Sequence[float], share: float) -> float | None:
    return round(percentile(seconds, share) * 1e3, 1) if seconds else None


def _meanwhile(swaps: Sequence[Swap], timed: Timed) -> list[Swap]:
    return [swap for swap in swaps if swap.began_s < timed.ended_s and timed.began_s < swap.ended_s]


def _fits(stand: Stand, swaps: Sequence[Swap], timed: Timed) -> bool:
    """Whether the answer is, token for token, that of a form which was in force while it was made."""
    touched = _meanwhile(swaps, timed)
    if touched:
        forms = {(swap.stage, form) for swap in touched for form in (swap.before, swap.after)}
    else:
        last = [swap for swap in swaps if swap.ended_s <= timed.began_s][-1:]
        forms = {(swap.stage, swap.after) for swap in last} or {("retriever", 0)}
    return any(stand.texts[form][timed.outcome.question] == timed.outcome.text for form in forms)


def _state(folder: Path) -> Path:
    """A state folder with the checkout's models, and the sample documents in the language of `EMBEDDER`."""
    store = generators("q4_0", "q8_0")
    for name in ("int8", "fp32"):
        store.pull(EMBEDDER, name)
    state = folder / "state"
    state.mkdir()
    (state / "models").symlink_to(store.path, target_is_directory=True)
    (state / "cache").symlink_to(STATE / "cache", target_is_directory=True)  # of compiled models
    backend, variant = load("onnx"), store.resolve(EMBEDDER, "int8")
    session = cast("TensorSession", backend.open(variant, find_device(backend, "cpu"), {}))
    documents = ROOT / "examples" / "documents"
    ingest(
        state / "library",
        [documents],
        Encoder(session, variant),
        Settings(),
        prune=False,
        progress=lambda _step: None,
    )
    session.close()
    return state


ROWS = (
    Row(
        id="R4",
        what="hot swaps (variant, backend, core set) of each stage under 8 streaming clients: "
        "failed + truncated + differing answers",
        unit="answers",
        gate=0,
        goal=0,
        better="lower",
        measure=swaps_under_load,
    ),
)
