"""The generator over a scripted session: streams, stops, resumptions and failures, one request at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.backend import Sampling, TokenEvent
from edged.errors import BackendError, BadRequest, ConfigError, ContextOverflow, DeviceLost, ProtocolError
from edged.messages import Message
from edged.stages.contract import Broken, Finished, Item, Progress

from .scripted import (
    REPLY,
    Scripted,
    answer,
    drain,
    item,
    run,
    stage,
)


def check_contiguous(progress: list[Progress], first: int = 0) -> None:
    for event in progress:
        assert event.first == first
        first += len(event.tokens)


@pytest.mark.parametrize("per_event", [1, 3, 1_000])
def test_an_answer_streams_and_is_repeated_whole(per_event):
    progress, whole = run(stage(Scripted(per_event=per_event)), item())
    check_contiguous(progress)
    assert "".join(event.text for event in progress) == whole.text == REPLY
    assert bytes(t for event in progress for t in event.tokens).decode() == REPLY
    assert (whole.finish, whole.completion_tokens, whole.model) == ("stop", len(REPLY.encode()), "scripted")
    assert whole.prompt_tokens == len("0user\nHow do I reset it?1\n0assistant\n")
    assert (whole.resumed, whole.citations) == (0, ())


def test_tokens_without_text_are_reported():
    progress, _ = run(stage(Scripted("½")), item())
    assert [(event.tokens, event.text) for event in progress] == [((0xC2,), ""), ((0xBD,), "½")]


def test_max_tokens_ends_with_length_and_gives_up_the_half_character():
    progress, whole = run(stage(Scripted("a½")), item(max_tokens=2))
    assert (whole.text, whole.finish, whole.completion_tokens) == ("a\ufffd", "length", 2)
    assert "".join(event.text for event in progress) == whole.text


def test_the_default_length_is_an_option():
    assert run(stage(max_tokens=5), item())[1].completion_tokens == 5
    for bad in (0, -1, "5", True):
        with pytest.raises(ConfigError, match="max_tokens"):
            stage(max_tokens=bad)


def test_a_stop_string_ends_the_answer_and_frees_the_sequence():
    session = Scripted()
    progress, whole = run(stage(session), item(stop=("12 s", "\n")))
    assert whole.text == "Hold the recessed button for "
    assert "".join(event.text for event in progress) == whole.text
    assert (whole.finish, whole.completion_tokens) == ("stop", len("Hold the recessed button for 12 s"))
    assert session.free_sequences == session.max_sequences


def test_sampling_is_passed_on():
    session = Scripted()
    run(stage(session), item(sampling=Sampling(temperature=0.7, seed=42)))
    assert session.admitted[0][1] == Sampling(temperature=0.7, seed=42)


@given(
    st.text("ab½😀\n", min_size=1, max_size=20),
    st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2),
    st.integers(1, 30),
    st.integers(0, 30),
    st.booleans(),
    st.integers(1, 4),
)
def test_a_resumed_answer_goes_on_as_if_nothing_had_happened(reply, stop, max_tokens, cut, exact, per_event):
    task = {"max_tokens": max_tokens, "stop": tuple(stop)}
    before, whole = run(stage(Scripted(reply, per_event=per_event)), item(**task))
    sent = before[:cut]
    tokens = [token for event in sent for token in event.tokens]
    text = "".join(event.text for event in sent)
    if not tokens:
        return
    session = Scripted(reply, per_event=per_event, exact=exact)
    after, resumed = run(stage(session), item(1, tokens, len(text), **task))
    check_contiguous(after, len(tokens))
    assert text + "".join(event.text for event in after) == whole.text
    assert tokens + [t for event in after for t in event.tokens] == [t for e in before for t in e.tokens]
    assert resumed.resumed == 1
    assert (resumed.text, resumed.finish, resumed.completion_tokens, resumed.prompt_tokens) == (
        whole.text,
        whole.finish,
        whole.completion_tokens,
        whole.prompt_tokens,
    )


def test_without_exact_prefill_an_answer_is_repeated_from_its_prompt():
    session = Scripted(exact=False)
    known = REPLY.encode()[:9]
    _, resumed = run(stage(session), item(1, known, 9))
    ((prompt, _, max_tokens),) = session.admitted
    assert bytes(prompt[-10:]) == b"assistant\n"
    assert max_tokens == 256
    assert (resumed.text, resumed.resumed) == (REPLY, 1)


def test_a_repetition_that_takes_another_turn_goes_on_behind_what_the_client_has():
    session = Scripted(exact=False)
    known = REPLY.encode()[:9]
    slips = iter([TokenEvent(0, (ord("x"),))])
    session.inject = lambda sequence: next(slips, None) if session.live[sequence][0] == 4 else None
    after, resumed = run(stage(session), item(1, known, 9))
    check_contiguous(after, 9)
    assert len(session.admitted) == 2
    assert bytes(session.admitted[1][0][-9:]) == known
    assert session.admitted[1][2] == 256 - 9
    assert resumed.text == REPLY


def test_a_repetition_that_ends_early_goes_on_behind_what_the_client_has():
    session = Scripted(exact=False)
    known = REPLY.encode()[:9]
    slips = iter([TokenEvent(0, (), "stop")])
    session.inject = lambda sequence: next(slips, None) if session.live[sequence][0] == 4 else None
    _, resumed = run(stage(session), item(1, known, 9))
    assert resumed.text == REPLY


def test_a_repetition_that_may_not_start_anew_breaks_one_answer(monkeypatch):
    session = Scripted(exact=False)
    generator = stage(session)
    generator.admit(item(1, REPLY.encode()[:9], 9))
    generator.admit(item(2))
    session.inject = lambda sequence: TokenEvent(0, (ord("x"),)) if sequence == 0 else None

    def refuse(*_: object) -> None:
        raise BackendError("no room")

    monkeypatch.setattr(session, "admit", refuse)
    events = drain(generator)
    assert [type(event) for event in events if event.request == 1] == [Broken]
    assert answer(events[-1]).text == REPLY
    assert session.free_sequences == session.max_sequences


def test_resume_tokens_that_complete_the_answer_finish_it_without_the_model():
    for task in ({"max_tokens": 4}, {"stop": ("ld",)}):
        session = Scripted()
        _, whole = run(stage(session), item(1, b"Hold", 2, **task))
        assert session.admitted == []
        assert whole.completion_tokens == 4


def test_answers_side_by_side_do_not_mix():
    generator = stage(Scripted())
    for request in (5, 6, 7):
        generator.admit(item(request, max_tokens=request))
    assert (generator.active, generator.room) == (3, 1)
    events = drain(generator)
    finished = {e.request: answer(e) for e in events if isinstance(e, Finished)}
    assert {request: whole.completion_tokens for request, whole in finished.items()} == {5: 5, 6: 6, 7: 7}
    assert generator.room == 4


def test_a_cancelled_answer_says_nothing_more():
    session = Scripted()
    generator = stage(session)
    generator.admit(item(1))
    generator.admit(item(2, max_tokens=3))
    generator.step()
    generator.cancel(1)
    generator.cancel(99)
    assert {event.request for event in drain(generator)} == {2}
    assert session.free_sequences == 4
    generator.admit(item(3, b"Hold", 0, max_tokens=4))
    generator.cancel(3)
    assert (generator.active, generator.step()) == (0, [])


def test_a_request_may_come_back_after_a_cancel():
    generator = stage()
    generator.admit(item(1))
    generator.step()
    generator.cancel(1)
    assert run(generator, item(1))[1].text == REPLY


@pytest.mark.parametrize(
    "event",
    [
        TokenEvent(0, (), "error", "the cache is full"),
        TokenEvent(0, (), "error"),
        TokenEvent(0, (), "cancelled"),
        TokenEvent(0, (-1,)),
    ],
)
def test_a_sequence_that_fails_fails_alone(event):
    session = Scripted()
    generator = stage(session)
    generator.admit(item(1))
    generator.admit(item(2))

    def inject(sequence: int) -> TokenEvent | None:
        if sequence != 0:
            return None
        if event.finish:
            del session.live[0]
        return event

    session.inject = inject
    events = drain(generator)
    assert [type(e) for e in events if e.request == 1] == [Broken]
    assert answer(events[-1]).text == REPLY
    assert session.free_sequences == 4


def test_a_lost_device_is_everyones():
    generator = stage(session := Scripted())
    generator.admit(item(1))

    def lose(sequence: int) -> TokenEvent:
        raise DeviceLost("unplugged")

    session.inject = lose
    with pytest.raises(DeviceLost):
        generator.step()


def test_an_item_that_cannot_start_raises_its_answer():
    generator = stage(Scripted(context=100))
    with pytest.raises(ContextOverflow):
        generator.admit(item(messages=(Message("user", "x" * 200),)))
    with pytest.raises(BadRequest, match="stop"):
        generator.admit(item(stop=("",)))
    with pytest.raises(BadRequest, match="embed"):
        generator.admit(Item(1, "embed", item().payload))
    with pytest.raises(ProtocolError):
        generator.admit(Item(1, "chat", memoryview(b"\xc1")))
    for request in range(4):
        generator.admit(item(request))
    with pytest.raises(BackendError, match="full"):
        generator.admit(item(4))
    assert generator.active == 4


def test_details_say_what_status_shows():
    assert stage().details == {
        "model": "scripted",
        "context_tokens": 2_000,
        "max_sequences": 4,
        "max_tokens": 256,
        "chat_template": True,
    }


def test_close_closes_the_session():
    session = Scripted()
    generator = stage(session)
    generator.admit(item())
    generator.close()
    generator.close()
    assert (session.closed, generator.active) == (True, 0)
