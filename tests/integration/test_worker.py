"""A real worker process at work: batches and tokens; the test plays the dispatcher."""

from __future__ import annotations

import select
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edged.messages import (
    Answer,
    Cancel,
    ChatTask,
    Cores,
    Done,
    Failed,
    Fault,
    Gone,
    Message,
    Ping,
    Pong,
    Ready,
    SlotRef,
    Stop,
    Tokens,
    Work,
    decoder,
    encode,
)
from edged.stages.tensor import decode_tensors
from edged.workers.process import Process

from .worker_bench import ENTRY, OWN, WAIT_S, Bench, tensors, work


def chat(text: str, **fields: Any) -> bytes:
    return encode(ChatTask(messages=(Message("user", text),), **fields))


# ------------------------------------------------------------------------------------- batches


def test_it_says_that_it_is_ready_and_what_it_takes(bench: Bench) -> None:
    ready = bench.ready("tensor", max_batch=3)
    assert ready.credit == 3
    assert ready.pid == bench.processes[0].pid
    assert ready.load_s >= 0


def test_a_reranker_says_over_how_many_cores_it_spreads_a_batch(bench: Bench, variant: Any) -> None:
    spec = bench.spec("reranker", "cpu", threads=2)
    stage = msgspec.structs.replace(spec.stage, variant=variant("ms-marco-minilm-l12-v2", "int8"))
    bench.processes.append(Process(msgspec.structs.replace(spec, stage=stage)))
    assert bench.expect(Ready).lanes == 2


def test_it_answers_a_batch_in_place(bench: Bench) -> None:
    bench.ready("tensor")
    works = [work(n, bench.put(n, tensors(n))) for n in range(3)]
    bench.give(*works)
    for expected in works:
        done = bench.expect(Done)
        assert (done.request, done.attempt, done.batch, done.credit) == (expected.request, 1, 3, 1)
        assert done.target.generation == expected.target.generation
        (array,) = decode_tensors(memoryview(bench.result(done))).values()
        assert (array == expected.request).all()


def test_an_item_fails_alone(bench: Bench) -> None:
    bench.ready("tensor")
    bench.give(
        work(0, bench.put(0, tensors(0))),
        work(1, bench.put(1, b"rubbish")),
        work(2, bench.put(2, tensors(2))),
    )
    outcomes = {message.request: message for message in (bench.listen() for _ in range(3))}  # type: ignore[union-attr]
    failed = outcomes.pop(1)
    assert isinstance(failed, Failed)
    assert failed.code == "bad_request"
    assert all(isinstance(message, Done) for message in outcomes.values())


def test_a_result_that_does_not_fit_its_slot_is_too_large(bench: Bench) -> None:
    """The answer of the generator repeats the text: 9000 tokens do not fit 8192 bytes."""
    bench.ready("generator", context_tokens=20_000)
    bench.give(work(0, bench.put(0, chat("go on", max_tokens=9000)), "chat"))
    failed = bench.until(Failed)
    assert (failed.request, failed.code, failed.param) == (0, "too_large", "queue.slot_bytes")


def test_a_source_whose_bytes_changed_is_corrupt(bench: Bench) -> None:
    bench.ready("tensor")
    ref = bench.put(0, tensors(1))
    bench.entry.slot(0)[20] ^= 1
    bench.give(work(0, ref), work(1, bench.put(1, tensors(1))))
    assert bench.expect(Failed).code == "corrupt_slot"
    assert bench.expect(Done).request == 1


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (SlotRef(ENTRY, 99, 1), "protocol"),
        (SlotRef(ENTRY, 0, 1, 8193), "protocol"),
        (SlotRef(ENTRY, -1, 1), "protocol"),
    ],
    ids=["slot", "length", "negative"],
)
def test_a_descriptor_that_points_nowhere_fails_alone(bench: Bench, source: SlotRef, code: str) -> None:
    bench.ready("tensor")
    bench.give(work(0, source))
    assert bench.expect(Failed).code == code
    bench.give(work(1, bench.put(1, tensors(1))))
    assert bench.expect(Done).request == 1


def test_a_target_outside_its_arena_fails_alone(bench: Bench) -> None:
    bench.ready("tensor")
    bench.give(Work(0, 1, "tensor", bench.put(0, tensors(1)), SlotRef(OWN, 77, 1), 1000))
    assert bench.expect(Failed).code == "protocol"
    bench.give(work(1, bench.put(1, tensors(1))))
    assert bench.expect(Done).request == 1


def test_it_answers_a_ping_and_ignores_a_cancel_of_nothing(bench: Bench) -> None:
    bench.ready("tensor")
    bench.send(Cancel(7, 1))
    bench.send(Ping(41))
    assert bench.expect(Pong) == Pong(41)


def test_a_batch_worker_stops_with_status_0(bench: Bench) -> None:
    bench.ready("tensor")
    bench.give(work(0, bench.put(0, tensors(1))))
    bench.send(Stop())
    assert bench.expect(Done).request == 0
    assert bench.exit_status() == "exit status 0"


