"""Endpoints of the admin socket about the governor."""

from __future__ import annotations

import msgspec

from edged.api.admin import Audit, count_of
from edged.api.endpoint import Reply, Request
from edged.api.gateway import Gateway
from edged.dispatch.requests import Operator
from edged.errors import BadRequest

_encoder = msgspec.json.Encoder()


class PinBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What POST /admin/v1/governor/pin takes."""

    rung: str


class GovernorActions:
    """Handlers that share the operator's side of the daemon."""

    def __init__(self, operator: Operator, gateway: Gateway) -> None:
        self._operator = operator
        self._gateway = gateway

    async def show(self, request: Request) -> Reply:
        """GET /admin/v1/governor."""
        del request  # not audited: it changes nothing
        return Reply(_encoder.encode(self._operator.governing.status()))

    async def pin(self, request: Request) -> Reply:
        """POST /admin/v1/governor/pin."""
        body = _decoded(await self._gateway.body(request))
        with Audit(request, f"pin rung {body.rung!r}"):
            self._operator.governing.pin(body.rung)
        return Reply(_encoder.encode(self._operator.governing.status()))

    async def release(self, request: Request) -> Reply:
        """DELETE /admin/v1/governor/pin."""
        with Audit(request, "release the rung"):
            self._operator.governing.release()
        return Reply(_encoder.encode(self._operator.governing.status()))

    async def history(self, request: Request) -> Reply:
        """GET /admin/v1/governor/history?count=N."""
        # Not audited: it changes nothing.
        rows = self._operator.governing.history(count_of(request.query))
        return Reply(_encoder.encode({"decisions": rows}))


def _decoded(body: bytes) -> PinBody:
    try:
        return msgspec.json.decode(body, type=PinBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not what this path takes: {error}") from error
