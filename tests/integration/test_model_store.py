"""Models pulled into a store, resolved, verified and removed; pulls that are killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from edged.catalogue import Catalogue, File, FileSource, IndexSource, Model, Rung
from edged.errors import DigestMismatch, EdgedError, ModelError
from edged.models import ModelStore

from .tiny_wheel import TOKENIZER, WEIGHTS, sha256, wheel


@pytest.fixture
def store(package_index: tuple[Path, dict[str, str]], tmp_path: Path) -> ModelStore:
    folder, environment = package_index
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


def test_safetensors_come_with_their_settings(store: ModelStore, tmp_path: Path) -> None:
    rung = store.catalogue.model("tiny").variants[0]
    settings = tmp_path / "settings"
    settings.write_bytes(b"{}")
    file = File(bytes=2, sha256=sha256(b"{}"), source=FileSource(path=str(settings)))
    with pytest.raises(ValueError, match=r"config\.json"):
        msgspec.structs.replace(rung, format="safetensors")
    rung = msgspec.structs.replace(rung, format="safetensors", beside={"config.json": file})
    model = msgspec.structs.replace(store.catalogue.model("tiny"), variants=(rung,))
    store = ModelStore(store.path, Catalogue({"tiny": model}), store._environment)
    pulled = store.pull("tiny")
    assert (pulled.path.name, pulled.format) == ("model.safetensors", "safetensors")
    beside = pulled.path.with_name("config.json")
    assert beside.read_bytes() == b"{}"
    beside.write_bytes(b"[]")
    with pytest.raises(DigestMismatch):
        store.verify("tiny")
    beside.unlink()
    assert not store.present("tiny")
    assert store.pull("tiny") == pulled


def test_a_second_pull_asks_no_index(store: ModelStore, package_index: tuple[Path, dict[str, str]]) -> None:
    first = store.pull("tiny")
    next(package_index[0].iterdir()).unlink()
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


def test_where_no_record_can_be_written_weights_are_hashed_once(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = store.pull("tiny").path
    hashed: list[str] = []
    file_digest = hashlib.file_digest

    def counted(file: BinaryIO, name: str) -> hashlib._Hash:
        hashed.append(name)
        return file_digest(file, name)

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr("edged.models.store._write_record", refuse)
    os.utime(weights, (7.0, 7.0))
    for _ in range(3):
        store.resolve("tiny")
    assert len(hashed) == 1
    changed = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    weights.write_bytes(changed)
    with pytest.raises(DigestMismatch):
        store.resolve("tiny")


def test_what_another_process_recorded_is_not_hashed_again(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = store.pull("tiny").path
    other = ModelStore(store.path, store.catalogue, os.environ)
    os.utime(weights, (7.0, 7.0))
    store.resolve("tiny")
    os.utime(weights, (8.0, 8.0))
    other.resolve("tiny")

    def refuse(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    store.resolve("tiny")


def test_once_a_record_can_be_written_again_weights_are_hashed_no_more(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = store.pull("tiny").path

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    with monkeypatch.context() as read_only:
        read_only.setattr("edged.models.store._write_record", refuse)
        os.utime(weights, (7.0, 7.0))
        store.resolve("tiny")
    os.utime(weights, (8.0, 8.0))
    store.resolve("tiny")
    monkeypatch.setattr(hashlib, "file_digest", refuse)
    store.resolve("tiny")


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


def test_two_pulls_at_once_fetch_once(store: ModelStore, package_index: tuple[Path, dict[str, str]]) -> None:
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
