"""The openai adapter keeps the contract of a token session, against servers in processes of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from edged_backends import openai as adapter

from edged.backend import Sampling, TokenSession, Variant
from edged.catalogue import Catalogue
from edged.errors import ConfigError
from edged.models.store import ModelStore
from edged.testing.daemon import running
from edged.testing.token_contract import Answer, TokenContract, finish_all, generate

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
stream_interval_ms = 0
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
    test_of_prompts_alike_the_older_is_answered_first = None
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


# --------------------------------------------------------------- llama-cpp-python's own server


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory) -> Iterator[str]:
    """The server of llama-cpp-python, which wants a key."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = {"model": weights(), "model_alias": "smol", "n_ctx": 512, "n_threads": 1, "verbose": False}
    options |= {"interrupt_requests": False, "host": "127.0.0.1", "port": port, "api_key": "sk-right"}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    log = (tmp_path_factory.mktemp("llama") / "log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "llama_cpp.server", *flags], stdout=log, stderr=log
        ) as process,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/v1/models", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert process.poll() is None, "the server ended"
        with suppress(httpx.TransportError):
            httpx.get(url, trust_env=False)
            return
        time.sleep(0.05)
    raise TimeoutError(url)


@pytest.fixture
def llama(llama_server: str, backend, tmp_path: Path):
    """Open a session with a key."""
    sessions = []

    def start(key: str = "sk-right", **options):
        (tmp_path / "key").write_text(key)
        (tmp_path / "key").chmod(0o600)
        known = {"base_url": llama_server, "dialect": "llama_cpp_python", "context_tokens": 512}
        given = known | {"api_key_file": str(tmp_path / "key")} | options
        sessions.append(backend.open(VARIANT, backend.devices()[0], given))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


def test_llama_cpp_python_answers_a_conversation(llama):
    session = llama()
    answer = generate(session, conversation(session, "What is 2+2?"), 32)
    assert answer.finish in {"stop", "length"}
    assert "4" in session.vocabulary.decode(answer.tokens)


def test_llama_cpp_python_goes_on_with_a_text(llama):
    session = llama()
    prompt = session.vocabulary.encode("One, two, three, four,", special=False)
    text = session.vocabulary.decode(generate(session, prompt, 8).tokens)
    assert text.startswith(" five, six")
    known = session.vocabulary.encode(" five,", special=False)
    rest = session.vocabulary.decode(generate(session, [*prompt, *known], 6).tokens)
    assert rest.startswith(" six")


def test_llama_cpp_python_serves_several_one_behind_the_other(llama):
    session = llama()
    for number, question in enumerate(("What is 2+2?", "What is red?", "Who are you?")):
        session.admit(number, conversation(session, question), Sampling(temperature=0.5, top_k=3), 8)
    answers: dict[int, Answer] = finish_all(session, {})
    assert {answer.finish for answer in answers.values()} <= {"stop", "length"}
    assert all(answer.tokens for answer in answers.values())


def test_llama_cpp_python_refuses_a_wrong_key_when_the_stage_starts(llama):
    with pytest.raises(ConfigError, match="api_key_file"):
        llama("sk-wrong")
