"""The openai adapter keeps the contract of a token session, against servers that are processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from edged.backend import Sampling, TokenSession, Variant
from edged.catalogue import Catalogue
from edged.errors import ConfigError, ContextOverflow, UnsupportedField
from edged.models.store import ModelStore
from edged.testing.daemon import running
from edged.testing.token_contract import Answer, TokenContract, finish_all, generate

adapter = pytest.importorskip("edged_backends.openai", reason="httpx is not installed")
pytest.importorskip("llama_cpp", reason="no engine for the servers")

MODELS = Path(__file__).parents[2] / ".edged/models"
MODEL = "smollm2-135m-instruct"
VARIANT = Variant(model="smol", name="none", task="generate", format="none", path=Path("/dev/null"))
EDGED = """
[daemon]
state_dir = "{state}"
[stages.generator]
model = "smollm2-135m-instruct"
variant = "q4_1"
backend = "llama_cpp"
max_batch = 4
[stages.generator.options]
threads = 1
context_tokens = 512
[stages.retriever]
workers = 0
[stages.reranker]
workers = 0
"""


@pytest.fixture(scope="session")
def backend():
    return adapter.OpenaiBackend()


def weights() -> Path:
    """The model that the servers serve, pulled when needed."""
    store = ModelStore(MODELS, Catalogue.discover())
    present = store.present(MODEL, "q4_1")
    return (store.resolve(MODEL, "q4_1") if present else store.pull(MODEL, "q4_1")).path


def conversation(session: TokenSession, question: str) -> list[int]:
    text = f"<|edged:user|>{question}<|edged:end|><|edged:assistant|>"
    return session.vocabulary.encode(text, special=True)


@pytest.fixture(scope="module")
def other_daemon(tmp_path_factory) -> Iterator[str]:
    """Another edged, with a model of its own."""
    weights()
    with running(tmp_path_factory.mktemp("other"), EDGED.format(state=MODELS.parent)) as daemon:
        yield f"unix:{daemon.runtime_dir / 'edged.sock'}"


class TestAnotherEdged(TokenContract):
    """Two daemons, one the other's generator: exact, several at once, over a Unix socket."""

    # A server is listened to, not stepped: when its next word comes is its own affair.
    test_every_running_answer_gets_a_token_in_every_step = None
    test_neither_answers_nor_short_prompts_wait_for_a_long_prompt = None
    # Its tokens are not ours: it alone counts them, and edged does not tell what it found in its cache.
    test_prompt_tokens_are_counted = None

    @pytest.fixture(scope="class")
    @classmethod
    def variant(cls):
        return VARIANT

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, other_daemon: str):
        return {
            "base_url": other_daemon,
            "model": MODEL,
            "dialect": "edged",
            "max_sequences": 4,
            "context_tokens": 512,
        }

    @pytest.fixture(scope="class")
    @classmethod
    def prompts(cls, session) -> list[list[int]]:
        questions = ("What is red?", "Tell me a story about the sea.", "What does a router do?")
        return [conversation(session, question) for question in questions]

    @pytest.fixture(scope="class")
    @classmethod
    def stopping_prompt(cls, session) -> list[int]:
        return conversation(session, "What is 2+2?")
