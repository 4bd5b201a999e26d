"""The endpoints that change a stage: what they take, what they refuse, and the audit line."""

from __future__ import annotations

import logging

import httpx
import pytest

from .conftest import FakeOperator

SWAP = "/admin/v1/stages/generator/swap"


def test_a_swap_begins_and_is_audited(
    admin: httpx.Client, operator: FakeOperator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edged.audit")
    body = {"variant": "q4_0", "device": "cpu:0", "one_copy": True}
    assert admin.post(SWAP, json=body).json() == {
        "status": "begun",
        "changes": ["stage generator: variant int8 -> fp32"],
    }
    assert admin.post(SWAP, json={"revert": True}).json() == {"status": "unchanged", "changes": []}
    admin.post("/admin/v1/stages/generator/scale", json={"workers": 3})
    assert operator.calls == [
        "swap generator q4_0//cpu:0 True",
        "revert generator False",
        "scale generator 3",
    ]
    lines = [record.getMessage() for record in caplog.records if record.name == "edged.audit"]
    assert [line.split(" by ")[0] for line in lines] == [
        "swap 'generator'",
        "revert 'generator'",
        "scale 'generator' to 3",
    ]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"one_copy": True},
        {"revert": True, "variant": "q4_0"},
        {"variant": 3},
        {"varient": "q4_0"},
        [],
        {"variant": None},
    ],
)
def test_what_makes_no_sense_is_refused(admin: httpx.Client, operator: FakeOperator, body: object) -> None:
    answer = admin.post(SWAP, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert operator.calls == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"workers": "2"}', b'{"workers": 1e9999}', b"\xff", b"[" * 9999]
)
def test_hostile_bodies_are_refused(admin: httpx.Client, operator: FakeOperator, body: bytes) -> None:
    answer = admin.post("/admin/v1/stages/generator/scale", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
    assert operator.calls == []


def test_how_far_it_is(admin: httpx.Client) -> None:
    answer = admin.get("/admin/v1/swap").json()
    assert (answer["stage"], answer["under_way"], answer["phase"]) == ("generator", True, "loading")
