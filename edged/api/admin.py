"""Endpoints of the admin socket: everything that changes the daemon. Each call leaves an audit line."""

from __future__ import annotations

import logging
from urllib.parse import parse_qs

import msgspec

from edged.api.caches import cache_names, cache_reports, chosen_caches
from edged.api.endpoint import Reply, Request
from edged.api.gateway import Gateway
from edged.dispatch.requests import Operator
from edged.errors import BadRequest, EdgedError, NotFound
from edged.placement.table import Plan

audit = logging.getLogger("edged.audit")

_encoder = msgspec.json.Encoder(enc_hook=str)
_MOST_RECORDS = 10_000
_RECORDS = 100


class Changes(msgspec.Struct, frozen=True):
    """What an admin call did, a sentence each."""

    status: str
    changes: list[str] = []


class Administration:
    """Handlers that share the operator's side of the daemon."""

    def __init__(self, operator: Operator, gateway: Gateway) -> None:
        self._operator = operator
        self._gateway = gateway

    async def restart(self, request: Request) -> Reply:
        """POST /admin/v1/stages/{name}/restart."""
        name = request.path_params["name"]
        stages = self._gateway.config.stages
        with Audit(request, f"restart {name!r}"):
            if name not in stages:
                raise NotFound(f"no stage {name!r}; there is: {', '.join(stages)}", param="name")
            await self._operator.restart_stage(name)
        return _reply(Changes("restarted", [f"{name}: workers are being replaced"]))

    async def reload(self, request: Request) -> Reply:
        """POST /admin/v1/reload."""
        with Audit(request, "reload"):
            changes = await self._operator.reload()
        return _reply(Changes("reloaded", changes))

    async def plan(self, request: Request) -> Reply:
        """GET /admin/v1/plan."""
        del request  # not audited: it changes nothing
        return _reply(self._operator.plan())

    async def apply_plan(self, request: Request) -> Reply:
        """POST /admin/v1/plan?dry_run=true: the body is a plan as `edgectl plan --json` prints it."""
        plan = _plan(await self._gateway.body(request))
        return await self._planned(request, plan, f"apply plan {plan.id!r}")

    async def clear_plan(self, request: Request) -> Reply:
        """DELETE /admin/v1/plan?dry_run=true."""
        return await self._planned(request, None, "clear the plan")

    async def _planned(self, request: Request, plan: Plan | None, verb: str) -> Reply:
        if _flag(request.query, "dry_run"):
            return _reply(Changes("tried", await self._operator.apply_plan(plan, dry_run=True)))
        with Audit(request, verb):
            return _reply(Changes("begun", await self._operator.apply_plan(plan, dry_run=False)))

    async def caches(self, request: Request) -> Reply:
        """GET /admin/v1/caches."""
        del request  # not audited: it changes nothing
        return Reply(_encoder.encode({"caches": cache_reports(self._gateway.front.status())}))

    async def clear_caches(self, request: Request) -> Reply:
        """DELETE /admin/v1/caches?name=NAME...: what they held by the workers' last word."""
        with Audit(request, "clear caches"):
            cleared = chosen_caches(self._gateway.front.status(), cache_names(request.query))
            await self._operator.clear_caches(cache_names(request.query))
        return Reply(_encoder.encode({"status": "cleared", "caches": cleared}))

    async def drain(self, request: Request) -> Reply:
        """POST /admin/v1/drain."""
        with Audit(request, "drain"):
            await self._operator.drain()
        return _reply(Changes("draining"))

    async def configuration(self, request: Request) -> Reply:
        """GET /admin/v1/config."""
        with Audit(request, "read config"):
            return Reply(_encoder.encode(self._operator.configuration()))

    async def logs(self, request: Request) -> Reply:
        """GET /admin/v1/logs?count=N."""
        count = count_of(request.query)
        # Not audited: it changes nothing, and a follower would fill the log with its own reading.
        return Reply(_encoder.encode({"records": self._operator.recent_logs(count)}))


class Audit:
    """Writes who did what, and how it ended."""

    def __init__(self, request: Request, verb: str) -> None:
        self._request = request
        self._verb = verb

    def __enter__(self) -> None:
        """Nothing is written before the outcome is known."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        peer = self._request.peer
        ended = "ok" if error is None else error.code if isinstance(error, EdgedError) else "internal"
        line = "%s by uid %d pid %d: %s"
        details = {"request_id": self._request.id, "uid": peer.uid, "pid": peer.pid}
        audit.info(line, self._verb, peer.uid, peer.pid, ended, extra=details)


def _reply(body: msgspec.Struct) -> Reply:
    return Reply(_encoder.encode(body))


def _plan(body: bytes) -> Plan:
    try:
        return msgspec.json.decode(body, type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is no plan: {error}") from error


def _flag(query: bytes, name: str) -> bool:
    given = parse_qs(query.decode("ascii", "replace")).get(name, ["false"])[0]
    if given not in {"true", "false"}:
        raise BadRequest(f"{name} must be true or false", param=name)
    return given == "true"


def count_of(query: bytes) -> int:
    """How many records a query asks for; `BadRequest` for what is no number in range."""
    given = parse_qs(query.decode("ascii", "replace")).get("count", [str(_RECORDS)])[0]
    if not given.isdecimal() or not 1 <= int(given[:9]) <= _MOST_RECORDS:
        raise BadRequest(f"count must be a number in 1..{_MOST_RECORDS}", param="count")
    return int(given)
