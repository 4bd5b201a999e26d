"""The daemon's sockets as Python calls: standard library only, so that `edgectl` starts fast."""

from __future__ import annotations

import http.client
import random
import socket
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlencode

import msgspec

from edged.errors import ConnectionLost, EdgedError, Overloaded, Unreachable
from edged.placement.table import Plan
from edged.replies import Cleared, Delta, Final, Models, Ranked, Ranking, Reply, Vectors, as_error, final
from edged.report import BypassStatus, CacheReport, Decision, GovernorStatus, PlanReport, Status, SwapReport

T = TypeVar("T")
Plain = dict[str, Any]

CONNECT_S = 5.0
"""How long connecting is tried again while the daemon's backlog is full."""
MAX_ERROR_BYTES = 1 << 20


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket. A full backlog is waited out; nobody there is `Unreachable`."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("edged", timeout=timeout_s)
        self.path = path

    def connect(self) -> None:
        """Connect within `CONNECT_S` seconds."""
        deadline = time.monotonic() + CONNECT_S
        while not self._connected():
            if time.monotonic() > deadline:
                raise Overloaded(
                    f"the daemon on {self.path} accepts no connection; try again", retry_after_s=1.0
                )
            time.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - jitter, not a secret

    def _connected(self) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self.timeout)
        try:
            connection.connect(str(self.path))
        except OSError as error:
            connection.close()
            if isinstance(error, BlockingIOError):
                return False
            raise _unreachable(self.path, error) from error
        self.sock = connection
        return True


def _unreachable(path: Path, error: OSError) -> Unreachable:
    if isinstance(error, PermissionError):
        return Unreachable(f"you may not use {path}; ask to be added to the group edged-clients")
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return Unreachable(
            f"no daemon answers on {path}; start one with `systemctl start edged` or `edged`, "
            "or name its socket with --socket"
        )
    return Unreachable(f"cannot connect to {path}: {error.strerror or error}")


class _Caller:
    """One request per connection: closing it is how a request is cancelled."""

    def __init__(self, socket: Path, timeout_s: float = 300.0) -> None:
        self.socket = socket
        self.timeout_s = timeout_s

    @contextmanager
    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and give its answer; hang up at the end, however that comes."""
        with closing(UnixConnection(self.socket, self.timeout_s)) as connection:
            try:
                with suppress(BrokenPipeError, ConnectionResetError):  # refused before it was all sent:
                    connection.request(method, path, *_content(body))  # the answer says why
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise _lost(error, self.timeout_s) from error
            with response:
                if response.status >= http.client.BAD_REQUEST:
                    raise _refusal(response, self._drained(response, MAX_ERROR_BYTES))
                yield response

    def _drained(self, response: http.client.HTTPResponse, limit: int | None = None) -> bytes:
        try:
            return response.read(limit)
        except (OSError, http.client.HTTPException) as error:
            raise _lost(error, self.timeout_s) from error

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        with self._open(method, path, body) as response:
            return self._drained(response)

    def _ask(self, kind: type[T] | Any, method: str, path: str, body: Mapping[str, Any] | None = None) -> T:
        return cast("T", _decoded(self._call(method, path, body), kind))


def _content(body: Mapping[str, Any] | None) -> tuple[bytes | None, dict[str, str]]:
    if body is None:
        return None, {"Connection": "close"}
    return msgspec.json.encode(body), {"Connection": "close", "Content-Type": "application/json"}


def _lost(error: Exception, timeout_s: float) -> ConnectionLost:
    if isinstance(error, TimeoutError):
        return ConnectionLost(f"the daemon said nothing for {timeout_s:g} s; see `edgectl status`")
    return ConnectionLost("the daemon went away in the middle of an answer; see `edgectl logs`")


def _decoded(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConnectionLost(f"the answer is not what a daemon of this version sends: {error}") from error


def _named(model: str) -> dict[str, str]:
    """Leave the choice to the daemon when no model is named."""
    return {"model": model} if model else {}


def _refusal(response: http.client.HTTPResponse, data: bytes) -> EdgedError:
    """Rebuild the daemon's error from its body; `Retry-After` says when to try again."""
    try:
        fault = msgspec.json.decode(data, type=Reply).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        fault = None
    if fault is None:
        return EdgedError(f"the daemon answered {response.status} {response.reason} without saying why")
    error = as_error(fault)
    after = response.headers.get("Retry-After", "")
    error.retry_after_s = float(after) if after.replace(".", "", 1).isdigit() else None
    return error


