"""What the measurements share: the sample documents, ingested once, and questions about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.collections import hotpotqa
from benchmarks.measurement import say
from edged.catalogue import Catalogue
from edged.documents import index
from edged.models.store import ModelStore
from edged.stages.encoder import Encoder

ALONE = "[stages.retriever]\nworkers = 0\n[stages.reranker]\nworkers = 0\n"
"""TOML of a daemon with no built-in stage but the generator, whose own table may follow."""
NONE_BUILT_IN = f"{ALONE}[stages.generator]\nworkers = 0\n"
GENERATOR = "smollm2-135m-instruct"
ROOT = Path(__file__).parents[1]
STATE = ROOT / ".edged"
"""Models and caches, shared with the demo and the tests."""

_TOPICS = (
    "How long must the reset button be held to restore the factory settings?",
    "What does a blinking amber NET LED mean?",
    "Which TCP port does the Modbus bridge listen on?",
    "What is the default address of the LAN port?",
    "How many clients can the Modbus bridge serve at once?",
    "At which silicon temperature does the gateway switch itself off?",
    "How much power does the gateway draw under full load?",
    "Which fuse protects the supply line?",
    "How long does the CR2032 cell last?",
    "When must the storage card be replaced?",
    "What does alarm A310 mean?",
    "What was the cause when pump 2 stopped answering?",
    "Which firmware version must an update from 3.x to 5.x go through?",
    "How long may antenna cables be?",
    "What is the permitted ambient temperature?",
    "Which DIP switch turns on the termination resistor?",
    "How often should terminal screws be checked?",
    "What happens after 15 minutes without registration?",
    "Who did the yearly inspection?",
    "Which account is used for the first login?",
    "How much free space is needed above the gateway?",
    "What is the range of addresses of the DHCP server?",
    "How tight should SMA connectors be?",
    "What does a steady red SYS LED mean?",
)
QUESTIONS = _TOPICS


def sample_state() -> Path:
    """A state folder with the default models and a library of the sample documents."""
    sample_models()
    _edgectl("ingest", str(ROOT / "examples" / "documents"))
    return STATE


def sample_models() -> Path:
    """A state folder with the default models."""
    _edgectl("models", "pull")
    return STATE


def generators(*variants: str) -> ModelStore:
    """The default models, and these variants of the default generator: fetched or derived where missing."""
    store = ModelStore(sample_models() / "models", Catalogue.discover())
    for variant in variants:
        say(f"{GENERATOR} {variant}")
        store.pull(GENERATOR, variant)
    return store


def _edgectl(*command: str) -> None:
    say(f"edgectl {' '.join(command)}")
    subprocess.run(
        [sys.executable, "-m", "edged.cli", *command],
        env=os.environ
        | {"EDGED_DAEMON__STATE_DIR": str(STATE), "EDGED_DAEMON__RUNTIME_DIR": str(STATE / "run")},
        check=True,
        stdout=subprocess.DEVNULL,
    )


class RagLibrary(NamedTuple):
    """HotpotQA as a library that the retriever searches, and its questions."""

    folder: Path
    questions: list[str]


def rag_library(*, quick: bool) -> RagLibrary:
    """HotpotQA (9,221 passages; about 500 for `quick`) with the default embedder, ingested once.

    The same folder as row Q1 uses. Weights that are missing are fetched.
    """
    from benchmarks import retrieval  # it takes STATE from here

    sample_models()
    cache = STATE / "cache"
    questions, corpus = hotpotqa(cache / "hotpotqa")
    collection = retrieval.read_collection(questions, corpus, quick=quick)
    session, variant = retrieval.open_session(
        ModelStore(STATE / "models", Catalogue.discover()), *retrieval.DEFAULT_EMBEDDER
    )
    folder = cache / "retrieval" / f"{collection.name}-{variant.model}-{variant.name}-{variant.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not index.current(folder):
        retrieval.build(folder, collection, Encoder(session, variant))
    session.close()
    return RagLibrary(folder, [entry["question"] for entry in json.loads(questions.read_bytes())])


def real_config(state: Path, more: str = "") -> str:
    """The built-in pipeline on real models, with `more` TOML behind it."""
    return f"[daemon]\nstate_dir = '{state}'\n{more}"
