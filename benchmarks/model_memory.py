"""Resident memory of a process with one variant open and used: `memory_bytes` in models/*.toml.

    python -m benchmarks.model_memory                     every variant in .edged/models
    python -m benchmarks.model_memory all-minilm-l6-v2    one model

One JSON line for each variant and backend: resident_bytes, and baseline_bytes before the session was
opened. Every measurement is a fresh process after work of a fixed size: an encoder runs 8 texts of
128 tokens; a generator reads 256 tokens and writes 16. A layer pipeline has two
stages. Manifests round up to a megabyte.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import psutil

from edged import plugins
from edged.backend import Sampling, TensorSession, TokenSession, Variant
from edged.catalogue import Catalogue
from edged.models import ModelStore

STORE = Path(".edged/models")
BATCH, LENGTH_TOKENS = 8, 128
PROMPT_TOKENS, NEW_TOKENS = 256, 16


OPTIONS = {"torch_pipeline": {"devices": ["cpu", "cpu"]}}
"""Where a backend is measured otherwise than by its defaults: a layer pipeline with two stages."""


def resident_bytes() -> int:
    """Of this process and of those that it has started."""
    process = psutil.Process()
    return sum(int(each.memory_info().rss) for each in (process, *process.children()))


def use_encoder(session: TensorSession) -> None:
    ids = np.full((BATCH, LENGTH_TOKENS), 1000, np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    session.run({name: feeds[name] for name in session.inputs})


def use_generator(session: TokenSession) -> None:
    prompt = session.vocabulary.encode("word " * PROMPT_TOKENS, special=False)[:PROMPT_TOKENS]
    session.admit(1, prompt, Sampling(), NEW_TOKENS)
    while not any(event.finish for event in session.step()):
        pass


def measure(variant: Variant, backend_name: str) -> dict[str, object]:
    """Open and use a variant in this process; its memory afterwards, and what it was before."""
    backend = plugins.load(backend_name)
    device = next(device for device in backend.devices() if device.kind == "cpu" and not device.unusable)
    baseline_bytes = resident_bytes()
    session = backend.open(variant, device, OPTIONS.get(backend_name, {}))
    if variant.task == "generate":
        use_generator(cast("TokenSession", session))
    else:
        use_encoder(cast("TensorSession", session))
    found = {"resident_bytes": resident_bytes(), "baseline_bytes": baseline_bytes}
    session.close()
    return {"model": variant.model, "variant": variant.name, "backend": backend_name, **found}


def main(arguments: list[str]) -> None:
    store = ModelStore(STORE, Catalogue.discover())
    if len(arguments) == 3:
        model, name, backend = arguments
        print(json.dumps(measure(store.resolve(model, name), backend)))
        return
    for row in store.list():
        if row.present and (not arguments or row.model in arguments):
            for backend in store.catalogue.model(row.model).variant(row.variant).backends:
                command = [sys.executable, "-m", "benchmarks.model_memory", row.model, row.variant, backend]
                subprocess.run(command, check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
