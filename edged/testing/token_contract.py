"""The contract of a `TokenSession`, as a pytest base class that every adapter inherits.

A subclass gives the class-scoped (or wider) fixtures `backend` and `variant`, and may override `device`,
`options` and the two prompts. Write them as class methods: pytest wants that of class-scoped fixtures.
The model is loaded once for the class. A new adapter is done when its
subclass is green.
"""
# ruff: noqa: D102 - assertions are what a contract consists of; the names of its tests say what they hold

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edged.backend import Backend, Device, Finish, Sampling, TokenEvent, TokenSession, Variant
from edged.errors import BackendError, ConfigError, ContextOverflow

GREEDY = Sampling()
STEP_LIMIT = 2_000
TEXTS = ("naïve café, ½ Ω", "日本語 テキスト", "😀👩‍👩‍👧 ok", "tabs\tand\n\nlines  two spaces", "x" * 300)


class Answer(msgspec.Struct):
    """What a sequence has produced so far."""

    tokens: list[int] = msgspec.field(default_factory=list)
    finish: Finish | None = None
    steps: int = 0
    """Steps that reported something for the sequence."""


def collect(events: Sequence[TokenEvent], answers: dict[int, Answer]) -> None:
    """Add the events of one step to the answers; nothing may follow a finish."""
    for event in events:
        answer = answers.setdefault(event.sequence, Answer())
        assert answer.finish is None, f"an event follows the end of sequence {event.sequence}"
        answer.tokens.extend(event.tokens)
        answer.finish = event.finish
        answer.steps += 1


def finish_all(session: TokenSession, answers: dict[int, Answer]) -> dict[int, Answer]:
    """Step until no sequence is alive."""
    for _ in range(STEP_LIMIT):
        if session.free_sequences == session.max_sequences:
            return answers
        collect(session.step(), answers)
    raise AssertionError(f"sequences are still alive after {STEP_LIMIT} steps: {answers}")


def step_until_tokens(session: TokenSession, sequence: int, count: int, answers: dict[int, Answer]) -> None:
    """Step until a sequence has produced at least `count` tokens."""
    answers.setdefault(sequence, Answer())
    for _ in range(STEP_LIMIT):
        if len(answers[sequence].tokens) >= count:
            return
        collect(session.step(), answers)
    raise AssertionError(f"sequence {sequence} gave fewer than {count} tokens in {STEP_LIMIT} steps")


def generate(
    session: TokenSession, prompt: Sequence[int], max_tokens: int, sampling: Sampling = GREEDY
) -> Answer:
    """Run one sequence alone to its end."""
    session.admit(1, prompt, sampling, max_tokens)
    return finish_all(session, {1: Answer()})[1]


