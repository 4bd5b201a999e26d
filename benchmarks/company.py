"""I2: 200 prompts of unlike length in random company, beside each of them alone.

Where an engine promises it (`exact`), greedy answers must be identical, with the prefix cache on, neighbours
that join, leave and are cancelled at random, and prompts of 3 to 600 tokens. Where it does not, the first
difference is reported with the gap between the two tokens' logits, by llama.cpp on the same weights.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, cast

import numpy as np
from edged_backends.llama_cpp_batch import TokenBatch
from edged_backends.llama_cpp_runtime import free_model, load_model, runtime

from benchmarks.generation import texts
from benchmarks.measurement import Row, say, spread
from benchmarks.setting import STATE, generators
from edged import plugins
from edged.backend import Sampling, TokenSession, Variant
from edged.catalogue import Catalogue
from edged.layers.planning.llama_split import LlamaSplit
from edged.models.store import ModelStore
from edged.stages.factory import find_device

MODEL = "smollm2-135m-instruct"
NEW_TOKENS = 24
LONGEST = 600
COMPANIONS = (Sampling(), Sampling(temperature=1.0, seed=3), Sampling(repetition_penalty=1.3))
"""How the neighbours whose answers nobody compares are sampled."""


class Setting(NamedTuple):
    """An engine as it is opened, and whether it promises equal answers."""

    backend: str
    variant: str
    exact: bool

    @property
    def name(self) -> str:
        return f"{self.backend} {self.variant}{'' if self.exact else ', exact = false'}"


PROMISED = (
    Setting("openvino", "q8_0", exact=True),
    Setting("openvino", "q4_1", exact=True),
    Setting("llama_cpp", "q8_0", exact=True),
    Setting("llama_cpp", "q4_0", exact=True),
)
OTHERS = (Setting("openvino", "q4_1", exact=False), Setting("llama_cpp", "q4_0", exact=False))


def company(quick: bool) -> tuple[float, dict[str, Any]]:
    """Share of the answers that are the same alone and in company, in the worst setting that promises it."""
    generators("q4_1", "q4_0", "q8_0")
    count = 6 if quick else 200
    promised = {
        setting.name: _compare(setting, count) for setting in (PROMISED[1:4:2] if quick else PROMISED)
    }
    others = {setting.name: _compare(setting, count) for setting in (() if quick else OTHERS)}
    return min(found["identical"] for found in promised.values()) / count, {
        "prompts": count,
        "new_tokens": NEW_TOKENS,
        "promised": promised,
        "not_promised": others,
    }


def _compare(setting: Setting, count: int) -> dict[str, Any]:
    variant = ModelStore(STATE / "models", Catalogue.discover()).resolve(MODEL, setting.variant)
    with closing(_open(setting, variant)) as session:
        prompts = _prompts(session, count)
        alone = [_alone(session, prompt) for prompt in prompts]
        together = _together(session, prompts)
        found, asked, _ = session.prefix_counters()
    different = [n for n in range(count) if alone[n] != together[n]]
    say(f"I2 {setting.name}: {count - len(different)} of {count} identical")
    cases = [(prompts[number], alone[number], together[number]) for number in different]
    return {
        "identical": count - len(different),
        "prompt_tokens": spread([len(prompt) for prompt in prompts]),
        "prompt_tokens_from_cache": round(found / asked, 3),
        "different": _differences(variant, cases),
    }


def _open(setting: Setting, variant: Variant) -> TokenSession:
    backend = plugins.load(setting.backend)
    options: dict[str, Any] = {"exact": setting.exact, "context_tokens": 1024}
    if setting.backend == "openvino":
        options["cache_dir"] = str(STATE / "cache")
    return cast("TokenSession", backend.open(variant, find_device(backend, "cpu"), options))


def _prompts(session: TokenSession, count: int) -> list[list[int]]:
    """Pieces of the sample documents, short ones as often as long ones; some begin like others."""
    chooser = random.Random(23)
    text = session.vocabulary.encode(texts(), special=False)
    lengths = [round(3 * (LONGEST / 3) ** chooser.random()) for _ in range(count)]
    starts = [chooser.choice((0, chooser.randrange(len(text) - LONGEST))) for _ in range(count)]
    return [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def _alone(session: TokenSession, prompt: Sequence[int]) -> list[int]:
    session.admit(0, prompt, Sampling(), NEW_TOKENS)
    return [token for event in _until_empty(session) for token in event]


def _until_empty(session: TokenSession) -> Iterator[tuple[int, ...]]:
    while session.free_sequences < session.max_sequences:
        yield from (event.tokens for event in session.step())


def _together(session: TokenSession, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """All prompts, joining at random beside strangers, of whom some are cancelled."""
    chooser = random.Random(31)
    waiting = list(enumerate(prompts))
    chooser.shuffle(waiting)
    answers: list[list[int]] = [[] for _ in prompts]
    stranger = len(prompts)
    while waiting or session.free_sequences < session.max_sequences:
        if waiting and session.free_sequences and chooser.random() < 0.4:
            number, prompt = waiting.pop()
            session.admit(number, prompt, Sampling(), NEW_TOKENS)
        if waiting and session.free_sequences and chooser.random() < 0.05:
            stranger += 1
            prompt = chooser.choice(prompts)[1:] or prompts[0]
            session.admit(stranger, prompt, chooser.choice(COMPANIONS), NEW_TOKENS)
        if chooser.random() < 0.03:
            session.cancel(stranger)
        for event in session.step():
            if event.sequence < len(prompts):
                answers[event.sequence] += event.tokens
    return answers


def _differences(variant: Variant, cases: Sequence[tuple[list[int], list[int], list[int]]]) -> dict[str, Any]:
    """Where the answers part, and how far apart the two tokens are there."""
    if not cases:
        return {"answers": 0}
    places = [_parting(alone, together) for _, alone, together in cases]
    gaps = _logit_gaps(variant, cases, places)
    return {
        "answers": len(cases),
        "first_different_token": spread([float(place) for place in places]),
        "logit_gap_by_llama_cpp": spread(gaps) if gaps else "one of the two answers ended there",
        "logit_gap_median": round(statistics.median(gaps), 4) if gaps else None,
    }


def _parting(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)


def _logit_gaps(
    variant: Variant, cases: Sequence[tuple[list[int], list[int], list[int]]], places: Sequence[int]
) -> list[float]:
    """Gap between the logits of the two next tokens, in a run of the prompt and what both have in common."""
    model: Any = load_model(str(variant.path).encode(), (), LlamaSplit(n_gpu_layers=0))
    parameters = runtime.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 1024
    context: Any = runtime.llama_init_from_model(model, parameters)
    memory: Any = runtime.llama_get_memory(context)
    vocabulary: Any = runtime.llama_model_get_vocab(model)
    batch = TokenBatch(1024)
    width = int(runtime.llama_vocab_n_tokens(vocabulary))
    gaps = []
    for (prompt, alone, together), place in zip(cases, places, strict=True):
        if place == min(len(alone), len(together)):
            continue
        tokens = [*prompt, *alone[:place]]
        runtime.llama_memory_seq_rm(memory, -1, -1, -1)
        batch.clear()
        batch.add(0, tokens, 0)
        runtime.llama_decode(context, batch.native)
        logits = runtime.llama_get_logits_ith(context, len(tokens) - 1)
        array = np.ctypeslib.as_array(logits, (width,))
        gaps.append(abs(float(array[alone[place]] - array[together[place]])))
    batch.close()
    runtime.llama_free(context)
    free_model(model)
    return gaps


ROWS = (
    Row(
        id="I2",
        what="greedy answers that are the same alone and in random company, worst setting that promises it",
        unit="share",
        gate=1.0,
        goal=1.0,
        better="higher",
        measure=company,
    ),
)
