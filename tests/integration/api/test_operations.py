"""Health, status, models, metrics, the OpenAPI document, and the admin socket."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import httpx
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client.parser import text_string_to_metric_families

from edged.errors import ConfigError
from edged.report import Status

from .conftest import FakeFront, FakeOperator

DOCS = Path(__file__).parents[3] / "docs" / "api.md"
USER = [{"role": "user", "content": "How tight?"}]


def families(page: str) -> set[str]:
    """Names as a scrape shows them: a counter carries `_total`."""
    found = text_string_to_metric_families(page)
    return {family.name + ("_total" if family.type == "counter" else "") for family in found}


def documented() -> set[str]:
    return set(re.findall(r"^\| `(edged_[a-z_]+)` \|", DOCS.read_text(), re.MULTILINE))


def test_health_and_readiness(client: httpx.Client, front: FakeFront) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.head("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200
    front.is_ready = False
    response = client.get("/readyz")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "stage_unavailable")
    assert response.headers["retry-after"] == "1"


def test_status_is_the_struct(client: httpx.Client, front: FakeFront) -> None:
    assert msgspec.json.decode(client.get("/edged/v1/status").content, type=Status) == front.status()


def test_models_lists_every_name(client: httpx.Client) -> None:
    listed = {model["id"]: model["kind"] for model in client.get("/v1/models").json()["data"]}
    assert listed["rag"] == "pipeline"
    assert listed["bge-small-en-v1.5"] == listed["retriever"] == "retriever"
    assert client.get("/v1/models/rag").json()["stages"] == ["retriever", "reranker", "generator"]
    assert client.get("/v1/models/none").json()["error"]["code"] == "not_found"


def test_metrics_page_has_exactly_the_documented_names(client: httpx.Client) -> None:
    client.post("/v1/chat/completions", json={"messages": USER})
    client.post("/v1/chat/completions", json={"messages": USER, "n": 3})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert families(response.text) == documented()


def test_metrics_tell_what_happened(client: httpx.Client, front: FakeFront) -> None:
    client.post("/v1/chat/completions", json={"messages": USER})
    client.post("/v1/chat/completions", json={"messages": USER, "n": 3})
    page = client.get("/metrics").text
    assert 'edged_tokens_total{direction="completion",pipeline="rag"} 4.0' in page
    assert 'edged_time_to_first_token_seconds_count{pipeline="rag"} 1.0' in page
    assert 'edged_stage_batch_size_count{device="cpu",stage="reranker",variant="int8"} 1.0' in page
    assert 'edged_api_errors_total{code="unsupported_field"} 1.0' in page
    assert 'edged_requests_rejected_total{code="overloaded"} 3.0' in page
    assert "edged_temperature_celsius 51.5" in page
    assert 'edged_device_temperature_celsius{device="cpu"} 51.5' in page
    assert 'device_temperature_celsius{device="npu"}' not in page
    assert 'edged_device_temperature_predicted_celsius{ahead_s="10",device="cpu"} 53.0' in page
    assert 'edged_temperature_prediction_error_celsius{device="cpu"} -0.5' in page
    assert 'edged_sensor_readings_ignored_total{reason="missing"} 4.0' in page
    assert "edged_cpu_frequency_ratio 0.5" in page
    assert "edged_cpu_frequency_cap_ratio 0.75" in page
    assert 'edged_pressure_ratio{kind="some",resource="memory"} 0.25' in page
    front.temperature_c = None
    assert "edged_temperature_celsius" not in client.get("/metrics").text


def test_openapi_document_is_valid_and_covers_the_client_socket(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    OpenAPIV31SpecValidator(document).validate()
    assert "/v1/chat/completions" in document["paths"]
    assert document["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False
    for path in document["paths"]:
        concrete = path.replace("{name}", "rag").replace("{pipeline}", "rag")
        assert client.request("TRACE", concrete).status_code == 405, path


def test_admin_verbs_reach_the_operator_and_leave_an_audit_line(
    admin: httpx.Client, operator: FakeOperator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edged.audit")
    assert admin.post("/admin/v1/stages/generator/restart").status_code == 200
    assert admin.post("/admin/v1/reload").json()["changes"] == ["generator: max_batch 8 -> 4"]
    assert admin.post("/admin/v1/drain").json()["status"] == "draining"
    assert operator.calls == ["restart generator", "reload", "drain"]
    lines = [record.getMessage() for record in caplog.records if record.name == "edged.audit"]
    caller = f"by uid {os.getuid()} pid {os.getpid()}: ok"
    assert lines == [f"restart 'generator' {caller}", f"reload {caller}", f"drain {caller}"]


def test_admin_refusals_are_coded_and_audited(
    admin: httpx.Client, operator: FakeOperator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edged.audit")
    operator.failure = ConfigError("max_batch must be at least 1", param="stages.generator.max_batch")
    response = admin.post("/admin/v1/reload")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "config")
    assert admin.post("/admin/v1/stages/none/restart").json()["error"]["code"] == "not_found"
    assert caplog.records[-1].getMessage().endswith(": not_found")


def test_admin_reads(admin: httpx.Client) -> None:
    assert admin.get("/admin/v1/config").json() == {"daemon": {"state_dir": "/state", "drain_s": 20.0}}
    assert admin.get("/admin/v1/logs", params={"count": 1}).json()["records"][0]["message"] == "started"
    assert admin.get("/healthz").status_code == admin.get("/metrics").status_code == 200
    for count in ("0", "x", "-1", "10001", "9" * 30):
        assert admin.get("/admin/v1/logs", params={"count": count}).json()["error"]["param"] == "count"