class TokenContract:
    """What every continuous-batching engine must do, whatever it runs on."""

    new_tokens = 16
    """Length of the answers compared; raise it when the engine is fast."""

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls, backend: Backend) -> Device:
        """The device under test: the first usable one unless the subclass chooses."""
        return next(device for device in backend.devices() if not device.unusable)

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls) -> dict[str, Any]:
        """Options of the adapter; at least three sequences must fit."""
        return {"max_sequences": 4}

    @pytest.fixture(scope="class")
    @classmethod
    def session(
        cls, backend: Backend, variant: Variant, device: Device, options: Mapping[str, Any]
    ) -> Iterator[TokenSession]:
        """One session for all tests of the class."""
        session: Any = backend.open(variant, device, options)
        yield session
        session.close()

    @pytest.fixture(autouse=True)
    def _left_empty(self, request: pytest.FixtureRequest) -> Iterator[None]:
        yield
        if "session" in request.fixturenames:
            session: TokenSession = request.getfixturevalue("session")
            assert session.free_sequences == session.max_sequences, "the test left sequences alive"

    @pytest.fixture(scope="class")
    @classmethod
    def prompts(cls, session: TokenSession) -> list[list[int]]:
        """Prompts of different length whose greedy answers are longer than `new_tokens`."""
        texts = (
            "Once upon a time, in a village by the sea, there lived",
            "Here is a list of the days of the week and what people do on each of them:\n",
            "The router has three lights. The first light shows that the power is on. The second",
        )
        return [session.vocabulary.encode(text, special=False) for text in texts]

    @pytest.fixture(scope="class")
    @classmethod
    def stopping_prompt(cls, session: TokenSession) -> list[int]:
        """A prompt whose greedy answer ends by itself within 64 tokens."""
        vocabulary = session.vocabulary
        text = (
            ImmutableSandboxedEnvironment()
            .from_string(vocabulary.chat_template)
            .render(
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                add_generation_prompt=True,
                bos_token=vocabulary.beginning,
                eos_token=vocabulary.end,
            )
        )
        return vocabulary.encode(text, special=True)

    @pytest.fixture(scope="class")
    @classmethod
    def alone(cls, session: TokenSession, prompts: list[list[int]]) -> list[list[int]]:
        """The greedy answer to each prompt when nothing else runs."""
        return [generate(session, prompt, cls.new_tokens).tokens for prompt in prompts]

    def test_greedy_decoding_repeats(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        assert generate(session, prompts[0], self.new_tokens).tokens == alone[0]

    def test_max_tokens_ends_with_length(self, session: TokenSession, prompts: list[list[int]]) -> None:
        for count in (1, 5):
            answer = generate(session, prompts[0], count)
            assert (len(answer.tokens), answer.finish) == (count, "length")

    def test_end_of_generation_stops_and_is_not_reported(
        self, session: TokenSession, stopping_prompt: list[int]
    ) -> None:
        answer = generate(session, stopping_prompt, 64)
        assert answer.finish == "stop"
        assert 0 < len(answer.tokens) < 64  # noqa: PLR2004 - the limit given above
        assert session.vocabulary.encode(session.vocabulary.end, special=True)[0] not in answer.tokens

    def test_sequences_together_equal_each_alone(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        for number, prompt in enumerate(prompts):
            session.admit(number, prompt, GREEDY, self.new_tokens)
        answers = finish_all(session, {})
        assert [answers[number].tokens for number in range(len(prompts))] == alone

    def test_sequences_join_while_others_run(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        answers: dict[int, Answer] = {}
        for number, prompt in enumerate(prompts):
            session.admit(number, prompt, GREEDY, self.new_tokens)
            step_until_tokens(session, number, 3, answers)
        finish_all(session, answers)
        assert [answers[number].tokens for number in range(len(prompts))] == alone

    def test_a_step_gives_a_sequence_at_most_one_token(
        self, session: TokenSession, prompts: list[list[int]]
    ) -> None:
        answer = generate(session, prompts[0], 8)
        assert answer.steps >= len(answer.tokens)

    def test_cancel_frees_the_sequence_and_spares_the_others(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        answers: dict[int, Answer] = {}
        session.admit(1, prompts[0], GREEDY, self.new_tokens)
        session.admit(2, prompts[1], GREEDY, self.new_tokens)
        step_until_tokens(session, 1, 2, answers)
        before = session.free_sequences
        session.cancel(1)
        seen = len(answers[1].tokens)
        collect(session.step(), answers)
        assert session.free_sequences == before + 1
        finish_all(session, answers)
        assert len(answers[1].tokens) == seen, "a cancelled sequence went on"
        assert answers[2].tokens == alone[1]

    def test_a_cancelled_number_can_be_used_again(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        session.admit(1, prompts[0], GREEDY, self.new_tokens)
        session.step()
        session.cancel(1)
        assert generate(session, prompts[1], self.new_tokens).tokens == alone[1]

    def test_every_running_answer_gets_a_token_in_every_step(
        self, session: TokenSession, prompts: list[list[int]]
    ) -> None:
        answers: dict[int, Answer] = {}
        for number, prompt in enumerate(prompts):
            session.admit(number, prompt, GREEDY, self.new_tokens)
        for number in range(len(prompts)):
            step_until_tokens(session, number, 1, answers)
        before = [len(answers[number].tokens) for number in range(len(prompts))]
        for _ in range(2):
            collect(session.step(), answers)
        assert [len(answers[number].tokens) for number in range(len(prompts))] == [n + 2 for n in before]
        finish_all(session, answers)

    def test_neither_answers_nor_short_prompts_wait_for_a_long_prompt(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        long = (prompts[1] * session.context_tokens)[: session.context_tokens - 4]
        answers: dict[int, Answer] = {}
        session.admit(1, prompts[0], GREEDY, self.new_tokens)
        step_until_tokens(session, 1, 1, answers)
        session.admit(2, long, GREEDY, 1)
        seen = len(answers[1].tokens)
        collect(session.step(), answers)
        assert len(answers[1].tokens) == seen + 1, "the running answer paused"
        session.admit(3, prompts[2], GREEDY, self.new_tokens)
        step_until_tokens(session, 3, 1, answers)
        assert not answers.get(2), "the short prompt waited"
        session.cancel(2)
        assert finish_all(session, answers)[3].tokens == alone[2]

    def test_of_prompts_alike_the_older_is_answered_first(
        self, session: TokenSession, prompts: list[list[int]]
    ) -> None:
        """Also where the younger one got the place of an answer that began before both."""
        length = min(session.context_tokens // 2, 600) - 8
        text = (prompts[1] * length)[: length + 1]
        answers: dict[int, Answer] = {}
        session.admit(1, prompts[0], GREEDY, self.new_tokens)
        session.admit(2, prompts[0], GREEDY, session.context_tokens - len(prompts[0]))
        for running in (1, 2):
            step_until_tokens(session, running, 1, answers)
        session.admit(4, text[:length], GREEDY, 1)
        session.cancel(1)
        session.admit(3, text[1:], GREEDY, 1)
        heard: set[int] = set()
        for _ in range(STEP_LIMIT):
            if heard := {3, 4} & answers.keys():
                break
            collect(session.step(), answers)
        assert heard == {4}
        session.cancel(2)
        finish_all(session, answers)

    def test_prompt_tokens_are_counted(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        found, asked, _ = session.prefix_counters()
        for _ in range(2):
            assert generate(session, prompts[1], self.new_tokens).tokens == alone[1]
        after = session.prefix_counters()
        assert after[1] - asked == 2 * len(prompts[1])
        assert 0 <= after[0] - found < 2 * len(prompts[1])

    def test_forgetting_prefixes_spares_live_sequences(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        answers: dict[int, Answer] = {}
        session.admit(1, prompts[0], GREEDY, self.new_tokens)
        step_until_tokens(session, 1, 2, answers)
        counts = session.prefix_counters()[:2]
        session.clear_prefixes()
        assert session.prefix_counters() == (*counts, 0)
        assert finish_all(session, answers)[1].tokens == alone[0]
        assert generate(session, prompts[0], self.new_tokens).tokens == alone[0]

    def test_threads_may_change_while_an_answer_runs(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        answers: dict[int, Answer] = {}
        session.admit(1, prompts[0], GREEDY, self.new_tokens)
        step_until_tokens(session, 1, 2, answers)
        assert session.set_threads(1) in {True, False}
        assert finish_all(session, answers)[1].tokens == alone[0]

    def test_cancel_of_an_unknown_number_is_ignored(self, session: TokenSession) -> None:
        session.cancel(4711)

    def test_a_step_without_sequences_reports_nothing(self, session: TokenSession) -> None:
        assert session.step() == []

    @pytest.mark.parametrize("produced", [1, 5, 11])
    def test_a_resumed_sequence_gives_the_remaining_tokens(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]], produced: int
    ) -> None:
        for prompt, answer in zip(prompts, alone, strict=True):
            resumed = generate(session, [*prompt, *answer[:produced]], self.new_tokens - produced)
            assert resumed.tokens == answer[produced:]

    def test_a_seed_repeats_and_seeds_differ(self, session: TokenSession, prompts: list[list[int]]) -> None:
        answers = [
            tuple(generate(session, prompts[0], 12, Sampling(temperature=1.2, seed=seed)).tokens)
            for seed in (1, 1, 2, 3)
        ]
        assert answers[0] == answers[1]
        assert len(set(answers)) > 1

    def test_a_sampled_sequence_leaves_greedy_neighbours_alone(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        session.admit(1, prompts[0], Sampling(temperature=1.0, top_k=20, top_p=0.9, seed=5), 8)
        session.admit(2, prompts[1], GREEDY, self.new_tokens)
        assert finish_all(session, {})[2].tokens == alone[1]

    def test_one_sequence_too_many_is_refused(
        self, session: TokenSession, prompts: list[list[int]], alone: list[list[int]]
    ) -> None:
        for number in range(session.max_sequences):
            session.admit(number, prompts[0], GREEDY, self.new_tokens)
        assert session.free_sequences == 0
        with pytest.raises(BackendError):
            session.admit(session.max_sequences, prompts[0], GREEDY, self.new_tokens)
        answers = finish_all(session, {})
        assert [answer.tokens for answer in answers.values()] == [alone[0]] * session.max_sequences

    def test_a_prompt_beyond_the_context_is_refused(
        self, session: TokenSession, prompts: list[list[int]]
    ) -> None:
        long = (prompts[0] * session.context_tokens)[: session.context_tokens + 1]
        for prompt, max_tokens in ((long, 1), (prompts[0], session.context_tokens)):
            with pytest.raises((BackendError, ContextOverflow)):
                session.admit(1, prompt, GREEDY, max_tokens)

    def test_an_empty_prompt_is_refused(self, session: TokenSession) -> None:
        with pytest.raises(BackendError):
            session.admit(1, [], GREEDY, 4)

    @pytest.mark.parametrize("text", TEXTS)
    def test_text_survives_the_vocabulary(self, session: TokenSession, text: str) -> None:
        vocabulary = session.vocabulary
        assert vocabulary.decode(vocabulary.encode(text, special=False)) == text
        assert vocabulary.decode(vocabulary.encode(text, special=True)) == text

    def test_empty_text_has_no_tokens(self, session: TokenSession) -> None:
        assert session.vocabulary.encode("", special=True) == []
        assert session.vocabulary.decode([]) == ""

    def test_control_tokens_are_recognised_only_on_request(self, session: TokenSession) -> None:
        vocabulary = session.vocabulary
        end = vocabulary.end
        assert end
        (control,) = vocabulary.encode(end, special=True)
        text = f"a passage that says {end}{end} and goes on"
        plain = vocabulary.encode(text, special=False)
        assert control not in plain
        assert vocabulary.decode(plain) == text
        assert vocabulary.decode([control]) == ""

    def test_an_incomplete_character_is_marked(self, session: TokenSession) -> None:
        tokens = session.vocabulary.encode("\U0001fae0", special=False)
        whole = len(tokens) == 1
        assert session.vocabulary.decode(tokens[:-1])[-1:] == ("" if whole else "\ufffd")

    def test_decoded_prefixes_grow(self, session: TokenSession, alone: list[list[int]]) -> None:
        decode = session.vocabulary.decode
        texts = [decode(alone[0][:count]).rstrip("\ufffd") for count in range(len(alone[0]) + 1)]
        assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))

    def test_close_is_idempotent_and_ends_the_session(
        self, backend: Backend, variant: Variant, device: Device, options: Mapping[str, Any]
    ) -> None:
        session: Any = backend.open(variant, device, options)
        prompt = session.vocabulary.encode("The sea is", special=False)
        session.admit(1, prompt, GREEDY, 4)
        session.close()
        session.close()
        with pytest.raises(BackendError):
            session.admit(2, prompt, GREEDY, 4)
        with pytest.raises(BackendError):
            session.step()

    def test_an_unknown_option_is_a_config_error(
        self, backend: Backend, variant: Variant, device: Device
    ) -> None:
        with pytest.raises(ConfigError, match="no_such_option"):
            backend.open(variant, device, {"no_such_option": 1})
