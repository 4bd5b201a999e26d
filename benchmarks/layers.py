"""Layer pipelines: the bubble beside its formula (P15); identity, throughput, bytes (L1 to L4).

On the CPU only: two stages, one thread each. Scaling over GPUs is not measured, and nothing is said of it.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, cast

from edged_backends.torch_vocabulary import read_vocabulary

from benchmarks.contenders.environments import environment, python
from benchmarks.contenders.line_up import Contender
from benchmarks.measurement import Row, say
from benchmarks.setting import STATE, sample_models
from edged.backend import Variant
from edged.cli.layers_run import PROMPTS
from edged.layers.assembly import Settings, assemble_synthetic
from edged.layers.share import Share
from edged.layers.spec import Synthetic
from edged.layers.trial import PipelineSession, Ran, run, run_synthetic
from edged.layers.weights.checkpoint import describe, library_config, weights
from edged.plugins import load

STAGE_S = 0.06
TOKENS = 4
SIZES = [(stages, micro) for stages in (2, 4) for micro in (1, 2, 4, 8)]
MODEL = STATE / "models" / "smollm2-135m-instruct" / "q4_1" / "model.gguf"
LIBRARY = Contender(
    name="transformers, pp_size=2",
    module="_native_pipeline",
    packages=("accelerate==1.15.0", "torch==2.13.0", "transformers==5.23.0"),
    streams=False,
    best={},
)
"""Pinned: its text on padded batches is part of what is compared."""


def bubbles(mode: str, *, quick: bool) -> tuple[float, dict[str, Any]]:
    """The worst distance of a measured bubble from the formula, median of rounds per size."""
    found: dict[str, Any] = {}
    for stages, micro in SIZES:
        ran = [_synthetic(mode, stages, micro) for _ in range(1 if quick else 3)]
        off = [each.bubble - each.formula for each in ran]
        found[f"N={stages} M={micro}"] = {
            "measured": round(statistics.median(each.bubble for each in ran), 3),
            "formula": round(ran[0].formula, 3),
            "difference": round(statistics.median(off), 3),
        }
        say(f"{mode} N={stages} M={micro}: {found[f'N={stages} M={micro}']}")
    worst = max(abs(each["difference"]) for each in found.values())
    return worst, {"stage_s": STAGE_S, "tokens": TOKENS, "transport": "zeromq", "sizes": found}


def _synthetic(mode: str, stages: int, micro_batches: int) -> Ran:
    asked = Settings(
        mode=mode,  # type: ignore[arg-type] # one of Mode
        transport="zeromq",
        micro_batches=micro_batches,
        max_sequences=micro_batches,
    )
    return run_synthetic(assemble_synthetic(Synthetic(stage_s=STAGE_S), asked, stages), TOKENS)


def flush(quick: bool) -> tuple[float, dict[str, Any]]:
    return bubbles("flush", quick=quick)


def ring(quick: bool) -> tuple[float, dict[str, Any]]:
    return bubbles("ring", quick=quick)


# ------------------------------------------------------------------ against the library's own


def _session(**options: Any) -> PipelineSession:
    backend = load("torch_pipeline")
    variant = Variant(model="smollm2", name="q4_1", task="generate", format="gguf", path=MODEL)
    settings = {"context_tokens": 512, "threads": 1, **options}
    return cast("PipelineSession", backend.open(variant, backend.devices()[0], settings))


def _folder() -> Path:
    """The same weights as safetensors, for the library."""
    from safetensors.torch import save_file

    folder = STATE / "cache" / "bench-layers"
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        whole = Share(first=0, end=describe(MODEL).layers, embedding=True, head=True)
        tensors = dict(weights(MODEL, whole, "float32"))
        del tensors["lm_head.weight"]  # tied
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = library_config(MODEL)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
    return folder


def _library(prompts: list[list[int]], rounds: int, tokens: int, stages: int) -> dict[str, Any]:
    """Answers and seconds of the library, a process a stage."""
    listed = STATE / "cache" / "bench-layers" / "prompts.json"
    folder = _folder()
    listed.write_text(json.dumps(prompts), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(python(LIBRARY)),
        "-m",
        "benchmarks._native_pipeline",
        str(folder),
        str(rounds),
        str(tokens),
    ]
    ranks = [
        subprocess.Popen(
            command,
            env=environment(
                {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(stages),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "PROMPTS": str(listed),
                }
            ),
            cwd=STATE.parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(stages)
    ]
    try:
        *_, last = [rank.communicate(timeout=600)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return cast("dict[str, Any]", json.loads(last.splitlines()[-1]))


@cache
def _compared(*, quick: bool) -> dict[str, Any]:
    """Both, one after the other: four micro-batches of two; the library's one batch of two, and of eight."""
    tokens, rounds = (16, 2) if quick else (48, 5)
    sample_models()
    session = _session(devices=["cpu", "cpu"], micro_batches=4, max_sequences=8)
    try:
        prompts = [session.vocabulary.encode(text, special=False) for text in PROMPTS]
        ours = [run(session, prompts, tokens) for _ in range(rounds)]
    finally:
        session.close()
    alone = _library(prompts, 1, tokens, 1)
    theirs = _library(prompts, rounds, tokens, 2)
    pairs = [_library(prompts[first : first + 2], rounds, tokens, 2) for first in (0,)]
    return {
        "tokens": tokens,
        "ours": [list(answer[:tokens]) for answer in ours[-1].answers],
        "ours_seconds": [each.seconds for each in ours],
        "ours_tokens": ours[-1].tokens,
        "alone": alone["answers"],
        "library": theirs["answers"],
        "library_seconds": theirs["seconds"],
        "library_pair_seconds": pairs[0]["seconds"],
    }


