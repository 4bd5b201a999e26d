"""Core leases through the daemon: two real engines on the same cores, in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edged.client import Client
from edged.replies import Final
from edged.testing.daemon import RunningDaemon, running

STATE = Path(__file__).parents[2] / ".edged"
CONFIG = """
[daemon]
state_dir = '{state}'
[placement]
leases = '{leases}'
[stages.retriever]
workers = 0
[stages.generator]
backend = 'openvino'
variant = 'q4_1'
"""
PASSAGES = [
    f"Pump {number} starts at a level of {number} cm and runs for 5 minutes. " * 8 for number in range(20)
]


@pytest.fixture(params=["together", "turns", "split"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path, variant) -> Iterator[RunningDaemon]:
    variant("ms-marco-minilm-l12-v2", "int8")
    variant("smollm2-135m-instruct", "q4_1")
    with running(tmp_path, CONFIG.format(state=STATE, leases=request.param)) as started:
        yield started


def answer(client: Client) -> str:
    *_, final = client.chat(
        [{"role": "user", "content": "Name three colours."}], model="generator", max_tokens=24
    )
    assert isinstance(final, Final)
    return final.text


def rank(client: Client) -> list[tuple[int, float]]:
    return [
        (ranked.index, ranked.relevance_score)
        for ranked in client.rerank("At which level does pump 7 start?", PASSAGES)
    ]


def test_in_company_everybody_is_answered_and_answers_as_alone(daemon: RunningDaemon):
    alone = answer(daemon.client), rank(daemon.client)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(answer, daemon.client) for _ in range(4)]
        ranks = [pool.submit(rank, daemon.client) for _ in range(4)]
    assert {future.result() for future in answers} == {alone[0]}
    assert all(future.result() == alone[1] for future in ranks)
