"""The OpenAPI 3.1 document, made from the structs that decode and encode the traffic."""

from __future__ import annotations

from typing import Any

import msgspec

from edged import __version__
from edged.api import openai
from edged.api.errors import ErrorBody
from edged.errors import BY_CODE
from edged.report import Status

JSON = "application/json"
_STRUCTS: tuple[type[msgspec.Struct], ...] = (
    openai.ChatRequest,
    openai.ChatCompletion,
    openai.ChatChunk,
    openai.EmbeddingRequest,
    openai.EmbeddingList,
    openai.RerankRequest,
    openai.RerankList,
    openai.ModelInfo,
    openai.ModelList,
    Status,
    ErrorBody,
)


def document() -> bytes:
    """Return the document of the client socket as JSON."""
    body = {
        "openapi": "3.1.0",
        "info": {"title": "edged", "version": __version__, "description": "Inference on an edge gateway."},
        "servers": [{"url": "http://localhost", "description": "HTTP/1.1 over the Unix socket."}],
        "paths": _paths(),
        "components": {"schemas": _schemas()},
    }
    return msgspec.json.encode(body)


def _schemas() -> dict[str, Any]:
    _, found = msgspec.json.schema_components(_STRUCTS, ref_template="#/components/schemas/{name}")
    found["ErrorDetail"]["properties"]["code"]["enum"] = sorted(BY_CODE)
    return found


def _paths() -> dict[str, Any]:
    chat = _json_answer("ChatCompletion")
    chat["content"]["text/event-stream"] = {"schema": _ref("ChatChunk")}
    rerank = _post("rerank", "RerankRequest", _json_answer("RerankList"))
    return {
        "/v1/chat/completions": _post("chat", "ChatRequest", chat),
        "/v1/embeddings": _post("embed", "EmbeddingRequest", _json_answer("EmbeddingList")),
        "/v1/rerank": rerank,
        "/v1/models": _get("list models", _json_answer("ModelList")),
        "/v1/models/{name}": _get("describe a model", _json_answer("ModelInfo"), "name"),
        "/edged/v1/status": _get("status", _json_answer("Status")),
        "/edged/v1/tensors/{pipeline}": _tensors(),
        "/healthz": _get("liveness", _plain_answer(JSON)),
        "/readyz": _get("readiness", _plain_answer(JSON)),
        "/metrics": _get("Prometheus metrics", _plain_answer("text/plain")),
        "/openapi.json": _get("this document", _plain_answer(JSON)),
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json_answer(name: str) -> dict[str, Any]:
    return {"description": "The answer.", "content": {JSON: {"schema": _ref(name)}}}


def _plain_answer(content_type: str) -> dict[str, Any]:
    return {"description": "The answer.", "content": {content_type: {}}}


def _operation(summary: str, answer: dict[str, Any], parameter: str | None) -> dict[str, Any]:
    error = {"description": "An error with a code.", "content": {JSON: {"schema": _ref("ErrorBody")}}}
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": answer, "default": error}}
    if parameter is not None:
        place = {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [place]
    return operation


def _get(summary: str, answer: dict[str, Any], parameter: str | None = None) -> dict[str, Any]:
    return {"get": _operation(summary, answer, parameter)}


def _post(summary: str, request: str, answer: dict[str, Any]) -> dict[str, Any]:
    operation = _operation(summary, answer, None)
    operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(request)}}}
    return {"post": operation}


def _tensors() -> dict[str, Any]:
    octets: dict[str, Any] = {"application/octet-stream": {}}
    operation = _operation(
        "pass bytes through a pipeline", _plain_answer("application/octet-stream"), "pipeline"
    )
    operation["requestBody"] = {"required": True, "content": octets}
    return {"post": operation}
