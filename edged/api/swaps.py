"""Endpoints of the admin socket that change one stage while it serves."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from edged.api.admin import Audit, Changes
from edged.api.endpoint import Reply, Request
from edged.api.gateway import Gateway
from edged.dispatch.requests import Operator
from edged.errors import BadRequest
from edged.report import Override

_encoder = msgspec.json.Encoder()
T = TypeVar("T", bound=msgspec.Struct)


class SwapBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What POST .../swap takes; what is empty stays as it is."""

    variant: str = ""
    backend: str = ""
    device: str = ""
    one_copy: bool = False
    """Let the old workers go before the new ones are loaded."""
    revert: bool = False
    """Back to what the configuration and the plan say."""


class ScaleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What POST .../scale takes."""

    workers: int


class StageChanges:
    """Handlers that share the operator's side of the daemon."""

    def __init__(self, operator: Operator, gateway: Gateway) -> None:
        self._operator = operator
        self._gateway = gateway

    async def swap(self, request: Request) -> Reply:
        """POST /admin/v1/stages/{name}/swap."""
        name = request.path_params["name"]
        body = _decoded(await self._gateway.body(request), SwapBody)
        wanted = Override(variant=body.variant, backend=body.backend, device=body.device)
        if body.revert == (wanted != Override()):
            raise BadRequest("name a variant, a backend or a device, or else revert")
        with Audit(request, f"revert {name!r}" if body.revert else f"swap {name!r}"):
            if body.revert:
                return _begun(self._operator.swaps.revert(name, one_copy=body.one_copy))
            return _begun(self._operator.swaps.swap(name, wanted, one_copy=body.one_copy))

    async def scale(self, request: Request) -> Reply:
        """POST /admin/v1/stages/{name}/scale."""
        name = request.path_params["name"]
        body = _decoded(await self._gateway.body(request), ScaleBody)
        with Audit(request, f"scale {name!r} to {body.workers}"):
            return _begun(self._operator.swaps.scale(name, body.workers))

    async def report(self, request: Request) -> Reply:
        """GET /admin/v1/swap."""
        del request  # not audited: it changes nothing
        return Reply(_encoder.encode(self._operator.swaps.report))


def _begun(changes: list[str]) -> Reply:
    return Reply(_encoder.encode(Changes("begun" if changes else "unchanged", changes)))


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not what this path takes: {error}") from error
