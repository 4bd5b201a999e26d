"""The rung in force: what it leaves of a request, what answers say of it, and how an operator pins it."""

from __future__ import annotations

import logging

import httpx
import pytest

from edged.api.gateway import Gateway
from edged.governor.force import InForce
from edged.messages import Ceiling, ChatTask, decoder

from .conftest import FakeFront, FakeOperator
from .governed import LADDER

USER = [{"role": "user", "content": "hello"}]
PIN = "/admin/v1/governor/pin"
decode_task = decoder(ChatTask)


@pytest.fixture
def tight(gateway: Gateway) -> None:
    gateway.force = lambda: InForce(1, "tight", LADDER[1])


def test_a_request_carries_what_the_rung_leaves_and_the_answer_names_it(
    client: httpx.Client, front: FakeFront, gateway: Gateway
) -> None:
    calm = client.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 50})
    assert (calm.headers["x-edged-rung"], calm.json()["edged"]["rung"]) == ("full", "full")
    assert decode_task(front.submissions[-1].payload).ceiling == Ceiling()
    gateway.force = lambda: InForce(1, "tight", LADDER[1])
    hot = client.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 50})
    assert (hot.headers["x-edged-rung"], hot.json()["edged"]["rung"]) == ("tight", "tight")
    assert hot.headers["x-edged-resumed"] == str(hot.json()["edged"]["resumed"])
    task = decode_task(front.submissions[-1].payload)
    assert task.ceiling == Ceiling(candidates=5, keep=1, answer_tokens=9)
    assert task.max_tokens == 50, "what was asked for stands beside it"


def test_a_stream_names_it_at_both_ends(client: httpx.Client, tight: None) -> None:
    body = {"messages": USER, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["x-edged-rung"] == "tight"
        text = response.read().decode()
    assert '"rung":"tight"' in text
    assert text.index('"rung":"tight"') > text.rindex('"content"')


def test_a_pin_is_audited_and_what_is_wrong_is_refused(
    admin: httpx.Client, operator: FakeOperator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edged.audit")
    assert admin.get("/admin/v1/governor").json()["name"] == "tight"
    assert admin.post(PIN, json={"rung": "full"}).json()["name"] == "tight"
    assert admin.delete(PIN).status_code == 200
    assert operator.calls == ["pin full", "release"]
    refused = admin.post(PIN, json={"rung": "attic"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    assert admin.post(PIN, json={"rungs": 1}).json()["error"]["code"] == "bad_request"
    lines = [record.getMessage() for record in caplog.records if record.name == "edged.audit"]
    assert [line.partition(" by ")[0] for line in lines] == [
        "pin rung 'full'",
        "release the rung",
        "pin rung 'attic'",
    ]


def test_the_history_has_as_many_rows_as_asked_for(admin: httpx.Client) -> None:
    rows = admin.get("/admin/v1/governor/history?count=2").json()["decisions"]
    assert [row["what"] for row in rows] == ["down", "down"]
    assert admin.get("/admin/v1/governor/history?count=0").json()["error"]["code"] == "bad_request"
