"""The two HTTP applications, and the servers that run them on sockets that we bound ourselves."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable, Iterator
from socket import socket
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from edged.api.admin import Administration
from edged.api.bypass import StageBypass
from edged.api.chat import Chat
from edged.api.connection import HEAD_BYTES, KEEP_ALIVE_S, Connection, Limits
from edged.api.embeddings import Embeddings
from edged.api.endpoint import Endpoint, Handler, Reply, Request, error_reply
from edged.api.errors import INTERNAL
from edged.api.gateway import Gateway
from edged.api.governor import GovernorActions
from edged.api.metrics import Metrics
from edged.api.openapi import document
from edged.api.operations import Operations
from edged.api.rerank import Rerank
from edged.api.swaps import StageChanges
from edged.config import Config
from edged.dispatch.requests import FrontDoor, Operator
from edged.errors import EdgedError, MethodNotAllowed, NotFound
from edged.governor.force import InForce

logger = logging.getLogger("edged.api")

CUT_S = 1.0
FRAMING_FACTOR = 8
"""A body in chunks of one byte is six times as large on the wire."""
RESERVED_DESCRIPTORS = 64
"""Kept free for workers, arenas, logs and the refusal of a connection too many."""


def build_gateway(front: FrontDoor, config: Config, force: Callable[[], InForce] = InForce) -> Gateway:
    """Make what both applications share; keep it, and call `adopt` on it after a reload."""
    return Gateway(front, config, Metrics(front.status), force)


def build_client_app(gateway: Gateway) -> ASGIApp:
    """Make the application of the client socket."""
    return _application(gateway, [*_inference_routes(gateway), *_reading_routes(gateway)])


def build_admin_app(gateway: Gateway, operator: Operator) -> ASGIApp:
    """Make the application of the admin socket: reads, and everything that changes the daemon."""
    return _application(gateway, [*_admin_routes(gateway, operator), *_reading_routes(gateway)])


class Server:
    """Serves one application on listening sockets until told to stop.

    Installs no signal handlers and writes no access log. `drain_s` bounds how long open answers may
    take to finish after `stop`.
    """

    def __init__(self, app: ASGIApp, listeners: list[socket], limits: Limits, drain_s: float) -> None:
        self._listeners = listeners
        self._drain_s = drain_s
        protocol = cast("type[asyncio.Protocol]", type("Connection", (Connection,), {"limits": limits}))
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="critical",  # a line for each odd request would let a client flood the log
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                backlog=4096,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._state = self._server.server_state

    async def start(self) -> None:
        """Accept connections from now on."""
        config = self._server.config
        config.load()
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=self._listeners)

    async def stop(self) -> None:
        """Accept nothing more, let open answers finish, then close everything."""
        await self._stop_accepting()
        for connection in list(self._state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self._drain_s):
                await self._settled()
        except TimeoutError:
            await self._cut()

    async def _stop_accepting(self) -> None:
        """Let connections that were just accepted come up first: asyncio drops them when closed at once."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
        for _turn in ("their transports are made", "their protocols hear of it"):
            await asyncio.sleep(0)
        for listening in self._server.servers:
            listening.close()

    async def _settled(self) -> None:
        """Wait for the open answers, and for their last bytes to be read."""
        while self._state.tasks:
            await asyncio.wait(set(self._state.tasks))
        for connection in list(self._state.connections):
            await cast("Connection", connection).closed.wait()

    async def _cut(self) -> None:
        """Hang up on everybody; the handlers hear of it and end, or are cancelled."""
        logger.warning("clients cut off at the end of the drain: %d", self.connections)
        for connection in list(self._state.connections):
            connection.transport.abort()
        if self._state.tasks:
            _done, deaf = await asyncio.wait(set(self._state.tasks), timeout=CUT_S)
            for task in deaf:
                task.cancel()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._state.connections)


async def serve(servers: list[Server], stop: asyncio.Event) -> None:
    """Run servers until `stop` is set, then stop them together."""
    for server in servers:
        await server.start()
    await stop.wait()
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.stop())


