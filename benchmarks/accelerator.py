"""R12: an accelerator that vanishes under eight streaming clients: what fails, what is cut, what the gap is.

The accelerator is simulated: it computes what llama.cpp computes on the CPU, from the same weights, and is
taken away and given back by its fault file. The answers go on on the real CPU, in a worker that is loaded for
the purpose: most of the gap is its start.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.asking import asking
from benchmarks.measurement import Row, percentile, say
from benchmarks.reliability import CLIENTS, SEED
from benchmarks.setting import ALONE, QUESTIONS, STATE, generators
from edged.client import Client
from edged.errors import EdgedError
from edged.replies import Delta
from edged.report import Status
from edged.testing.daemon import RunningDaemon, running

MODEL, VARIANT, DEVICE = "smollm2-135m-instruct", "q4_0", "sim:gpu"
TOKENS = 32
CONFIG = f"""
[daemon]
state_dir = "{{state}}"
[placement]
lost_first_s = 0.2
lost_longest_s = 0.2
{ALONE}[stages.generator]
model = "{MODEL}"
variant = "{VARIANT}"
backend = "simulated"
device = "{DEVICE}"
stream_interval_ms = 0
fallback = [{{{{ device = "cpu", backend = "llama_cpp", options = {{{{}}}} }}}}]
options = {{{{ runtime = "llama_cpp", faults = "{{faults}}" }}}}
"""


class Heard(NamedTuple):
    """An answer as its client had it: when each piece came."""

    question: str
    text: str
    code: str
    resumed: int
    at_s: list[float]


def ask(client: Client, question: str) -> Heard:
    """Stream one answer."""
    text, code, resumed, ended = "", "", 0, False
    at_s = [time.monotonic()]
    try:
        for event in client.chat(
            [{"role": "user", "content": question}], model="generator", max_tokens=TOKENS
        ):
            at_s.append(time.monotonic())
            if isinstance(event, Delta):
                text += event.text
            else:
                ended, resumed = True, event.resumed
                code = "" if event.text == text else "the streamed text is not the final text"
    except EdgedError as error:
        return Heard(question, text, error.code, resumed, at_s)
    return Heard(question, text, code if ended else "no end", resumed, at_s)


def losses_under_load(quick: bool) -> tuple[float, dict[str, Any]]:
    """Take the device away again and again while eight clients stream; the figure is what went wrong."""
    losses = 5 if quick else 50
    generators(VARIANT)
    questions = QUESTIONS[:8]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "state").mkdir()
        (folder / "state" / "models").symlink_to(STATE / "models", target_is_directory=True)
        faults = folder / "faults.json"
        with running(folder, CONFIG.format(state=folder / "state", faults=faults)) as daemon:
            reference = {question: ask(daemon.client, question).text for question in questions}
            answers: list[Heard] = []

            def client(chooser: random.Random) -> None:
                answers.append(ask(daemon.client, chooser.choice(questions)))

            with asking(CLIENTS, SEED, client):
                lost_at_s, back_s = _lose(daemon, faults, losses, answers)
            status = daemon.wait_for(lambda s: s.outstanding == 0, "the last answers")
    (stage,) = [stage for stage in status.stages if stage.name == "generator"]
    return _judged(reference, answers, lost_at_s, back_s, stage.device_losses, stage.device_returns, losses)


def _lose(
    daemon: RunningDaemon, faults: Path, losses: int, answers: list[Heard]
) -> tuple[list[float], list[float]]:
    """Take the device away while everybody is in mid-answer, and give it back; when, and how long it took."""
    chooser = random.Random(SEED)
    lost_at_s, back_s = [], []
    for number in range(losses):
        daemon.wait_for(lambda _: _busy(daemon, DEVICE), "everybody in mid-answer")
        time.sleep(chooser.uniform(0.0, 0.5))
        _write(faults, f'{{"gone": ["{DEVICE}"]}}')
        lost_at_s.append(time.monotonic())
        daemon.wait_for(lambda _: _busy(daemon, "cpu"), "answers on the CPU")
        _write(faults, "{}")
        given_s = time.monotonic()
        daemon.wait_for(partial(_returned, daemon, number), "the return")
        back_s.append(time.monotonic() - given_s)
        say(f"R12: loss {number + 1} of {losses}, back after {back_s[-1]:.1f} s, {len(answers)} answers")
    return lost_at_s, back_s


def _returned(daemon: RunningDaemon, before: int, _status: Status) -> bool:
    return daemon.stage("generator").device_returns > before


def _write(faults: Path, text: str) -> None:
    faults.with_suffix(".new").write_text(text)
    faults.with_suffix(".new").rename(faults)


def _busy(daemon: RunningDaemon, device: str) -> bool:
    """Whether the stage is settled on a device, and holds an answer for every client."""
    stage = daemon.stage("generator")
    settled = len(stage.workers) == 1 and stage.workers[0].state == "ready"
    return settled and stage.device == device and stage.in_flight == CLIENTS


def _judged(
    reference: dict[str, str],
    answers: list[Heard],
    lost_at_s: list[float],
    back_s: list[float],
    seen: int,
    returns: int,
    losses: int,
) -> tuple[float, dict[str, Any]]:
    failed = Counter(answer.code for answer in answers if answer.code)
    well = [answer for answer in answers if not answer.code]
    differing = [answer for answer in well if answer.text != reference[answer.question]]
    cut = [a for a in differing if reference[a.question].startswith(a.text)]
    gaps_s = [gap for answer in answers for gap in _gaps(answer, lost_at_s)]
    calm_s = [
        later - earlier
        for answer in answers
        if not answer.resumed
        for earlier, later in pairwise(answer.at_s[1:])
    ]
    resumed = sum(answer.resumed > 0 for answer in answers)
    violations = [
        *(f"{count} answers ended in {code}" for code, count in failed.items()),
        *(
            f"answer differs: {a.question!r}: {a.text!r}, not {reference[a.question]!r}"
            for a in differing[:5]
        ),
        *([] if seen == returns == losses else [f"{seen} losses and {returns} returns for {losses}"]),
        *([] if resumed >= losses else [f"only {resumed} answers were resumed: nothing was in progress"]),
    ]
    return float(sum(failed.values()) + len(differing)), {
        "losses": losses,
        "switches_seen": seen,
        "returns_seen": returns,
        "answers": len(answers),
        "failed": sum(failed.values()),
        "truncated": len(cut),
        "differing": len(differing),
        "resumed": resumed,
        "gap_s": {"p50": _s(gaps_s, 0.5), "p99": _s(gaps_s, 0.99), "largest": _s(gaps_s, 1.0)},
        "gap_of_calm_tokens_s": {"p50": _s(calm_s, 0.5), "p99": _s(calm_s, 0.99)},
        "return_s": {"p50": _s(back_s, 0.5), "largest": _s(back_s, 1.0)},
        "seed": SEED,
        "violations": violations,
    }


def _gaps(answer: Heard, lost_at_s: list[float]) -> Iterator[float]:
    """The longest silence of an answer behind each loss that it lived through.

    Pieces that were on their way when the device went still come.
    """
    for lost in lost_at_s:
        if answer.resumed and answer.at_s[0] < lost < answer.at_s[-1]:
            yield max(later - earlier for earlier, later in pairwise(answer.at_s) if later > lost)


def _s(seconds: list[float], share: float) -> float | None:
    return round(percentile(seconds, share), 3) if seconds else None


ROWS = (
    Row(
        id="R12",
        what="an accelerator (simulated, real weights) lost again and again under 8 streaming clients, "
        "beside the real CPU: failed + truncated + differing answers",
        unit="answers",
        gate=0,
        goal=0,
        better="lower",
        measure=losses_under_load,
    ),
)
