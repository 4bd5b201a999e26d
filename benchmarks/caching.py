"""P11, P11b and C1: what remembering and not padding save.

    P11     first token of a question whose passages were asked about before / the same question, cold
    P11b    first token of a question that was asked before / cold
    C1@...  CPU seconds of reranking a question's candidates, as edged runs them / as one padded batch

Caches are emptied through the admin socket, as an operator would. A cold side and a warm side use the same
question; which comes first changes from topic to topic.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.collections import hotpotqa
from benchmarks.measurement import Row, say, spread
from benchmarks.setting import QUESTIONS, STATE, real_config, sample_models, sample_state
from edged import plugins
from edged.backend import TensorSession
from edged.catalogue import Catalogue
from edged.documents.library import Library
from edged.messages import Passage
from edged.models.store import ModelStore
from edged.replies import Delta, Final
from edged.stages.encoder import CrossEncoder, Encoder, feed
from edged.stages.generator import PREFIX
from edged.stages.reranker import passage_text
from edged.testing.daemon import RunningDaemon, running

PARAPHRASES = (
    ("How long must the reset button be held to restore the factory settings?",
     "I want the factory settings back: for how many seconds do I press the reset button?"),
    ("Which TCP port does the Modbus bridge listen on?",
     "To which port must a client of the Modbus bridge connect?"),
    ("How long does the CR2032 cell last?", "After how many years should I change the CR2032 cell?"),
    ("What is the permitted ambient temperature?", "How hot may it be around the gateway?"),
    ("How tight should SMA connectors be?", "With which torque do I tighten the SMA connectors?"),
    ("How long may antenna cables be?", "What is the limit for the length of an antenna cable?"),
    ("What does alarm A310 mean?", "The display says A310. What is wrong?"),
    ("Which account is used for the first login?", "Who do I log in as on a new gateway?"),
)  # fmt: skip
"""Two ways to ask about the same passages: little more than the documents is common to their prompts."""
ANSWER_TOKENS = 4
CANDIDATES = 20
RERANKER = ("ms-marco-minilm-l12-v2", "int8")
EMBEDDER = ("bge-small-en-v1.5", "int8")


class Asked(msgspec.Struct, frozen=True):
    first_token_s: float
    stages_s: dict[str, float]


def ask(daemon: RunningDaemon, question: str) -> Asked:
    """Time to the first text of an answer, and what each stage computed."""
    began = time.perf_counter()
    first_s = 0.0
    final: Final | None = None
    for event in daemon.client.chat([{"role": "user", "content": question}], max_tokens=ANSWER_TOKENS):
        if isinstance(event, Delta):
            first_s = first_s or time.perf_counter() - began
        else:
            final = event
    assert final is not None
    daemon.wait_for(lambda status: status.outstanding == 0, "idle")
    return Asked(first_s, {timing.stage: timing.compute_s for timing in final.timings})


def forget(daemon: RunningDaemon) -> None:
    """Empty all caches, and wait until that is done: a runtime may have to load its engine anew for it.

    Said to the generator alone and without documents, so that nothing of a question's prompt is read.
    """
    daemon.admin.clear_caches()
    for _ in daemon.client.chat([{"role": "user", "content": "Hello"}], model="generator", max_tokens=1):
        pass
    daemon.wait_for(lambda status: status.outstanding == 0, "idle")


class Topic(msgspec.Struct, frozen=True):
    """One question, asked of a daemon that remembers nothing, its passages, or the question itself."""

    cold: Asked
    passages: Asked
    question: Asked


def measure_topic(daemon: RunningDaemon, earlier: str, question: str, *, cold_first: bool) -> Topic:
    """Ask cold, and warm behind another question about the same passages, and once more."""

    def cold() -> Asked:
        forget(daemon)
        return ask(daemon, question)

    def warm() -> tuple[Asked, Asked]:
        forget(daemon)
        ask(daemon, earlier)
        return ask(daemon, question), ask(daemon, question)

    if cold_first:
        before = cold()
        return Topic(before, *warm())
    after = warm()
    return Topic(cold(), *after)


def repeated(which: str, quick: bool) -> tuple[float, dict[str, Any]]:
    """The median over topics of first token warm / cold."""
    state = sample_state()
    pairs = PARAPHRASES[: 4 if quick else len(PARAPHRASES)]
    topics: list[Topic] = []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), real_config(state)) as daemon:
        ask(daemon, "Is anybody there?")
        for number, (earlier, question) in enumerate(pairs):
            topics.append(measure_topic(daemon, earlier, question, cold_first=number % 2 == 0))
            say(f"{number + 1}: " + ", ".join(f"{k} {v.first_token_s:.3f} s" for k, v in _sides(topics[-1])))
        caches = {f"{s.name}.{k}": v for s in daemon.client.status().stages for k, v in s.caches.items()}
    forgetful = any(name.endswith(f".{PREFIX}") for name in caches)
    ratios = [getattr(topic, which).first_token_s / topic.cold.first_token_s for topic in topics]
    return statistics.median(ratios), {
        "ratio": spread(ratios),
        "first_token_s": {name: _spread_first(topics, name) for name in Topic.__struct_fields__},
        "stages_s": {name: _stages(topics, name) for name in Topic.__struct_fields__},
        "caches": msgspec.to_builtins(caches),
        # A runtime that cannot forget prompts makes the cold side of every second topic a warm one.
        "violations": [] if forgetful else ["the generator's runtime has no prefix cache to clear"],
        "topics": len(topics),
    }


def _sides(topic: Topic) -> list[tuple[str, Asked]]:
    return [(name, getattr(topic, name)) for name in Topic.__struct_fields__]


def _spread_first(topics: Sequence[Topic], side: str) -> dict[str, float]:
    return spread([getattr(topic, side).first_token_s for topic in topics])


def _stages(topics: Sequence[Topic], side: str) -> dict[str, float]:
    names = getattr(topics[0], side).stages_s
    medians = {
        name: statistics.median(getattr(topic, side).stages_s[name] for topic in topics) for name in names
    }
    return {name: round(value, 4) for name, value in medians.items()}


# ------------------------------------------------------------------------------------------ C1


def _open(model: tuple[str, str], backend_name: str, task: str, threads: int) -> tuple[TensorSession, Any]:
    """A session; with the task `tensor` one whose single run takes all `threads`."""
    variant = ModelStore(STATE / "models", Catalogue.discover()).resolve(*model)
    backend = plugins.load(backend_name)
    device = next(device for device in backend.devices() if device.id == "cpu")
    shaped = msgspec.structs.replace(variant, task=task or variant.task)
    return backend.open(shaped, device, {"threads": threads}), variant  # type: ignore[return-value]


def hotpotqa_pairs(count: int) -> list[list[tuple[str, str]]]:
    """Questions with 20 passages each: their own context and the next question's."""
    questions, _ = hotpotqa(STATE / "cache" / "hotpotqa")
    raw: list[dict[str, Any]] = json.loads(questions.read_bytes())
    found: list[list[tuple[str, str]]] = []
    for mine, other in pairwise(raw[: count + 1]):
        contexts = (mine["context"] + other["context"])[:CANDIDATES]
        found.append([(mine["question"], f"{title}\n{''.join(lines)}") for title, lines in contexts])
    return found