def limits_of(config: Config) -> Limits:
    """Take the limits from the config; connections are lowered to what the descriptor limit leaves."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = (
        max(1, soft - RESERVED_DESCRIPTORS) if soft != resource.RLIM_INFINITY else config.api.max_connections
    )
    most_bytes = HEAD_BYTES + FRAMING_FACTOR * config.api.max_body_bytes
    return Limits(connections=min(config.api.max_connections, room), message_bytes=most_bytes)


def _application(gateway: Gateway, routes: list[Route]) -> ASGIApp:
    handlers = {404: _not_found, 405: _wrong_method}
    refusing = Starlette(routes=routes, exception_handlers=cast("dict[int, ExceptionHandler]", handlers))
    refusing.router.redirect_slashes = False

    whole = {route.path: [each for each in routes if each.path == route.path] for route in routes}
    patterns = [route for route in routes if route.param_convertors]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Straight to the endpoint; what has none is refused by Starlette."""
        for route in whole.get(scope["path"], patterns):
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return await route.app(scope, receive, send)
        return await refusing(scope, receive, send)

    async def unexpected(request: StarletteRequest, cause: Exception) -> Response:
        """A code to the client, the rest to the log, before the client can ask what happened."""
        error, name = EdgedError(INTERNAL), request.scope.get("edged.request_id", "")
        gateway.metrics.refused(error.code)
        extra = {"request_id": name, "path": request.url.path}
        logger.error("unexpected error in request %s", name, exc_info=cause, extra=extra)
        return _refusal(error, {"x-request-id": name})

    return ServerErrorMiddleware(app, handler=unexpected)


def _inference_routes(gateway: Gateway) -> Iterator[Route]:
    def post(path: str, handler: Handler) -> Route:
        return _route(gateway, path, handler, "POST")

    rerank = Rerank(gateway)
    yield post("/v1/chat/completions", Chat(gateway))
    yield post("/v1/embeddings", Embeddings(gateway))
    for path in ("/v1/rerank", "/rerank", "/v1/reranking"):
        yield post(path, rerank)
    yield post("/edged/v1/tensors/{pipeline}", Operations(gateway).tensors)


def _reading_routes(gateway: Gateway) -> Iterator[Route]:
    reads = Operations(gateway)
    openapi = Reply(document())

    async def describe(_request: Request) -> Reply:
        return openapi

    yield _route(gateway, "/healthz", reads.healthz, "GET")
    yield _route(gateway, "/readyz", reads.readyz, "GET")
    yield _route(gateway, "/metrics", reads.metrics, "GET")
    yield _route(gateway, "/edged/v1/status", reads.status, "GET")
    yield _route(gateway, "/v1/models", reads.models, "GET")
    yield _route(gateway, "/v1/models/{name}", reads.model, "GET")
    yield _route(gateway, "/openapi.json", describe, "GET")


def _admin_routes(gateway: Gateway, operator: Operator) -> Iterator[Route]:
    acts = Administration(operator, gateway)
    yield _route(gateway, "/admin/v1/stages/{name}/restart", acts.restart, "POST")
    changes = StageChanges(operator, gateway)
    yield _route(gateway, "/admin/v1/stages/{name}/swap", changes.swap, "POST")
    yield _route(gateway, "/admin/v1/stages/{name}/scale", changes.scale, "POST")
    bypass = StageBypass(operator, gateway)
    yield _route(gateway, "/admin/v1/stages/{name}/bypass", bypass.choose, "POST")
    yield _route(gateway, "/admin/v1/swap", changes.report, "GET")
    acting = GovernorActions(operator, gateway)
    yield _route(gateway, "/admin/v1/governor", acting.show, "GET")
    yield _route(gateway, "/admin/v1/governor/pin", acting.pin, "POST")
    yield _route(gateway, "/admin/v1/governor/pin", acting.release, "DELETE")
    yield _route(gateway, "/admin/v1/governor/history", acting.history, "GET")
    yield _route(gateway, "/admin/v1/reload", acts.reload, "POST")
    yield _route(gateway, "/admin/v1/drain", acts.drain, "POST")
    yield _route(gateway, "/admin/v1/caches", acts.caches, "GET")
    yield _route(gateway, "/admin/v1/caches", acts.clear_caches, "DELETE")
    yield _route(gateway, "/admin/v1/plan", acts.plan, "GET")
    yield _route(gateway, "/admin/v1/plan", acts.apply_plan, "POST")
    yield _route(gateway, "/admin/v1/plan", acts.clear_plan, "DELETE")
    yield _route(gateway, "/admin/v1/config", acts.configuration, "GET")
    yield _route(gateway, "/admin/v1/logs", acts.logs, "GET")


def _route(gateway: Gateway, path: str, handler: Handler, method: str) -> Route:
    return Route(path, Endpoint(handler, gateway.metrics.refused), methods=[method], name=path)


async def _not_found(request: StarletteRequest, _error: HTTPException) -> Response:
    shown = request.url.path[:80]
    return _refusal(NotFound(f"no such path: {shown}; GET /openapi.json lists what there is"), {})


async def _wrong_method(request: StarletteRequest, error: HTTPException) -> Response:
    allowed = dict(error.headers or {})
    message = f"{request.method[:16]} is not allowed here; allowed: {allowed.get('Allow', '')}"
    return _refusal(MethodNotAllowed(message), allowed)


def _refusal(error: EdgedError, headers: dict[str, str]) -> Response:
    reply = error_reply(error)
    return Response(reply.body, reply.status, {**headers, "connection": "close"}, "application/json")