def test_a_lost_device_ends_the_process_and_nothing_is_answered(bench: Bench, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text('{"raise": "device_lost"}')
    bench.ready("tensor", faults=str(faults))
    bench.give(work(0, bench.put(0, tensors(1))))
    assert bench.expect(Fault).code == "device_lost"
    assert bench.exit_status() == "exit status 1"


def test_a_runtime_that_raises_fails_the_batch_and_lives(bench: Bench, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text('{"raise": "backend", "once": true}')
    bench.ready("tensor", faults=str(faults))
    bench.give(work(0, bench.put(0, tensors(1))))
    assert bench.expect(Failed).code == "backend"
    bench.give(work(1, bench.put(1, tensors(1))))
    assert bench.expect(Done).request == 1


# -------------------------------------------------------------------------------------- tokens


def stream(bench: Bench, request: int) -> tuple[str, Answer]:
    """Gather one answer: contiguous tokens, then `Done`."""
    text, count = "", 0
    while True:
        message = bench.listen()
        if isinstance(message, Tokens):
            assert (message.request, message.first) == (request, count)
            count += len(message.tokens)
            text += message.text
        else:
            assert isinstance(message, Done), message
            return text, decoder(Answer)(bench.result(message))


def test_it_streams_an_answer_and_puts_the_whole_into_the_slot(bench: Bench) -> None:
    assert bench.ready("generator", max_batch=2).credit == 2
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=40)), "chat"))
    text, answer = stream(bench, 0)
    assert text == answer.text
    assert answer.completion_tokens == len(text) == 40


def test_tokens_that_come_fast_are_told_together(bench: Bench) -> None:
    bench.stream_interval_ms = 1e8
    bench.ready("generator")
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=40)), "chat"))
    first, rest = bench.expect(Tokens), bench.expect(Tokens)
    assert (len(first.tokens), rest.first, len(rest.tokens)) == (1, 1, 39)
    assert first.text + rest.text == decoder(Answer)(bench.result(bench.expect(Done))).text


def test_a_paused_answer_holds_nothing_back(bench: Bench) -> None:
    bench.stream_interval_ms = 1e8
    bench.ready("generator", decode_ms=5, context_tokens=20_000)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=9000)), "chat"))
    bench.expect(Tokens)
    bench.give(work(1, bench.put(1, chat("hello", max_tokens=9000)), "chat"))
    assert bench.expect(Tokens).request == 1  # in a step that held back a token of the other answer
    bench.send(Cores(0))
    held = bench.expect(Tokens)
    assert (held.request, held.first) == (0, 1)


def test_a_cancelled_answer_is_gone_within_a_token(bench: Bench) -> None:
    bench.ready("generator", decode_ms=20, context_tokens=20_000)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=9000)), "chat"))
    bench.expect(Tokens)
    while bench.router.pending():
        bench.hear()
    said = len(bench.heard)
    bench.send(Cancel(0, 1))
    while not isinstance(bench.heard[-1] if bench.heard else None, Gone):
        assert select.select([bench.router.fileno], [], [], WAIT_S)[0]
        bench.hear()
    assert bench.heard[-1] == Gone(0, 1)
    assert len(bench.heard) - said <= 1 + 3, "it went on for more than the tokens that were on their way"
    bench.heard.clear()
    bench.send(Ping(3))
    assert bench.listen() == Pong(3), "something followed `Gone`"


def test_a_cancelled_answer_makes_room(bench: Bench) -> None:
    bench.ready("generator", max_batch=1, decode_ms=5, context_tokens=20_000)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=9000)), "chat"))
    bench.expect(Tokens)
    bench.send(Cancel(0, 1))
    bench.until(Gone)
    bench.give(work(1, bench.put(1, chat("next", max_tokens=5)), "chat"))
    assert len(stream(bench, 1)[0]) == 5


def test_a_cancel_of_another_attempt_is_ignored(bench: Bench) -> None:
    bench.ready("generator", decode_ms=5)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=20)), "chat"))
    bench.send(Cancel(0, 2))
    text, _ = stream(bench, 0)
    assert len(text) == 20


def test_a_stop_finishes_what_is_held_and_exits_0(bench: Bench) -> None:
    bench.ready("generator", decode_ms=5)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=30)), "chat"))
    bench.expect(Tokens)
    bench.send(Stop())
    assert len(decoder(Answer)(bench.result(bench.until(Done))).text) == 30
    assert bench.exit_status() == "exit status 0"


def test_an_idle_token_worker_stops_at_once(bench: Bench) -> None:
    bench.ready("generator")
    bench.send(Stop())
    assert bench.exit_status() == "exit status 0"


def test_an_item_that_cannot_be_admitted_fails_alone(bench: Bench) -> None:
    bench.ready("generator", decode_ms=1)
    bench.give(work(0, bench.put(0, chat("hello", max_tokens=10)), "chat"))
    bench.give(work(1, bench.put(1, b"\xc1"), "chat"))
    failed = bench.until(Failed)
    assert (failed.request, failed.code) == (1, "protocol")
    assert bench.until(Done).request == 0


def test_a_resumed_item_goes_on_where_the_client_is(bench: Bench) -> None:
    bench.ready("generator", decode_ms=1)
    source = bench.put(0, chat("hello", max_tokens=30))
    bench.give(work(0, source, "chat"))
    tokens: list[int] = []
    while not isinstance(message := bench.listen(), Done):
        assert isinstance(message, Tokens)
        tokens += message.tokens
    whole = decoder(Answer)(bench.result(message)).text
    bench.give(work(1, source, "chat", resume_tokens=tuple(tokens[:12]), resume_characters=12))
    first = bench.expect(Tokens)
    assert first.first == 12
    rest = first.text
    while not isinstance(message := bench.listen(), Done):
        assert isinstance(message, Tokens)
        rest += message.text
    assert whole[:12] + rest == whole == decoder(Answer)(bench.result(message)).text


def test_a_loop_that_has_nothing_to_tell_gives_signs_of_life(bench: Bench) -> None:
    """A prompt of 3000 tokens at 256 a step and 0.5 ms a token: 1.5 s without a token."""
    bench.ready("generator", per_token_ms=0.5, context_tokens=8000)
    bench.give(work(0, bench.put(0, chat("x" * 3000, max_tokens=2)), "chat"))
    assert isinstance(bench.listen(), Pong)
    bench.until(Done)
