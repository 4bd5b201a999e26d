"""The endpoint of the admin socket that says who passes a reranker by."""

from __future__ import annotations

from typing import Literal

import msgspec

from edged.api.admin import Audit
from edged.api.endpoint import Reply, Request
from edged.api.gateway import Gateway
from edged.config.tables import Bypass
from edged.dispatch.requests import Operator
from edged.errors import BadRequest

_encoder = msgspec.json.Encoder()


class BypassBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What POST .../bypass takes."""

    mode: Bypass | Literal["configured"]


class StageBypass:
    """Handlers that share the operator's side of the daemon."""

    def __init__(self, operator: Operator, gateway: Gateway) -> None:
        self._operator = operator
        self._gateway = gateway

    async def choose(self, request: Request) -> Reply:
        """POST /admin/v1/stages/{name}/bypass."""
        name = request.path_params["name"]
        mode = _decoded(await self._gateway.body(request)).mode
        with Audit(request, f"bypass {name!r}: {mode}"):
            status = self._operator.bypasses.choose(name, None if mode == "configured" else mode)
        return Reply(_encoder.encode(status))


def _decoded(body: bytes) -> BypassBody:
    try:
        return msgspec.json.decode(body, type=BypassBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not what this path takes: {error}") from error
