"""The adapter to OpenVINO GenAI keeps the contract of tokens: steps, prefixes and vocabulary, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import openvino as ov
import pytest
from edged_backends.openvino import OpenvinoBackend
from edged_backends.openvino_prefixes import PrefixBooks
from edged_backends.openvino_tokens import generation_config
from edged_backends.openvino_vocabulary import OpenvinoVocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino_genai import Tokenizer

from edged.backend import Backend, Device, Sampling, TokenSession, Variant
from edged.errors import BackendError, DeviceLost, UnsupportedField
from edged.testing.token_contract import (
    GREEDY,
    Answer,
    TokenContract,
    collect,
    finish_all,
    generate,
    step_until_tokens,
)


class TestGenerator(TokenContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Backend:
        return OpenvinoBackend()

    @pytest.fixture(scope="class")
    @classmethod
    def variant(cls, variant: Callable[[str, str], Variant]) -> Variant:
        return variant("smollm2-135m-instruct", "q4_1")

    @pytest.fixture(scope="class")
    @classmethod
    def cache_dir(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        return str(tmp_path_factory.mktemp("converted"))

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls, cache_dir: str) -> dict[str, Any]:
        return {
            "max_sequences": 4,
            "threads": 1,
            "cache_dir": cache_dir,
            "context_tokens": 1024,
            "exact": True,
        }

    def test_a_restart_reads_the_converted_model_and_answers_the_same(
        self,
        backend: Backend,
        variant: Variant,
        device: Device,
        options: dict[str, Any],
        prompts: list[list[int]],
        alone: list[list[int]],
    ) -> None:
        (folder,) = (entry for entry in Path(options["cache_dir"]).iterdir() if entry.is_dir())
        before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
        again: Any = backend.open(variant, device, options)
        assert generate(again, prompts[0], self.new_tokens).tokens == alone[0]
        again.close()
        assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before

    def test_every_sampling_field_is_accepted(self, session: TokenSession, prompts: list[list[int]]) -> None:
        sampling = Sampling(
            temperature=0.7,
            top_k=40,
            top_p=0.9,
            min_p=0.05,
            repetition_penalty=1.1,
            presence_penalty=0.5,
            frequency_penalty=0.5,
            seed=1,
        )
        assert generate(session, prompts[0], 4, sampling).finish == "length"

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(),
            Sampling(temperature=0.9, seed=11),
            Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=3),
            Sampling(presence_penalty=0.5, frequency_penalty=0.5),
        ],
    )
    def test_sampling_is_that_of_the_engines_single_stream(
        self, session: Any, fresh: Any, prompts: list[list[int]], sampling: Sampling
    ) -> None:
        """Token for token, in company, against a pipeline that serves one request at a time."""
        session.admit(7, prompts[1] * 3, Sampling(temperature=1.2, seed=99), 24)
        session.step()
        session.admit(1, prompts[0], sampling, self.new_tokens)
        answer = finish_all(session, {})[1].tokens
        config = generation_config(sampling, self.new_tokens, session.vocabulary.stops)
        (result,) = fresh.generate([ov.Tensor(np.array([prompts[0]], np.int64))], [config])
        assert answer == list(result.m_generation_ids[0])

    @pytest.fixture(scope="class")
    @classmethod
    def fresh(cls, variant: Variant, device: Device, options: dict[str, Any]) -> Iterator[Any]:
        """The engine's own pipeline with the same arithmetic."""
        other: Any = OpenvinoBackend().open(variant, device, options | {"prefix_caching": False})
        yield other._engine
        other.close()

    def test_a_logit_bias_is_refused_by_name(self, session: TokenSession, prompts: list[list[int]]) -> None:
        with pytest.raises(UnsupportedField, match="openvino") as refusal:
            session.admit(1, prompts[0], Sampling(logit_bias={5: 1.0}), 4)
        assert refusal.value.param == "logit_bias"

    def test_a_prompt_that_begins_alike_is_read_behind_what_is_known(self, session: TokenSession) -> None:
        """Steps count tokens here: one reads at most 256."""
        text = "A beginning of several hundred tokens that many of the questions share. " * 60
        known = session.vocabulary.encode(text, special=False)[:600]
        found = session.prefix_counters()[0]
        first = steps_to_first_token(session, [*known, 30])
        assert session.prefix_counters()[0] == found
        assert first >= 3
        assert steps_to_first_token(session, [*known, 28]) == 1
        assert session.prefix_counters()[0] - found == 576, "whole blocks of 32"
        assert session.prefix_counters()[2] > 0

    def test_cleared_prefixes_are_computed_again(self, session: TokenSession) -> None:
        text = "Another beginning of several hundred tokens that questions share. " * 60
        known = session.vocabulary.encode(text, special=False)[:600]
        for _ in range(2):
            assert steps_to_first_token(session, known) >= 3
            session.clear_prefixes()
            assert session.prefix_counters()[2] == 0

    def test_an_engine_that_does_not_come_back_ends_the_worker(
        self,
        backend: Backend,
        variant: Variant,
        device: Device,
        options: dict[str, Any],
        prompts: list[list[int]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is loaded anew for the next answer where prefixes were cleared while one ran, else at once."""
        errors = iter([RuntimeError("Cannot allocate memory"), BackendError("no memory for the model")])

        def fail() -> Any:
            raise next(errors)

        own: Any = backend.open(variant, device, options)
        own.admit(1, prompts[0], GREEDY, 2)
        own.clear_prefixes()
        finish_all(own, {})
        monkeypatch.setattr(own, "_load", fail)
        with pytest.raises(DeviceLost, match="memory"):
            own.admit(2, prompts[0], GREEDY, 2)
        with pytest.raises(DeviceLost, match="memory"):
            own.clear_prefixes()
        own.close()

    def test_a_long_prompt_leaves_running_answers_their_pace(self, session: TokenSession) -> None:
        text = "Once upon a time there was a very long story about a ship, number {}. "
        long = session.vocabulary.encode("".join(map(text.format, range(60))), special=False)[:700]
        answers: dict[int, Answer] = {}
        session.admit(1, long[300:320], GREEDY, 40)
        step_until_tokens(session, 1, 1, answers)
        session.admit(2, long, GREEDY, 2)
        session.admit(3, long[1:601], GREEDY, 2)
        before = len(answers[1].tokens)
        for _ in range(4):
            collect(session.step(), answers)
        assert len(answers[1].tokens) == before + 4, "a token in every step"
        session.admit(4, long[7:27], GREEDY, 1)
        step_until_tokens(session, 4, 1, answers)
        assert 2 not in answers, "a short prompt is not held behind long ones"
        alone = finish_all(session, answers)[2].tokens
        assert generate(session, long, 2).tokens == alone

    def test_the_smallest_step_reads_of_a_long_prompt_and_of_a_short_one(
        self, backend: Backend, variant: Variant, device: Device, options: dict[str, Any]
    ) -> None:
        smallest = {"max_num_batched_tokens": 1, "running_batch_tokens": 1}
        own: Any = backend.open(variant, device, options | smallest)
        long = own.vocabulary.encode("Once upon a time there was a ship. " * 60, special=False)[:300]
        answers: dict[int, Answer] = {}
        own.admit(1, long[:20], GREEDY, 60)
        step_until_tokens(own, 1, 1, answers)
        own.admit(2, long, GREEDY, 1)
        own.admit(3, long[7:27], GREEDY, 1)
        collect(own.step(), answers)
        assert (answers[3].finish, 2 in answers) == ("length", False)
        step_until_tokens(own, 2, 1, answers)
        own.close()

    def test_cancel_frees_the_kv_cache_within_one_step(self, session: Any, prompts: list[list[int]]) -> None:
        session.admit(1, prompts[0] * 8, GREEDY, 60)
        session.step()
        session.step()
        one = session._engine.get_metrics().cache_usage
        session.admit(2, prompts[1] * 20, GREEDY, 60)
        answers: dict[int, Answer] = {}
        step_until_tokens(session, 2, 1, answers)
        assert session._engine.get_metrics().cache_usage > one * 1.5
        free = session.free_sequences
        session.cancel(2)
        assert session.free_sequences == free + 1
        session.step()
        session.step()  # the metric is of the beginning of a step
        assert session._engine.get_metrics().cache_usage <= one * 1.5
        session.cancel(1)
        assert not session._engine.has_non_finished_requests()

    def test_a_penalty_changes_a_greedy_answer(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        penalised = generate(session, prompts[1], self.new_tokens, Sampling(repetition_penalty=5.0))
        assert penalised.tokens != alone[1]


def steps_to_first_token(session: TokenSession, prompt: list[int]) -> int:
    session.admit(1, prompt, GREEDY, 1)
    steps = 1
    while not session.step():
        steps += 1
    return steps


@given(texts=st.lists(st.lists(st.integers(0, 1), max_size=200), max_size=12), blocks=st.integers(0, 8))
def test_known_blocks_are_those_that_were_added(texts: list[list[int]], blocks: int) -> None:
    books = PrefixBooks(blocks, 10)
    for number, text in enumerate(texts):
        known = books.look_up(text)
        assert known < max(1, len(text))
        assert known == 0 or any(other[:known] == text[:known] for other in texts[:number])
        books.add(text, 0)
        assert books.held_bytes <= blocks * 10


@pytest.fixture(scope="module")
def vocabulary(variant: Callable[[str, str], Variant]) -> OpenvinoVocabulary:
    return OpenvinoVocabulary(Tokenizer(str(variant("smollm2-135m-instruct", "q4_1").path)))


MISSING = "\x04\x06\x13\x14\x16\x1d"
"""Bytes for which the model's vocabulary has no token; those that begin U+40000 and up are others."""


@settings(deadline=None, max_examples=50)
@given(
    text=st.text(st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters=MISSING), max_size=40)
)
def test_any_text_survives_the_vocabulary(vocabulary: OpenvinoVocabulary, text: str) -> None:
    assert vocabulary.decode(vocabulary.encode(text, special=False)) == text


@pytest.mark.parametrize("text", [*MISSING, "\U00040000"])
def test_a_byte_without_a_token_does_not_become_a_control_token(
    vocabulary: OpenvinoVocabulary, text: str
) -> None:
    tokens = vocabulary.encode(f"a{text}b", special=False)
    assert vocabulary.stops.isdisjoint(tokens)
    assert vocabulary.decode(tokens).replace("\ufffd", "") == "ab"


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
        "quoted <|im_start|>, twice<|im_end|><|im_end|>",
        "naïve 😀 日本語\t  1,234.5 don't",
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_ids_equal_those_of_llama_cpp(
    variant: Callable[[str, str], Variant], vocabulary: OpenvinoVocabulary, text: str, special: bool
) -> None:
    path = str(variant("smollm2-135m-instruct", "q4_1").path)
    other = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    expected = other.tokenize(text.encode(), add_bos=False, special=special)
    other.close()
    assert vocabulary.encode(text, special=special) == expected
