"""The openai adapter against servers that hang, cut, babble, refuse and vanish."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from edged_backends import openai as adapter

from edged.backend import Sampling, TokenEvent, Variant
from edged.errors import ConfigError, StageUnavailable, UnsupportedField

from .openai_stand import Caller, Stand, stand

VARIANT = Variant(model="smol", name="none", task="generate", format="none", path=Path("/dev/null"))
GREEDY = Sampling()
QUESTION = "<|edged:system|>Be brief.<|edged:end|><|edged:user|>Why?<|edged:end|><|edged:assistant|>"


@pytest.fixture
def server() -> Iterator[Stand]:
    with stand() as made:
        yield made


@pytest.fixture
def opened(server):
    """Open sessions on the stand, closed behind the test."""
    sessions = []

    def start(**options):
        given = {"base_url": server.url, "timeout_s": 5, "retries": 0, "max_sequences": 4} | options
        backend = adapter.OpenaiBackend()
        session = backend.open(VARIANT, backend.devices()[0], given)
        sessions.append(session)
        return session

    yield start
    for session in sessions:
        session.close()


def ask(session, number=1, *, known="", sampling=GREEDY, max_tokens=64) -> None:
    prompt = session.vocabulary.encode(QUESTION, special=True)
    prompt += session.vocabulary.encode(known, special=False)
    session.admit(number, prompt, sampling, max_tokens)


def finish(session) -> dict[int, tuple[str, TokenEvent]]:
    """Step until all are done: by sequence, the text and the last event."""
    texts: dict[int, list[int]] = {}
    ends: dict[int, TokenEvent] = {}
    while session.free_sequences < session.max_sequences:
        for event in session.step():
            texts.setdefault(event.sequence, []).extend(event.tokens)
            if event.finish:
                ends[event.sequence] = event
    return {number: (session.vocabulary.decode(texts[number]), end) for number, end in ends.items()}


def test_an_answer_arrives_with_the_usage_of_the_server(server, opened):
    server.scripts = [lambda caller: caller.answer("Because", " it", " does.")]
    session = opened(model="big")
    ask(session)
    text, end = finish(session)[1]
    assert (text, end.finish) == ("Because it does.", "stop")
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (7, 3)
    asked = server.calls[0].body
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    assert (asked["model"], asked["max_tokens"], asked["stream"]) == ("big", 64, True)


REFUSALS = [
    (401, b'{"error": {"message": "bad key sk-123"}}', (), "upstream", "api_key_file"),
    (403, b"", (), "upstream", "api_key_file"),
    (404, b'{"error": {"message": "no such model"}}', (), "upstream", "no such model; check base_url"),
    (429, b"", ("retry-after: 7",), "overloaded", "in 7 s"),
    (500, b"<html>boom</html>", (), "stage_unavailable", "boom"),
    (503, b'{"error": {"message": "loading"}}', (), "stage_unavailable", "loading"),
    (400, b'{"error": {"message": "maximum context length exceeded"}}', (), "context_overflow", "maximum"),
    (422, b'{"detail": "temperature"}', (), "upstream", "temperature"),
    (307, b"", ("location: http://elsewhere/",), "upstream", "http://elsewhere/"),
]


@pytest.mark.parametrize(("status", "body", "headers", "code", "words"), REFUSALS)
def test_a_refusal_says_what_to_do(server, opened, status, body, headers, code, words):
    server.scripts = [lambda caller: caller.refuse(status, body, *headers)]
    session = opened()
    ask(session)
    _, end = finish(session)[1]
    assert (end.finish, end.code) == ("error", code)
    assert words in end.error
    assert "sk-123" not in end.error


def silence(caller: Caller) -> None:
    caller.wait_until_left()


def silence_in_mid_answer(caller: Caller) -> None:
    caller.begin()
    caller.say("Be")
    caller.wait_until_left()


def cut(caller: Caller) -> None:
    caller.begin()
    caller.say("Because")


def garbage(caller: Caller) -> None:
    caller.begin()
    caller.send(b"data: {]\n\n")


def endless_line(caller: Caller) -> None:
    caller.begin()
    for _ in range(40):
        caller.send(b"x" * 65536)


def no_http(caller: Caller) -> None:
    caller.send(b"\x00\x01\x02 hello\r\n\r\n")


def web_page(caller: Caller) -> None:
    caller.begin("text/html")
    caller.send(b"<h1>A portal</h1>")


def error_in_mid_answer(caller: Caller) -> None:
    caller.begin()
    caller.say("Be")
    caller.send(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')


FAULTS = [
    (silence, "stage_unavailable", "said nothing"),
    (silence_in_mid_answer, "stage_unavailable", "said nothing"),
    (cut, "stage_unavailable", "broke off"),
    (garbage, "upstream", "no chunk"),
    (endless_line, "upstream", "line of more than"),
    (no_http, "stage_unavailable", "connection broke"),
    (web_page, "upstream", "A portal"),
    (error_in_mid_answer, "stage_unavailable", "out of memory"),
]


@pytest.mark.parametrize(("script", "code", "words"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_fails_its_sequence_alone(server, opened, script, code, words):
    server.scripts = [lambda caller: caller.answer("fine") if "Other" in str(caller.body) else script(caller)]
    session = opened(timeout_s=2.0, failures_to_open=9)
    ask(session)
    other = "<|edged:user|>Other?<|edged:end|><|edged:assistant|>"
    session.admit(2, session.vocabulary.encode(other, special=True), Sampling(), 8)
    ends = finish(session)
    assert ends[2][0] == "fine"
    assert (ends[1][1].finish, ends[1][1].code) == ("error", code)
    assert words in ends[1][1].error


def test_a_character_cut_in_two_and_slow_bytes_arrive_whole(server, opened):
    def slowly(caller: Caller) -> None:
        caller.begin()
        payload = 'data: {"choices":[{"delta":{"content":"naïve 😀"}}]}\r\n\r\n'.encode()
        for byte in payload:
            caller.send(bytes([byte]))
        caller.say("", "stop")

    server.scripts = [slowly]
    session = opened()
    ask(session)
    assert finish(session)[1][0] == "naïve 😀"


def test_an_answer_that_was_cut_is_asked_again_and_goes_on_behind_what_was_said(server, opened):
    server.scripts = [cut, lambda caller: caller.answer("Be", "cause it", " does.")]
    session = opened(retries=1)
    ask(session)
    text, end = finish(session)[1]
    assert (text, end.finish) == ("Because it does.", "stop")
    assert server.calls[0].body == server.calls[1].body


def test_an_answer_that_is_worded_differently_the_second_time_is_an_error_and_not_an_answer(server, opened):
    server.scripts = [cut, lambda caller: caller.answer("But", " why?")]
    session = opened(retries=1)
    ask(session)
    text, end = finish(session)[1]
    assert (text, end.finish, end.code) == ("Because", "error", "upstream")
    assert "dialect" in end.error


@pytest.mark.parametrize("dialect", ["vllm", "llama_server"])
def test_a_server_that_can_goes_on_with_what_was_said(server, opened, dialect):
    server.scripts = [lambda caller: caller.answer(" does.")]
    session = opened(dialect=dialect)
    ask(session, known="Because it")
    assert finish(session)[1][0] == " does."
    body = server.calls[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": "Because it"}
    assert body.get("continue_final_message") == (True if dialect == "vllm" else None)
    assert not session.exact_resume


def test_a_known_beginning_is_repeated_in_silence_elsewhere(server, opened):
    server.scripts = [lambda caller: caller.answer("Because", " it", " does.")]
    session = opened()
    ask(session, known="Because i")
    assert finish(session)[1][0] == "t does."


def test_a_short_wait_that_the_server_asks_for_is_kept(server, opened):
    server.scripts = [
        lambda caller: caller.refuse(429, b"", "retry-after: 1"),
        lambda caller: caller.answer("Now."),
    ]
    session = opened(retries=1, first_wait_s=0.5)
    ask(session)
    began = time.monotonic()
    assert finish(session)[1][0] == "Now."
    assert time.monotonic() - began >= 1


def test_the_breaker_opens_probes_and_closes(server, opened):
    server.scripts = [lambda caller: caller.refuse(500)]
    session = opened(failures_to_open=2, first_wait_s=0.4)
    for _ in range(2):
        assert session.trouble == ""
        ask(session)
        finish(session)
    assert "breaker open" in session.trouble
    with pytest.raises(StageUnavailable, match="try again in"):
        ask(session)
    assert len(server.calls) == 2
    server.scripts = [lambda caller: caller.answer("Back.")]
    while True:
        try:
            ask(session, 1)
            break
        except StageUnavailable:
            time.sleep(0.02)
    with pytest.raises(StageUnavailable, match="half-open"):
        ask(session, 2)
    assert finish(session)[1][0] == "Back."
    assert session.trouble == ""


def test_cancel_closes_the_connection_and_spares_the_others(server, opened):
    left = []

    def talk(caller: Caller) -> None:
        caller.begin()
        caller.say("Be")
        left.append(caller.wait_until_left())

    server.scripts = [talk, lambda caller: caller.answer("fine")]
    session = opened()
    ask(session, 1)
    while not session.step():
        pass
    ask(session, 2)
    session.cancel(1)
    assert server.calls[0].over.wait(5)
    assert left == [True]
    assert finish(session)[2][0] == "fine"


def test_who_does_not_step_does_not_read(server, opened):
    stuck = []

    def flood(caller: Caller) -> None:
        caller.begin()
        for _ in range(100_000):
            if caller.is_stuck():
                stuck.append(True)
                return
            caller.say("x" * 500)

    server.scripts = [flood]
    session = opened()
    ask(session)
    while not session.step():
        pass
    assert server.calls[0].over.wait(60)
    assert stuck == [True]
    session.cancel(1)


def test_a_pause_of_ours_is_not_held_against_the_server(server, opened):
    resumed = []

    def slow(caller: Caller) -> None:
        caller.begin()
        caller.say("Be")
        while not resumed:
            time.sleep(0.01)
        caller.say("cause", "stop")

    server.scripts = [slow]
    session = opened(timeout_s=0.6)
    ask(session)
    while not session.step():
        pass
    time.sleep(0.8)
    resumed.append(True)
    text, end = finish(session)[1]
    assert (text, end.finish) == ("cause", "stop")


def test_a_server_that_is_down_is_named_and_asked_again_later(opened):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    session = opened(base_url=url, first_wait_s=30)
    assert "is it running, and is base_url right?" in session.trouble
    with pytest.raises(StageUnavailable):
        ask(session)


def test_a_key_is_sent_and_never_shown(server, opened, tmp_path, monkeypatch, caplog):
    (tmp_path / "key").write_text("sk-secret\n")
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    server.scripts = [lambda caller: caller.refuse(401, b"sk-secret is wrong")]
    with caplog.at_level("DEBUG"):
        session = opened(api_key_file="key")
        ask(session)
        _, end = finish(session)[1]
    assert "Bearer sk-secret" in server.calls[0].head
    assert "sk-secret" not in end.error + caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": ""}, "needs the option base_url"),
        ({"base_url": "ftp://host/v1"}, "https://host:8000/v1"),
        ({"base_url": "http://host:a/v1"}, "https://host:8000/v1"),
        ({"base_url": "http://me:secret@host/v1"}, "neither user, password"),
        ({"base_url": "http://10.0.0.1/v1", "api_key_file": "/etc/hostname"}, "unencrypted"),
        ({"api_key_file": "/no/such/file"}, "cannot be read"),
        ({"api_key_file": "nokey"}, "LoadCredential"),
        ({"ca_file": "/no/such/file"}, "ca_file"),
        ({"dialect": "klingon"}, "klingon"),
    ],
)
def test_bad_options_are_named(opened, monkeypatch, options, words):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=words):
        opened(**options)


def test_a_key_that_others_can_read_is_refused(opened, tmp_path):
    (tmp_path / "key").write_text("sk-secret")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        opened(api_key_file=str(tmp_path / "key"))


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (Sampling(top_k=5), "top_k"),
        (Sampling(min_p=0.1), "min_p"),
        (Sampling(repetition_penalty=1.1), "repetition_penalty"),
        (Sampling(logit_bias={3: 1.0}), "logit_bias"),
    ],
)
def test_sampling_that_the_server_lacks_is_refused_by_name(opened, sampling, field):
    with pytest.raises(UnsupportedField, match=field) as caught:
        ask(opened(), sampling=sampling)
    assert caught.value.param == field


def test_sampling_is_said_in_the_words_of_the_server(server, opened):
    server.scripts = [lambda caller: caller.answer("ok")]
    session = opened(dialect="llama_server")
    ask(session, sampling=Sampling(temperature=0.7, top_k=5, repetition_penalty=1.1, seed=4))
    finish(session)
    body = server.calls[0].body
    assert (body["temperature"], body["top_k"], body["repeat_penalty"], body["seed"]) == (0.7, 5, 1.1, 4)


def test_proxies_of_the_environment_are_not_used(server, opened, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.scripts = [lambda caller: caller.answer("direct")]
    session = opened()
    ask(session)
    assert finish(session)[1][0] == "direct"
