"""Endpoints that only read: health, readiness, status, metrics, models, the OpenAPI document, tensors."""

from __future__ import annotations

import msgspec

from edged.api.attendance import Attendance, outcome
from edged.api.endpoint import Reply, Request
from edged.api.gateway import Gateway, answer_headers
from edged.api.metrics import CONTENT_TYPE
from edged.api.names import Route
from edged.api.openai import ModelInfo, ModelList
from edged.errors import NotFound, StageUnavailable

_encoder = msgspec.json.Encoder()
_ALIVE = Reply(b'{"status":"ok"}')
_READY = Reply(b'{"status":"ready"}')
_NOT_THERE = {"starting", "failed"}
_OCTETS = b"application/octet-stream"


class Operations:
    """Handlers that share the gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def healthz(self, _request: Request) -> Reply:
        """Say that the daemon's loop turns."""
        return _ALIVE

    async def readyz(self, _request: Request) -> Reply:
        """Say whether every stage has a loaded worker; 503 names those that have none."""
        front = self._gateway.front
        if front.ready():
            return _READY
        status = front.status()
        missing = [f"{stage.name} ({stage.state})" for stage in status.stages if stage.state in _NOT_THERE]
        why = ", ".join(missing) or f"the daemon is {status.state}"
        raise StageUnavailable(f"not ready: {why}", retry_after_s=1.0)

    async def status(self, _request: Request) -> Reply:
        """Answer what `edgectl status` shows."""
        return Reply(_encoder.encode(self._gateway.front.status()))

    async def metrics(self, _request: Request) -> Reply:
        """Answer a Prometheus scrape."""
        return Reply(self._gateway.metrics.page(), content_type=CONTENT_TYPE)

    async def models(self, _request: Request) -> Reply:
        """List every name that `model` may hold."""
        known = self._gateway.names.routes.values()
        return Reply(_encoder.encode(ModelList(data=[self._describe(route) for route in known])))

    async def model(self, request: Request) -> Reply:
        """Describe one name."""
        name = request.path_params["name"]
        route = self._gateway.names.routes.get(name)
        if route is None:
            choices = ", ".join(self._gateway.names.routes)
            raise NotFound(f"no model {name!r}; there is: {choices}", param="model")
        return Reply(_encoder.encode(self._describe(route)))

    async def tensors(self, request: Request) -> Reply:
        """Pass bytes through a pipeline: the body is the payload, the answer is the result's bytes."""
        gateway = self._gateway
        route = gateway.names.route(request.path_params["pipeline"], "tensor")
        payload = await gateway.body(request)
        watch, rung = gateway.metrics.stopwatch(route.name), gateway.force().name
        ticket = gateway.submit(request, route, "tensor", payload, gateway.terms(None))
        with Attendance(request, ticket.cancel):
            completed = await outcome(ticket)
        watch.completed(completed, 0, 0)
        return Reply(completed.payload, content_type=_OCTETS, headers=answer_headers(completed, rung))

    def _describe(self, route: Route) -> ModelInfo:
        kind = "pipeline" if route.pipeline else route.kinds[0]
        return ModelInfo(id=route.name, created=self._gateway.created, kind=kind, stages=route.stages)
