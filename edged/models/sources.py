"""From a manifest's `source` to a verified file in the staging folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from edged.catalogue import File, FileSource, HttpsSource, HubSource, IndexSource
from edged.errors import ModelError
from edged.models.digest import CHUNK_BYTES, VerifiedFile
from edged.models.download import TIMEOUT_S, download, hub_request, require_encrypted
from edged.models.packages import PackageIndex
from edged.models.progress import Progress, Step, silent


class Fetcher:
    """Fetches the files of one pull into `folder`; partial downloads there are resumed.

    Leaving it deletes the archives that it kept.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        progress: Progress = silent,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.folder = folder
        self._environment = environment
        self._progress = progress
        self._timeout_s = timeout_s
        self._index = PackageIndex(folder, environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._index.clear()

    def fetch(self, file: File, what: str) -> Path:
        """Return the verified file; `ModelError` or `DigestMismatch` when it cannot be had."""
        resumable = isinstance(file.source, HubSource | HttpsSource)
        path = self.folder / f"{file.sha256}.{'part' if resumable else 'new'}"
        with VerifiedFile(path, file.bytes, file.sha256, resumable=resumable) as sink:
            self._fill(file, sink, Step(what, self._progress, file.bytes))
            sink.commit()
        return path

    def _fill(self, file: File, sink: VerifiedFile, step: Step) -> None:
        match file.source:
            case IndexSource() as source:
                self._index.copy(source, sink, step)
            case HubSource() as source:
                address, headers = hub_request(source, self._environment)
                download(address, headers, sink, step, self._timeout_s)
            case HttpsSource(url=address):
                download(require_encrypted(address), {}, sink, step, self._timeout_s)
            case FileSource(path=path):
                copy_file(Path(path), sink, step)


def copy_file(path: Path, sink: VerifiedFile, step: Step) -> None:
    """Copy a file of this machine; `ModelError` when it cannot be read."""
    try:
        with path.expanduser().open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                sink.write(chunk)
                step.report(sink.written_bytes)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; correct the path in the model's manifest") from error
