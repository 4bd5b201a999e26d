"""Two daemons, one the other's generator: what clients and operators of the first see."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from edged.errors import BadRequest, StageUnavailable
from edged.replies import Final
from edged.testing.daemon import RunningDaemon, running

OFF = "".join(f"[stages.{name}]\nworkers = 0\n" for name in ("retriever", "reranker"))
FAR = """
[stages.generator]
backend = "simulated"
model = "far-model"
device = "sim:cpu"
options = { decode_ms = 10, context_tokens = 4096 }
"""
NEAR = """
[stages.generator]
backend = "openai"
model = "near"
load_timeout_s = 20
[stages.generator.options]
base_url = "unix:{socket}"
model = "far-model"
dialect = "edged"
failures_to_open = 2
first_wait_s = 0.2
retries = 1
"""
QUESTION = [{"role": "user", "content": "What is a gateway?"}]


class Pair(NamedTuple):
    near: RunningDaemon
    far: RunningDaemon


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        started = []
        for name, config in (("far", FAR), ("near", NEAR)):
            (tmp_path / name).mkdir()
            text = OFF + config.replace("{socket}", str(tmp_path / "far/run/edged.sock"))
            started.append(stack.enter_context(running(tmp_path / name, text)))
        yield Pair(started[1], started[0])


def whole(daemon: RunningDaemon, model: str, **fields) -> Final:
    *_, last = daemon.client.chat(QUESTION, model=model, **fields)
    assert isinstance(last, Final)
    return last


def test_the_answer_is_the_other_daemon_s_with_its_count_and_its_model_s_name(pair: Pair):
    theirs = whole(pair.far, "far-model", max_tokens=40)
    ours = whole(pair.near, "near", max_tokens=40)
    assert (ours.text, ours.finish, ours.usage) == (theirs.text, theirs.finish, theirs.usage)
    stage = pair.near.stage("generator")
    assert (stage.backend, stage.device, stage.model) == ("openai", "remote", "far-model")


def test_stop_strings_end_the_answer_and_the_request(pair: Pair):
    text = whole(pair.far, "far-model", max_tokens=60).text
    cut = whole(pair.near, "near", max_tokens=4000, stop=[text[30:34]])
    assert cut.text == text[: text.index(text[30:34])]
    pair.far.wait_for(lambda status: status.outstanding == 0, "the other daemon's request to be dropped")


def test_a_client_who_leaves_ends_the_request_over_there(pair: Pair):
    answer = pair.near.client.chat(QUESTION, model="near", max_tokens=4000)
    next(answer)
    pair.far.wait_for(lambda status: status.outstanding == 1, "the request over there")
    answer.close()
    pair.far.wait_for(lambda status: status.outstanding == 0, "its end")


def test_an_answer_survives_the_death_of_the_worker_that_listened(pair: Pair):
    alone = whole(pair.near, "near", max_tokens=120)
    answer = pair.near.client.chat(QUESTION, model="near", max_tokens=120)
    next(answer)
    os.kill(pair.near.workers()[0].pid, signal.SIGKILL)
    *_, last = answer
    assert (last.text, last.finish, last.usage, last.resumed) == (alone.text, alone.finish, alone.usage, 1)


def test_an_answer_survives_the_death_of_the_worker_that_spoke(pair: Pair):
    alone = whole(pair.near, "near", max_tokens=120)
    answer = pair.near.client.chat(QUESTION, model="near", max_tokens=120)
    next(answer)
    os.kill(pair.far.workers()[0].pid, signal.SIGKILL)
    *_, last = answer
    assert (last.text, last.finish) == (alone.text, alone.finish)


def test_a_server_that_is_gone_is_in_the_status_and_comes_back(pair: Pair):
    pair.far.stop()
    for _ in range(2):
        with pytest.raises(StageUnavailable):
            whole(pair.near, "near")
    status = pair.near.wait_for(
        lambda status: any("circuit breaker" in note for note in status.notes), "the breaker in the status"
    )
    assert "circuit breaker" in next(s.reason for s in status.stages if s.name == "generator")
    again = RunningDaemon(pair.far.folder, pair.far.config_path.read_text())
    try:
        again.wait_ready()
        pair.near.wait_for(lambda _: answers(pair.near), "an answer")
        pair.near.wait_for(
            lambda status: not any("breaker" in note for note in status.notes), "a clean status"
        )
    finally:
        again.stop()


def answers(daemon: RunningDaemon) -> bool:
    try:
        return bool(whole(daemon, "near", max_tokens=4).text)
    except StageUnavailable:
        return False


def test_fields_reach_the_server_and_what_exceeds_the_context_is_refused(pair: Pair):
    assert whole(pair.near, "near", max_tokens=4, top_k=3).text
    with pytest.raises(BadRequest):
        whole(pair.near, "near", max_tokens=5000)