def _same(one: list[list[int]], other: list[list[int]]) -> int:
    """Answers that are the same; the library goes on behind an end-of-generation token, edged does not."""
    ends = read_vocabulary(MODEL).ends
    return sum(
        a == b[: len(a)] and (len(a) == len(b) or ends(b[len(a)])) for a, b in zip(one, other, strict=True)
    )


def identity(quick: bool) -> tuple[float, dict[str, Any]]:
    """Answers of unequal prompts that equal those of one device."""
    found = _compared(quick=quick)
    count = len(found["alone"])
    return _same(found["ours"], found["alone"]) / count, {
        "prompts": count,
        "edged, 2 stages, 4 micro-batches of 2": _same(found["ours"], found["alone"]),
        "the library, 2 stages, padded on the left": _same(found["library"], found["alone"]),
        "compared": "greedy answers with the library's generate() on one device",
    }


def speed(quick: bool) -> tuple[float, dict[str, Any]]:
    """Tokens a second at micro-batches of two: four on their way, against the library's one at a time."""
    found = _compared(quick=quick)
    ours = found["ours_tokens"] / statistics.median(found["ours_seconds"])
    pair = 2 * found["tokens"] / statistics.median(found["library_pair_seconds"])
    whole = 8 * found["tokens"] / statistics.median(found["library_seconds"])
    return ours / pair, {
        "edged_tokens_per_s": round(ours, 1),
        "library_tokens_per_s": round(pair, 1),
        "library_batch_of_8_tokens_per_s": round(whole, 1),
        "ratio_to_its_batch_of_8": round(ours / whole, 2),
        "spread_s": {
            key: [round(each, 2) for each in found[key]] for key in found if key.endswith("seconds")
        },
    }


# ------------------------------------------------------------------ constant micro-batch size, bytes


def scaling(quick: bool) -> tuple[float, dict[str, Any]]:
    """Two stages of one core each against one stage of one core, at micro-batches of two."""
    tokens, rounds = (12, 1) if quick else (48, 3)
    sample_models()
    ratios, rates = [], []
    for number in range(rounds):
        order = (1, 2) if number % 2 else (2, 1)
        found = {stages: _rate(stages, tokens) for stages in order}
        ratios.append(found[2] / found[1])
        rates.append({stages: round(rate, 1) for stages, rate in found.items()})
        say(f"constant micro-batch size: {rates[-1]}")
    return statistics.median(ratios), {
        "tokens_per_s": rates,
        "cores": len(os.sched_getaffinity(0)),
        "note": "N stages hold N micro-batches; more requests in flight, not a faster request",
    }


def _rate(stages: int, tokens: int) -> float:
    session = _session(devices=["cpu"] * stages, micro_batches=stages, max_sequences=2 * stages)
    try:
        prompts = [session.vocabulary.encode(text, special=False) for text in PROMPTS[: 2 * stages]]
        run(session, prompts, 2)
        return run(session, prompts, tokens).tokens_per_s
    finally:
        session.close()


def sizes(quick: bool) -> tuple[float, dict[str, Any]]:
    """The largest distance of weights per stage and bytes per hop from what the plan says, as a share."""
    del quick
    sample_models()
    architecture = describe(MODEL)
    distances: dict[str, float] = {}
    for stages in (2, 4):
        session = _session(devices=["cpu"] * stages, split="even", max_sequences=stages)
        try:
            prompts = [[1, 2, 3, 4]] * stages
            run(session, prompts, 8)
            first = 0
            for held, times in zip(session.loaded, session.meter.stages, strict=True):
                share = Share(
                    first=first,
                    end=first + held.layers,
                    embedding=held.stage == 0,
                    head=held.stage == stages - 1,
                )
                first = share.end
                planned = 4 * architecture.parameters_of(share)
                distances[f"N={stages} stage {held.stage} weights"] = abs(held.weight_bytes / planned - 1)
                hop = 4 * architecture.hidden * stages * (4 + 7) if held.stage else 8 * stages * 8
                distances[f"N={stages} hop into {held.stage}"] = abs(times.received_bytes / hop - 1)
        finally:
            session.close()
    return max(distances.values()), {key: round(value, 4) for key, value in distances.items()}


ROWS = (
    Row(
        id="P15@flush",
        what="layer pipeline flushed at each token: measured bubble - formula, worst size",
        unit="share",
        gate=0.04,
        goal=0.02,
        better="lower",
        measure=flush,
    ),
    Row(
        id="P15@ring",
        what="layer pipeline as a ring: measured bubble - formula, worst size",
        unit="share",
        gate=0.05,
        goal=0.02,
        better="lower",
        measure=ring,
    ),
    Row(
        id="L1",
        what="layer pipeline: greedy answers of unequal prompts equal to one device's",
        unit="share",
        gate=1.0,
        goal=1.0,
        better="higher",
        measure=identity,
    ),
    Row(
        id="L2",
        what="layer pipeline, 2 stages: tokens/s / the library's own, at micro-batches of two",
        unit="ratio",
        gate=1.3,
        goal=1.8,
        better="higher",
        measure=speed,
    ),
    Row(
        id="L3",
        what="layer pipeline: tokens/s of two one-core stages / one, at micro-batches of two",
        unit="ratio",
        gate=1.5,
        goal=1.9,
        better="higher",
        measure=scaling,
    ),
    Row(
        id="L4",
        what="layer pipeline: weights per stage and bytes per hop beside the plan, worst",
        unit="share",
        gate=0.05,
        goal=0.01,
        better="lower",
        measure=sizes,
    ),
)