def sample_pairs(count: int) -> list[list[tuple[str, str]]]:
    """Questions about the sample documents with the 20 passages that the retriever finds."""
    state = sample_state()
    session, variant = _open(EMBEDDER, "onnx", "", 1)
    encoder = Encoder(session, variant)
    with Library.open(state / "library") as library:
        found: list[list[tuple[str, str]]] = []
        for question in QUESTIONS[:count]:
            vector, _ = encoder.embed([question], "query")
            (passages,) = library.search([question], vector, encoder.fingerprint, CANDIDATES)
            found.append([_pair(question, passage) for passage in passages])
    session.close()
    return found


def _pair(question: str, passage: Passage) -> tuple[str, str]:
    return question, passage_text(passage)


class Padded(CrossEncoder):
    """The same model and tokenizer, all pairs in one run, padded to the longest."""

    def one_batch(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Score them, and give the tokens of each pair."""
        encodings = self._tokenizer.encode_batch_fast(list(pairs))
        self._session.run(feed(encodings, self._session.inputs))
        return [len(encoding.ids) for encoding in encodings]


def rerank_cost(
    pairs_of: Callable[[int], list[list[tuple[str, str]]]], quick: bool
) -> tuple[float, dict[str, Any]]:
    """CPU seconds of the pairs of a question, run for run / in one padded batch, both on one core."""
    sample_models()
    questions = pairs_of(8 if quick else 40)
    ours_session, variant = _open(RERANKER, "onnx", "", 1)
    theirs_session, _ = _open(RERANKER, "onnx", "tensor", 1)
    ours, theirs = CrossEncoder(ours_session, variant), Padded(theirs_session, variant)
    ours.score_pairs(questions[0])
    lengths = theirs.one_batch(questions[0])
    costs: list[tuple[float, float]] = []
    for number, pairs in enumerate(questions):
        sides: list[Callable[[], object]] = [
            partial(ours.score_pairs, pairs),
            partial(theirs.one_batch, pairs),
        ]
        order = (0, 1) if number % 2 else (1, 0)
        spent = {side: _cpu_s(sides[side]) for side in order}
        costs.append((spent[0], spent[1]))
    ours_session.close()
    theirs_session.close()
    ratios = [mine / other for mine, other in costs]
    return statistics.median(ratios), {
        "ratio": spread(ratios),
        "ours_cpu_s": spread([mine for mine, _ in costs]),
        "padded_cpu_s": spread([other for _, other in costs]),
        "pairs_a_question": CANDIDATES,
        "tokens_a_pair_of_the_first": spread([float(length) for length in lengths]),
        "questions": len(questions),
    }


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


ROWS = (
    Row(
        id="P11",
        what="time to first token, passages asked about before / cold",
        unit="ratio",
        gate=0.6,
        goal=0.3,
        better="lower",
        measure=partial(repeated, "passages"),
    ),
    Row(
        id="P11b",
        what="time to first token, question asked before / cold",
        unit="ratio",
        gate=0.6,
        goal=0.3,
        better="lower",
        measure=partial(repeated, "question"),
    ),
    *(
        Row(
            id=f"C1@{name}",
            what=f"CPU seconds of reranking 20 passages of {name}, a run a pair / one padded batch",
            unit="ratio",
            gate=1.0,
            goal=0.7,
            better="lower",
            measure=partial(rerank_cost, pairs_of),
        )
        for name, pairs_of in (("hotpotqa", hotpotqa_pairs), ("samples", sample_pairs))
    ),
)
