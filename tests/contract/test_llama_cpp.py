"""The llama.cpp adapter keeps the contract of a token session, and promises of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.backend import Sampling, Variant
from edged.errors import BackendError
from edged.testing.token_contract import (
    Answer,
    TokenContract,
    collect,
    finish_all,
    generate,
    step_until_tokens,
)

adapter = pytest.importorskip("edged_backends.llama_cpp", reason="llama-cpp-python is not installed")
adapter_tokens = pytest.importorskip("edged_backends.llama_cpp_tokens")

VOCABULARY_SIZE = 49152
OPTIONS = {"max_sequences": 4, "context_tokens": 512, "threads": 1}


@pytest.fixture(scope="session")
def backend():
    return adapter.LlamaCppBackend()


class TestLlamaCpp(TokenContract):
    @pytest.fixture(scope="class")
    @classmethod
    def variant(cls, variant: Callable[[str, str], Variant]) -> Variant:
        return variant("smollm2-135m-instruct", "q4_1")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls):
        return OPTIONS

    @pytest.fixture(scope="class")
    @classmethod
    def stopping_prompt(cls, session) -> list[int]:
        text = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
        return session.vocabulary.encode(text, special=True)


@pytest.fixture(scope="module")
def generator(variant: Callable[[str, str], Variant], backend):
    session = backend.open(variant("smollm2-135m-instruct", "q4_1"), backend.devices()[0], OPTIONS)
    yield session
    session.close()


@pytest.fixture
def prompt(generator) -> list[int]:
    return generator.vocabulary.encode("The sea is deep and the sky is", special=False)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.9, seed=11),
        Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, seed=3),
        Sampling(repetition_penalty=1.3),
        Sampling(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.5, seed=5),
    ],
)
def test_a_sampled_or_penalised_answer_resumes_identically(generator, prompt, sampling: Sampling):
    whole = generate(generator, prompt, 16, sampling).tokens
    assert generate(generator, prompt + whole[:6], 10, sampling).tokens == whole[6:]


def test_the_floats_of_an_answer_do_not_depend_on_company_or_resumption(generator, prompt, monkeypatch):
    long = prompt * 13
    logits = recorded_logits(monkeypatch)
    alone = generate(generator, long, 4).tokens
    last = logits[-1]
    generate(generator, long + alone[:3], 1)
    assert np.array_equal(logits[-1], last)
    generator.admit(2, prompt * 9, Sampling(), 8)
    generator.step()
    generator.admit(3, prompt, Sampling(), 8)
    generator.admit(1, long, Sampling(), 4)
    finish_all(generator, {})
    assert any(np.array_equal(row, last) for row in logits[-20:])


def recorded_logits(monkeypatch) -> list[np.ndarray]:
    """Keep the logits behind every choice of a token."""
    seen: list[np.ndarray] = []
    real = adapter.runtime.llama_sampler_sample

    def record(chain, context, row):
        pointer = adapter.runtime.llama_get_logits_ith(context, row)
        seen.append(np.ctypeslib.as_array(pointer, (VOCABULARY_SIZE,)).copy())
        return real(chain, context, row)

    monkeypatch.setattr(adapter.runtime, "llama_sampler_sample", record)
    return seen


def test_a_penalty_changes_the_answer(generator, prompt):
    plain = generate(generator, prompt, 16).tokens
    assert generate(generator, prompt, 16, Sampling(repetition_penalty=2.0)).tokens != plain


def test_top_k_of_one_is_greedy(generator, prompt):
    greedy = generate(generator, prompt, 8).tokens
    assert generate(generator, prompt, 8, Sampling(temperature=1.5, top_k=1, seed=9)).tokens == greedy


def test_prompts_longer_than_a_batch_give_way_to_running_answers(generator, prompt):
    generator.admit(1, prompt, Sampling(), 24)
    answers: dict[int, Answer] = {}
    step_until_tokens(generator, 1, 2, answers)
    generator.admit(2, prompt * 12, Sampling(), 2)
    seen = [len(answers[1].tokens)]
    while 2 not in answers:
        collect(generator.step(), answers)
        seen.append(len(answers[1].tokens))
    assert len(seen) > 2
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    finish_all(generator, answers)


def test_a_batch_that_the_runtime_refuses_fails_only_its_culprit(generator, prompt, monkeypatch):
    alone = generate(generator, prompt, 4).tokens
    real = adapter.runtime.llama_decode
    refused = generator.vocabulary.encode(" refused", special=False)[0]

    def refuse(context, batch):
        return 1 if refused in batch.token[: batch.n_tokens] else real(context, batch)

    monkeypatch.setattr(adapter.runtime, "llama_decode", refuse)
    generator.admit(1, prompt, Sampling(), 4)
    generator.admit(2, [refused], Sampling(), 4)
    answers = finish_all(generator, {})
    assert (answers[1].tokens, answers[1].finish) == (alone, "length")
    assert (answers[2].tokens, answers[2].finish) == ([], "error")


def test_a_token_outside_the_vocabulary_is_refused(generator):
    with pytest.raises(BackendError, match="outside the vocabulary"):
        generator.admit(1, [1, 10**6], Sampling(), 4)


@given(
    backlogs=st.lists(st.integers(1, 2000), min_size=1, max_size=16),
    spare=st.integers(0, 500),
)
def test_a_batch_is_shared_fairly(backlogs: list[int], spare: int):
    budget = len(backlogs) + spare
    given_out = adapter_tokens.shares(backlogs, budget)
    assert all(1 <= got <= backlog for got, backlog in zip(given_out, backlogs, strict=True))
    assert sum(given_out) == min(budget, sum(backlogs))
    short = [got for got, backlog in zip(given_out, backlogs, strict=True) if got < backlog]
    assert not short or max(given_out) - min(short) <= 1


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(64)])
def test_a_corrupt_file_is_named(backend, tmp_path: Path, capfd, content: bytes):
    path = tmp_path / "corrupt.gguf"
    path.write_bytes(content)
    broken = Variant(model="m", name="n", task="generate", format="gguf", path=path)
    with pytest.raises(BackendError, match=r"corrupt\.gguf"):
        backend.open(broken, backend.devices()[0], {})
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_and_another_format_are_refused(backend, tmp_path: Path):
    absent = Variant(model="m", name="n", task="generate", format="gguf", path=tmp_path / "absent.gguf")
    with pytest.raises(BackendError, match="absent"):
        backend.open(absent, backend.devices()[0], {})
    with pytest.raises(BackendError, match="onnx"):
        backend.open(msgspec.structs.replace(absent, format="onnx"), backend.devices()[0], {})


def test_devices_that_cannot_be_used_are_refused(backend, tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.touch()
    variant = Variant(model="m", name="n", task="generate", format="gguf", path=path)
    cpu = backend.devices()[0]
    with pytest.raises(BackendError, match="the cable is out"):
        backend.open(variant, msgspec.structs.replace(cpu, unusable="the cable is out"), {})
    with pytest.raises(BackendError, match="cuda:7"):
        backend.open(variant, msgspec.structs.replace(cpu, id="cuda:7", kind="cuda"), {})


def test_a_gpu_without_support_in_the_build_is_listed_with_the_remedy(tmp_path: Path):
    (tmp_path / "dri").mkdir()
    assert adapter._without_support(set(), tmp_path) == []
    (tmp_path / "dri" / "renderD128").touch()
    (gpu,) = adapter._without_support(set(), tmp_path)
    assert "GGML_VULKAN" in gpu.unusable
    (tmp_path / "nvidia0").touch()
    (cuda,) = adapter._without_support(set(), tmp_path)
    assert cuda.id == "cuda:0"
    assert "GGML_CUDA" in cuda.unusable
    assert adapter._without_support({"cuda"}, tmp_path) == []


def test_loading_is_silent(backend, variant: Callable[[str, str], Variant], capfd):
    backend.open(variant("smollm2-135m-instruct", "q4_1"), backend.devices()[0], OPTIONS).close()
    assert capfd.readouterr() == ("", "")


def test_a_set_of_cores_decides_how_many_threads(backend, monkeypatch, variant):
    seen = []
    real = adapter.runtime.llama_init_from_model

    def watch(model, parameters):
        seen.append((parameters.n_threads, parameters.n_threads_batch))
        return real(model, parameters)

    monkeypatch.setattr(adapter.runtime, "llama_init_from_model", watch)
    one = msgspec.structs.replace(backend.devices()[0], id="cpu:0", cores=(0,))
    weights = variant("smollm2-135m-instruct", "q4_1")
    backend.open(weights, one, {"context_tokens": 256, "max_sequences": 1}).close()
    backend.open(weights, one, {**OPTIONS, "threads": 3, "threads_batch": 2}).close()
    assert seen == [(1, 1), (3, 2)]