class Client(_Caller):
    """The client socket. Every call may raise `Unreachable`, `ConnectionLost` or the daemon's own error."""

    def status(self) -> Status:
        """Say how the daemon and its stages are."""
        return self._ask(Status, "GET", "/edged/v1/status")

    def healthy(self) -> bool:
        """Whether the daemon answers at all."""
        return self._answers("/healthz")

    def ready(self) -> bool:
        """Whether every stage has a loaded worker."""
        return self._answers("/readyz")

    def _answers(self, path: str) -> bool:
        try:
            self._call("GET", path)
        except EdgedError:
            return False
        return True

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str = "rag",
        stream: bool = True,
        **fields: Any,
    ) -> Generator[Delta | Final, None, None]:
        """Yield `Delta`s (none without `stream`), then one `Final`; close the iterator to cancel.

        `fields` go into the request as they are: `max_tokens`, `temperature`, `candidates`, ...
        """
        body = {"model": model, "messages": list(messages), "stream": stream, **fields}
        if stream:
            return self._streamed(body | {"stream_options": {"include_usage": True}})
        return self._whole(body)

    def _whole(self, body: Plain) -> Generator[Delta | Final, None, None]:
        yield final([self._ask(Reply, "POST", "/v1/chat/completions", body)])

    def _streamed(self, body: Plain) -> Generator[Delta | Final, None, None]:
        replies: list[Reply] = []
        with self._open("POST", "/v1/chat/completions", body) as response:
            for data in self._events(response):
                reply: Reply = _decoded(data, Reply)
                if reply.error is not None:
                    raise as_error(reply.error)
                replies.append(reply)
                if reply.choices and (text := reply.choices[0].delta.content):
                    yield Delta(text)
        yield final(replies)

    def _events(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """Yield the data of each server-sent event up to `[DONE]`, without which the stream was cut."""
        while line := self._line(response):
            field, _, data = line.rstrip(b"\r\n").partition(b":")
            if data.strip() == b"[DONE]":
                return
            if field == b"data":
                yield data.strip()
        raise ConnectionLost("the daemon went away in the middle of an answer; see `edgectl logs`")

    def _line(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.readline()
        except (OSError, http.client.HTTPException) as error:
            raise _lost(error, self.timeout_s) from error

    def embed(self, texts: Sequence[str], *, model: str = "", **fields: Any) -> list[list[float]]:
        """Return one vector of unit length per text, in order."""
        body = {"input": list(texts), **_named(model), **fields}
        answer: Vectors = self._ask(Vectors, "POST", "/v1/embeddings", body)
        return [entry.embedding for entry in sorted(answer.data, key=lambda entry: entry.index)]

    def rerank(self, query: str, documents: Sequence[str], *, model: str = "", **fields: Any) -> list[Ranked]:
        """Return the documents' places and scores, best first."""
        body = {**_named(model), "query": query, "documents": list(documents), **fields}
        answer: Ranking = self._ask(Ranking, "POST", "/v1/rerank", body)
        return answer.results

    def models(self) -> list[Plain]:
        """List what requests may name as `model`."""
        answer: Models = self._ask(Models, "GET", "/v1/models")
        return answer.data

    def metrics(self) -> str:
        """Return the metrics as Prometheus reads them."""
        return self._call("GET", "/metrics").decode()


class AdminClient(_Caller):
    """The admin socket: everything that changes the daemon."""

    def restart_stage(self, name: str) -> None:
        """Replace a stage's workers; requests in flight are carried on."""
        self._call("POST", f"/admin/v1/stages/{quote(name, safe='')}/restart")

    def reload(self) -> list[str]:
        """Make the daemon read its configuration again; return what changed."""
        answer: dict[str, list[str]] = self._ask(dict[str, Any], "POST", "/admin/v1/reload")
        return answer.get("changes", [])

    def plan(self) -> PlanReport:
        """Return the plan in force, and how far the next one is."""
        return self._ask(PlanReport, "GET", "/admin/v1/plan")

    def apply_plan(self, plan: Plan | None, *, dry_run: bool = False) -> list[str]:
        """Begin to run the stages as a plan says, None: as by default; return what changes.

        With `dry_run` nothing does.
        """
        method, body = ("DELETE", None) if plan is None else ("POST", msgspec.to_builtins(plan))
        path = f"/admin/v1/plan?dry_run={'true' if dry_run else 'false'}"
        answer: dict[str, list[str]] = self._ask(dict[str, Any], method, path, body)
        return answer.get("changes", [])

    def swap_stage(
        self, name: str, *, variant: str = "", backend: str = "", device: str = "", one_copy: bool = False
    ) -> list[str]:
        """Begin to run a stage with another variant, backend or device; return what changes.

        See `swap_report` for how it ends.
        """
        wanted = {"variant": variant, "backend": backend, "device": device, "one_copy": one_copy}
        return self._change(name, "swap", wanted)

    def revert_stage(self, name: str, *, one_copy: bool = False) -> list[str]:
        """Begin to run a stage as the configuration and the plan say; return what changes."""
        return self._change(name, "swap", {"revert": True, "one_copy": one_copy})

    def scale_stage(self, name: str, workers: int) -> list[str]:
        """Begin to run a stage with so many workers; return what changes."""
        return self._change(name, "scale", {"workers": workers})

    def _change(self, name: str, verb: str, body: Plain) -> list[str]:
        path = f"/admin/v1/stages/{quote(name, safe='')}/{verb}"
        answer: dict[str, list[str]] = self._ask(dict[str, Any], "POST", path, body)
        return answer.get("changes", [])

    def bypass_stage(self, name: str, mode: str) -> BypassStatus:
        """Say who passes a reranker by until the next start; return what holds now.

        `mode` is `off`, `auto`, `benefit`, `always` or `configured`.
        """
        path = f"/admin/v1/stages/{quote(name, safe='')}/bypass"
        return self._ask(BypassStatus, "POST", path, {"mode": mode})

    def swap_report(self) -> SwapReport:
        """Return how far the newest change of a stage is."""
        return self._ask(SwapReport, "GET", "/admin/v1/swap")

    def governor(self) -> GovernorStatus:
        """Return the rung in force, and why."""
        return self._ask(GovernorStatus, "GET", "/admin/v1/governor")

    def pin_rung(self, name: str) -> GovernorStatus:
        """Stay on a rung of the quality ladder, whatever the readings say."""
        return self._ask(GovernorStatus, "POST", "/admin/v1/governor/pin", {"rung": name})

    def release_rung(self) -> GovernorStatus:
        """Leave the rung to the readings again."""
        return self._ask(GovernorStatus, "DELETE", "/admin/v1/governor/pin")

    def decisions(self, count: int) -> list[Decision]:
        """Return the governor's newest decisions, oldest first."""
        path = f"/admin/v1/governor/history?count={count}"
        return self._ask(dict[str, list[Decision]], "GET", path).get("decisions", [])

    def drain(self) -> None:
        """Begin an orderly stop."""
        self._call("POST", "/admin/v1/drain")

    def caches(self) -> list[CacheReport]:
        """List the caches of all stages."""
        return self._ask(dict[str, list[CacheReport]], "GET", "/admin/v1/caches").get("caches", [])

    def clear_caches(self, names: Sequence[str] = ()) -> list[CacheReport]:
        """Empty the caches of these names, or all; return what they held. `NotFound` for an unknown name."""
        query = urlencode([("name", name) for name in names])
        answer: Cleared = self._ask(Cleared, "DELETE", f"/admin/v1/caches?{query}")
        return answer.caches

    def configuration(self) -> Plain:
        """Return the configuration in force."""
        return self._ask(dict[str, Any], "GET", "/admin/v1/config")

    def logs(self, count: int) -> list[Plain]:
        """Return the newest log records, oldest first."""
        answer: dict[str, list[Plain]] = self._ask(dict[str, Any], "GET", f"/admin/v1/logs?count={count}")
        return answer.get("records", [])
