"""The llama.cpp adapter keeps the contract of a token session, and promises of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edged_backends import llama_cpp as adapter
from edged_backends import llama_cpp_devices as devices
from edged_backends import llama_cpp_tokens as adapter_tokens

from edged.backend import Sampling, Variant
from edged.errors import BackendError, BadRequest, DeviceLost
from edged.testing.token_contract import (
    Answer,
    TokenContract,
    collect,
    finish_all,
    generate,
    step_until_tokens,
)

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


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.9, seed=11),
    Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, seed=3),
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.5, seed=5),
    Sampling(temperature=1.3, top_k=20, seed=8, logit_bias={260: 4.0, 28: -100.0, 30: 2.5}),
]


@pytest.fixture(scope="module")
def reference(variant: Callable[[str, str], Variant], generator):
    """The engine's own class for one stream, over a context like the session's."""
    runtime = adapter.runtime
    llama = runtime.Llama(
        str(variant("smollm2-135m-instruct", "q4_1").path),
        n_ctx=OPTIONS["context_tokens"],
        n_threads=1,
        flash_attn=True,
        type_v=adapter._BF16,
        verbose=False,
    )
    yield llama
    llama.close()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_sampling_is_that_of_the_engines_single_stream(generator, prompt, reference, sampling: Sampling):
    """Token for token, in company."""
    generator.admit(7, prompt * 2, Sampling(temperature=1.5, seed=1), 30)
    generator.step()
    generator.admit(1, prompt, sampling, 24)
    answer = finish_all(generator, {})[1].tokens
    assert answer == single_stream(reference, prompt, sampling, len(answer))


def single_stream(llama: Any, prompt: list[int], sampling: Sampling, count: int) -> list[int]:
    llama.reset()
    llama._seed = sampling.seed

    def biased(_tokens, logits):
        logits = np.array(logits)
        logits[list(sampling.logit_bias)] += np.array(list(sampling.logit_bias.values()), np.float32)
        return logits

    stream = llama.generate(
        prompt,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        temp=sampling.temperature,
        repeat_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logits_processor=adapter.runtime.LogitsProcessorList([biased]) if sampling.logit_bias else None,
    )
    return [next(stream) for _ in range(count)]


def test_a_bias_of_a_strange_token_is_refused(generator, prompt):
    with pytest.raises(BadRequest, match="outside the vocabulary") as refusal:
        generator.admit(1, prompt, Sampling(logit_bias={VOCABULARY_SIZE: 1.0}), 4)
    assert refusal.value.param == "logit_bias"


@pytest.fixture(scope="module")
def wide(variant: Callable[[str, str], Variant], backend):
    """Repacked weights, two threads, room for long prompts: where kernels would differ."""
    options = {"max_sequences": 3, "context_tokens": 768, "threads": 2}
    session = backend.open(variant("smollm2-135m-instruct", "q4_0"), backend.devices()[0], options)
    yield session
    session.close()


def test_the_floats_of_an_answer_do_not_depend_on_company_or_resumption(wide, monkeypatch):
    text = "The sea is deep and the sky is wide, said the captain of ship number {}. "
    long = wide.vocabulary.encode("".join(text.format(number) for number in range(40)), special=False)[:560]
    logits = recorded_logits(monkeypatch)
    alone = generate(wide, long, 4).tokens
    last = logits[-1]
    for prompt, count in (([*long, *alone[:3]], 1), (long, 4)):
        generate(wide, prompt, count)
        assert np.array_equal(logits[-1], last), "resumed, or behind a kept prefix"
    wide.clear_prefixes()
    wide.admit(2, long[100:200], Sampling(), 12)
    wide.step()
    wide.admit(3, long[7:40], Sampling(), 8)
    wide.admit(1, long, Sampling(), 4)
    finish_all(wide, {})
    assert any(np.array_equal(row, last) for row in logits[-24:])


def test_a_prompt_that_begins_alike_is_computed_behind_what_is_known(wide, monkeypatch):
    known = wide.vocabulary.encode("A long beginning that many questions share. " * 60, special=False)[:300]
    ends = [wide.vocabulary.encode(text, special=False) for text in (" The first.", " Another, longer.")]
    wide.clear_prefixes()
    alone = generate(wide, known + ends[1], 6).tokens
    wide.clear_prefixes()
    decoded = count_decoded(monkeypatch)
    generate(wide, known + ends[0], 6)
    before = sum(decoded)
    found = wide.prefix_counters()[0]
    assert generate(wide, known + ends[1], 6).tokens == alone
    assert wide.prefix_counters()[0] - found >= len(known)
    assert sum(decoded) - before <= len(ends[1]) + 5


def test_a_live_sequence_lends_its_beginning(wide, monkeypatch):
    known = wide.vocabulary.encode("Another beginning that many questions share. " * 60, special=False)[:300]
    wide.clear_prefixes()
    alone = generate(wide, [*known, 30], 6).tokens
    wide.clear_prefixes()
    answers: dict[int, Answer] = {}
    wide.admit(1, known, Sampling(), 8)
    step_until_tokens(wide, 1, 1, answers)
    decoded = count_decoded(monkeypatch)
    wide.admit(2, [*known, 30], Sampling(), 6)
    finish_all(wide, answers)
    assert answers[2].tokens == alone
    assert sum(decoded) < 30


def count_decoded(monkeypatch) -> list[int]:
    """Keep how many tokens each run of the model computes."""
    counts: list[int] = []
    real = adapter.runtime.llama_decode

    def count(context, batch):
        counts.append(batch.n_tokens)
        return real(context, batch)

    monkeypatch.setattr(adapter.runtime, "llama_decode", count)
    return counts


def test_cancel_gives_the_kv_cache_to_the_next(wide):
    """Every sequence can be taken again at once, and what is kept stays within its bound."""
    prompt = wide.vocabulary.encode("The quick brown fox jumps over the lazy dog. " * 20, special=False)
    for _ in range(3):
        for number in range(wide.max_sequences):
            wide.admit(number, prompt[number:], Sampling(), 8)
        wide.step()
        for number in range(wide.max_sequences):
            wide.cancel(number)
        assert wide.free_sequences == wide.max_sequences
    wide.clear_prefixes()
    assert wide.prefix_counters()[2] == 0


def test_a_long_prompt_leaves_running_answers_their_pace(wide, monkeypatch):
    prompt = wide.vocabulary.encode("The sea is deep and the sky is", special=False)
    long = wide.vocabulary.encode("A long beginning of a story about boats. " * 80, special=False)[:600]
    wide.clear_prefixes()
    answers: dict[int, Answer] = {}
    wide.admit(1, prompt, Sampling(), 60)
    step_until_tokens(wide, 1, 1, answers)
    decoded = count_decoded(monkeypatch)
    wide.admit(2, long, Sampling(), 2)
    step_until_tokens(wide, 1, 5, answers)
    wide.admit(3, long[5:15], Sampling(), 1)
    step_until_tokens(wide, 3, 1, answers)
    assert not answers[2].tokens if 2 in answers else True, "a short prompt is not held behind a long one"
    finish_all(wide, answers)
    assert max(decoded) <= 48


def test_threads_can_change_and_the_answer_does_not(wide):
    prompt = wide.vocabulary.encode("The sea is deep and the sky is", special=False)
    answers = []
    for count in (1, 2):
        assert wide.set_threads(count)
        wide.clear_prefixes()
        answers.append(generate(wide, prompt * 20, 8).tokens)
    assert answers[0] == answers[1]


def test_cores_that_are_lent_are_no_more_threads_than_the_options_say(generator, monkeypatch):
    given = []
    monkeypatch.setattr(
        adapter_tokens.runtime, "llama_set_n_threads", lambda _context, *counts: given.append(counts)
    )
    assert generator.set_threads(4)
    assert given == [(OPTIONS["threads"],) * 2]


def recorded_logits(monkeypatch) -> list[np.ndarray]:
    """Keep the logits behind every choice of a token."""
    seen: list[np.ndarray] = []
    real = adapter_tokens.Sampler.sample

    def record(sampler, context, row):
        pointer = adapter.runtime.llama_get_logits_ith(context, row)
        seen.append(np.ctypeslib.as_array(pointer, (VOCABULARY_SIZE,)).copy())
        return real(sampler, context, row)

    monkeypatch.setattr(adapter_tokens.Sampler, "sample", record)
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


def test_an_accelerator_that_computes_no_more_is_lost_and_a_cpu_that_fails_is_not(
    generator, prompt, monkeypatch
):
    monkeypatch.setattr(adapter.runtime, "llama_decode", lambda _context, _batch: -3)
    generator.admit(1, prompt, Sampling(), 4)
    (failed,) = generator.step()
    assert (failed.finish, failed.code) == ("error", "backend")
    monkeypatch.setattr(generator, "_shape", generator._shape._replace(accelerated=True))
    generator.admit(1, prompt, Sampling(), 4)
    with pytest.raises(DeviceLost, match="returned -3"):
        generator.step()
    generator.cancel(1)


def test_a_token_outside_the_vocabulary_is_refused(generator):
    with pytest.raises(BackendError, match="outside the vocabulary"):
        generator.admit(1, [1, 10**6], Sampling(), 4)


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
    assert devices.without_support(set(), tmp_path) == []
    (tmp_path / "dri" / "renderD128").touch()
    (gpu,) = devices.without_support(set(), tmp_path)
    assert "GGML_VULKAN" in gpu.unusable
    (tmp_path / "nvidia0").touch()
    (cuda,) = devices.without_support(set(), tmp_path)
    assert cuda.id == "cuda:0"
    assert "GGML_CUDA" in cuda.unusable
    assert devices.without_support({"cuda"}, tmp_path) == []


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
