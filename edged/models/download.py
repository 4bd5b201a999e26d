"""Files over HTTP with the standard library: resumed, bounded, verified."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from typing import IO, Any
from urllib.parse import quote, urlsplit

from edged.catalogue import HubSource
from edged.errors import DigestMismatch, ModelError
from edged.models.digest import CHUNK_BYTES, VerifiedFile
from edged.models.progress import Step

DEFAULT_HUB = "https://huggingface.co"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ATTEMPTS = 4
TIMEOUT_S = 30.0
_REMEDY: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "the file needs a login: set HF_TOKEN",
    HTTPStatus.FORBIDDEN: "access is refused: accept the model's terms on the hub and set HF_TOKEN",
    HTTPStatus.NOT_FOUND: "there is no such file: correct the source in the model's manifest",
    HTTPStatus.TOO_MANY_REQUESTS: "the server asks to slow down: try again later",
}
BROKEN_CONNECTION = (http.client.HTTPException, OSError)


class Interrupted(Exception):
    """The connection broke in mid-file; what arrived is kept."""


class _SafeRedirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise ModelError(f"{urlsplit(req.full_url).netloc} redirects to an unencrypted address; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _SafeRedirect,
    ):
        opener.add_handler(handler())
    return opener


def hub_request(source: HubSource, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return address and headers of a hub file; obeys HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE."""
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelError(
            f"{source.repo} is on a hub and HF_HUB_OFFLINE is set; unset it or pull another variant"
        )
    endpoint = environment.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_HUB
    address = f"{endpoint}/{source.repo}/resolve/{quote(source.revision)}/{quote(source.file)}"
    token = environment.get("HF_TOKEN", "")
    return address, {"Authorization": f"Bearer {token}"} if token else {}


def require_encrypted(address: str) -> str:
    """Return `address` when it is https, or on this machine; else `ModelError`."""
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise ModelError(f"{address} is not encrypted; use an https address in the model's manifest")
    return address


def download(
    address: str, headers: Mapping[str, str], sink: VerifiedFile, step: Step, timeout_s: float = TIMEOUT_S
) -> None:
    """Fetch `address` into `sink`, going on behind what is there; a broken connection is resumed.

    Raises `ModelError` with what to do, `DigestMismatch` when the server offers more than promised.
    """
    step.total_bytes = sink.size_bytes
    for attempt in range(ATTEMPTS):
        before_bytes = sink.written_bytes
        try:
            _attempt(address, headers, sink, step, timeout_s)
            return
        except Interrupted as error:
            if attempt + 1 == ATTEMPTS or sink.written_bytes == before_bytes:
                raise ModelError(
                    f"{address}: {error} after {sink.written_bytes} of {sink.size_bytes} bytes; "
                    "check the network and pull again, it goes on from there"
                ) from error


def _attempt(
    address: str, headers: Mapping[str, str], sink: VerifiedFile, step: Step, timeout_s: float
) -> None:
    if sink.written_bytes == sink.size_bytes:
        return
    try:
        with _open(address, headers, sink, timeout_s) as response:
            _check_answer(address, response, sink)
            while chunk := response.read1(CHUNK_BYTES):
                sink.write(chunk)
                step.report(sink.written_bytes)
    except BROKEN_CONNECTION as error:
        raise Interrupted(str(error) or type(error).__name__) from error
    if sink.written_bytes < sink.size_bytes:
        raise Interrupted("the connection closed")


def _open(address: str, headers: Mapping[str, str], sink: VerifiedFile, timeout_s: float) -> Any:
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity"})  # noqa: S310 no file: handler in the opener
    if sink.written_bytes:
        request.add_header("Range", f"bytes={sink.written_bytes}-")
    for name, value in headers.items():
        # An unredirected header stays with the host that it is meant for.
        request.add_unredirected_header(name, value)
    try:
        return _opener().open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            sink.restart()
            raise Interrupted("the server cannot resume") from error
        raise ModelError(
            f"{address}: HTTP {error.code}; {_REMEDY.get(error.code, 'try again later')}"
        ) from error
    except urllib.error.URLError as error:
        raise ModelError(
            f"{address} cannot be reached: {error.reason}; check the network and proxy"
        ) from error


def _check_answer(address: str, response: Any, sink: VerifiedFile) -> None:
    """Start again when the server did not resume; refuse a file of another size before reading it."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        sink.restart()
    elif not re.match(rf"bytes {sink.written_bytes}-", response.headers.get("Content-Range", "")):
        raise ModelError(f"{address}: the server resumed at the wrong place; pull again")
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and sink.written_bytes + int(length) != sink.size_bytes:
        raise DigestMismatch(
            f"{address} offers {sink.written_bytes + int(length)} bytes, not {sink.size_bytes} as promised; "
            "the file was replaced: correct the manifest or do not trust the source"
        )
