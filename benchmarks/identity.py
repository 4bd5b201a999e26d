"""I1: whether a greedy answer depends on its company or on having been interrupted, and what that costs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

from benchmarks.measurement import Row, say
from benchmarks.setting import QUESTIONS, ROOT, STATE, sample_state
from edged import plugins
from edged.backend import Sampling, TokenSession
from edged.catalogue import Catalogue
from edged.messages import ChatTask, Message, Passage
from edged.models.store import ModelStore
from edged.stages.factory import find_device
from edged.stages.prompt import PromptBuilder

NEW_TOKENS = 40
CUT = 10
"""Tokens after which an answer is interrupted."""


def identity(quick: bool) -> tuple[float, dict[str, Any]]:
    """Share of answers that are the same alone, among seven others, and resumed; both arithmetics."""
    sample_state()
    count = 8 if quick else 24
    exact, fast = _measure(count, exact=True), _measure(count, exact=False)
    cost = exact["cpu_s_alone"] / fast["cpu_s_alone"]
    return exact["identical"] / count, {
        "prompts": count,
        "exact": exact,
        "fast": fast,
        "cpu_exact_over_fast": round(cost, 3),
    }


def _measure(count: int, *, exact: bool) -> dict[str, Any]:
    backend = plugins.load("openvino")
    variant = ModelStore(STATE / "models", Catalogue.discover()).resolve("smollm2-135m-instruct", "q4_1")
    options = {"exact": exact, "cache_dir": str(STATE / "cache"), "prefix_caching": False}
    session = cast("TokenSession", backend.open(variant, find_device(backend, "cpu"), options))
    prompts = _prompts(session, count)
    began = time.process_time()
    alone = [_run(session, prompt) for prompt in prompts]
    cpu_s = time.process_time() - began
    company = _in_company(session, prompts)
    resumed = [
        [*answer[:CUT], *_run(session, [*prompt, *answer[:CUT]], NEW_TOKENS - CUT)]
        if len(answer) > CUT
        else answer
        for prompt, answer in zip(prompts, alone, strict=True)
    ]
    session.close()
    say(f"I1: exact={exact}: {cpu_s:.1f} CPU s for {count} answers alone")
    return {
        "same_in_company": sum(a == b for a, b in zip(alone, company, strict=True)),
        "same_resumed": sum(a == b for a, b in zip(alone, resumed, strict=True)),
        "identical": sum(a == b == c for a, b, c in zip(alone, company, resumed, strict=True)),
        "cpu_s_alone": round(cpu_s, 2),
        "mean_prompt_tokens": round(statistics.mean(len(prompt) for prompt in prompts)),
    }


def _prompts(session: TokenSession, count: int) -> list[list[int]]:
    """Grounded prompts of the usual shape: a question and two pieces of the sample documents."""
    chooser = random.Random(7)
    documents = [path.read_text() for path in sorted((ROOT / "examples" / "documents").glob("*.md"))]
    builder = PromptBuilder(session.vocabulary, session.context_tokens)

    def piece(number: int) -> Passage:
        text = chooser.choice(documents)
        start = chooser.randrange(len(text) - 600)
        return Passage(id=number, text=text[start : start + 600], source=f"{number}.md")

    tasks = [
        ChatTask(messages=(Message("user", question),), grounded=True, passages=(piece(1), piece(2)))
        for question in QUESTIONS[:count]
    ]
    return [list(builder.build(task).tokens) for task in tasks]


def _run(session: TokenSession, prompt: Sequence[int], max_tokens: int = NEW_TOKENS) -> list[int]:
    session.admit(0, prompt, Sampling(), max_tokens)
    tokens: list[int] = []
    while True:
        for event in session.step():
            tokens += event.tokens
            if event.finish:
                return tokens


def _in_company(session: TokenSession, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """All prompts, at most eight at a time, joining and leaving as they come."""
    waiting = list(range(len(prompts)))
    random.Random(11).shuffle(waiting)
    answers: list[list[int]] = [[] for _ in prompts]
    live: set[int] = set()
    step = 0
    while waiting or live:
        if waiting and session.free_sequences and step % 3 == 0:
            number = waiting.pop()
            session.admit(number + 1, prompts[number], Sampling(), NEW_TOKENS)
            live.add(number)
        step += 1
        for event in session.step():
            answers[event.sequence - 1] += event.tokens
            if event.finish:
                live.discard(event.sequence - 1)
    return answers


ROWS = (
    Row(
        id="I1",
        what="greedy answers of openvino that are the same alone, among seven others and resumed",
        unit="share",
        gate=1.0,
        goal=1.0,
        better="higher",
        measure=identity,
    ),
)
