"""The local store: `<path>/<model>/<variant>/model.onnx|model.gguf|...`, and `tokenizer.json` beside it.

Files enter by rename, one pull at a time, and only after their digest was checked. A `verified`
record beside them makes the next check cheap while size and time are unchanged.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edged.backend import Variant
from edged.catalogue import Catalogue, DerivedSource, File, FileSource, Model, Rung
from edged.errors import DigestMismatch, ModelError
from edged.models.derive import derive
from edged.models.digest import Record, check, sync_folder
from edged.models.gguf import check_header
from edged.models.progress import Progress, silent
from edged.models.sources import Fetcher
from edged.models.staging import require_space, staged

TOKENIZER = "tokenizer.json"
RECORD = "verified"

Records = dict[str, Record]


class Row(msgspec.Struct, frozen=True):
    """One line of `edgectl models list`."""

    model: str
    variant: str
    task: str
    format: str
    bytes: int
    memory_bytes: int
    """On the first backend that the variant names."""
    present: bool
    default: bool
    derived: bool
    licence: str
    quality: str


class ModelStore:
    """The weights below one folder, as the catalogue describes them."""

    def __init__(
        self, path: Path, catalogue: Catalogue, environment: Mapping[str, str] | None = None
    ) -> None:
        self.path = path.absolute()
        self.catalogue = catalogue
        self._environment = os.environ if environment is None else environment
        self._found: dict[Path, Records] = {}
        """By folder: what was last found there, for folders whose record cannot be written."""

    def list(self) -> list[Row]:
        """Describe every variant of the catalogue, and whether it is here."""
        models = [self.catalogue.models[name] for name in sorted(self.catalogue.models)]
        return [self._row(model, rung) for model in models for rung in model.variants]

    def present(self, model: str, variant: str = "") -> bool:
        """Say whether all files of a variant are here with the right size; reads no weights."""
        manifest = self.catalogue.model(model)
        return self._present(manifest, manifest.variant(variant))

    def resolve(
        self, model: str, variant: str = "", formats: Sequence[str] = (), *, backend: str = ""
    ) -> Variant:
        """Return the named variant; with no name the manifest's default, or else the best one here.

        `formats` and `backend` leave out what their caller cannot open.

        Raises `ModelError` with the command to run when there is none, `DigestMismatch` when the
        bytes are not those of the manifest, `NotFound` for an unknown name.
        """
        manifest = self.catalogue.model(model)
        named = manifest.variant(variant)
        rungs = [named] if variant else [named, *manifest.variants]
        fitting = [rung for rung in rungs if _fits(rung, formats, backend)]
        if not fitting:
            wanted = ", ".join([*formats, backend]).strip(", ")
            raise ModelError(f"model {model!r} has no variant {variant or 'at all'} for {wanted}")
        for rung in fitting:
            if self._present(manifest, rung):
                return self._checked(manifest, rung, self._known(manifest, rung))
        raise ModelError(
            f"model {_label(model, variant)} is not here; run: edgectl models pull {_label(model, variant)}"
        )

    def recorded_digest(self, model: str, variant: str = "") -> str:
        """Digest of the weights when they were last checked, without reading them; empty when never."""
        manifest = self.catalogue.model(model)
        rung = manifest.variant(variant)
        record = self._records(manifest, rung).get(rung.filename)
        return record.sha256 if record and self._present(manifest, rung) else ""

    def verify(self, model: str, variant: str = "") -> None:
        """Hash every file of a variant again; `DigestMismatch` or `ModelError` when one is not right."""
        manifest = self.catalogue.model(model)
        rung = manifest.variant(variant)
        if not self._present(manifest, rung):
            raise ModelError(f"model {_label(model, rung.name)} is not here, or incomplete; pull it")
        self._checked(manifest, rung, {})

    def remove(self, model: str, variant: str = "") -> None:
        """Delete a variant; a process that has it open keeps it. `ModelError` when it is not here."""
        manifest = self.catalogue.model(model)
        folder = self._folder(manifest, manifest.variant(variant))
        if not folder.is_dir():
            raise ModelError(f"model {_label(model, folder.name)} is not here: nothing to remove")
        with staged(self.path):
            shutil.rmtree(folder)

    def pull(self, model: str, variant: str = "", progress: Progress | None = None) -> Variant:
        """Fetch or derive a variant unless it is here and sound; waits for another pull to end.

        Raises `ModelError` when it cannot be had, `DigestMismatch` when the source gives other bytes.
        """
        manifest = self.catalogue.model(model)
        rung = manifest.variant(variant)
        try:
            with (
                staged(self.path) as staging,
                Fetcher(staging, self._environment, progress or silent) as fetcher,
            ):
                return self._pull(manifest, rung, fetcher)
        except OSError as error:
            raise ModelError(
                f"{error.filename or self.path}: {error.strerror}; free space or permissions?"
            ) from error

    def _pull(self, manifest: Model, rung: Rung, fetcher: Fetcher) -> Variant:
        if self._present(manifest, rung):
            try:
                return self._checked(manifest, rung, self._records(manifest, rung))
            except DigestMismatch:
                self._forget(manifest, rung)
        require_space(self.path, 2 * rung.bytes)
        weights = self._obtain(manifest, rung, fetcher)
        if rung.format == "gguf":
            check_header(weights)
        beside = self._beside(manifest, rung)
        files = {name: fetcher.fetch(file, f"{manifest.name} {name}") for name, file in beside.items()}
        self._install(manifest, rung, {**files, rung.filename: weights})
        return self._checked(manifest, rung, self._records(manifest, rung))

    def _obtain(self, manifest: Model, rung: Rung, fetcher: Fetcher) -> Path:
        what = f"{manifest.name} {rung.name}"
        if not isinstance(rung.source, DerivedSource):
            return fetcher.fetch(rung.weights, what)
        if rung.source.base:
            base = fetcher.fetch(rung.source.base, f"{what}: base")
        else:
            base = self._pull(manifest, manifest.variant(rung.source.variant), fetcher).path
        made = fetcher.folder / rung.filename
        derive(rung.source.method, base, made, rung.source.parameters)
        check(made, rung.sha256, None)
        return made

    def _beside(self, manifest: Model, rung: Rung) -> dict[str, File]:
        """The files that lie with the weights, by name."""
        tokenizer = self._tokenizer(manifest, rung)
        return {**rung.beside, **({TOKENIZER: tokenizer} if tokenizer else {})}

    def _tokenizer(self, manifest: Model, rung: Rung) -> File | None:
        """The tokenizer's file, taken from the variant that this one is made from when that is here."""
        file = manifest.tokenizer(rung)
        if file is None or rung.tokenizer or not isinstance(rung.source, DerivedSource):
            return file
        beside = self._folder(manifest, manifest.variant(rung.source.variant)) / TOKENIZER
        return msgspec.structs.replace(file, source=FileSource(path=str(beside)))

    def _install(self, manifest: Model, rung: Rung, files: Mapping[str, Path]) -> None:
        """Move staged files into place; the weights last, since they make a variant present."""
        folder = self._folder(manifest, rung)
        folder.mkdir(parents=True, exist_ok=True)
        records = {name: check(path, "", None) for name, path in files.items()}
        _write_record(folder, records)
        for name, path in files.items():
            path.rename(folder / name)
        sync_folder(folder)

    def _present(self, manifest: Model, rung: Rung) -> bool:
        folder = self._folder(manifest, rung)
        sizes = {rung.filename: rung.bytes if rung.sha256 else 0}
        sizes |= {name: file.bytes for name, file in self._beside(manifest, rung).items()}
        recorded = rung.sha256 or rung.filename in self._records(manifest, rung)
        return bool(recorded) and all(_has_size(folder / name, size) for name, size in sizes.items())

    def _checked(self, manifest: Model, rung: Rung, known: Records) -> Variant:
        """Check every file against the manifest, or a derived one against the record of its making."""
        folder = self._folder(manifest, rung)
        made = self._records(manifest, rung).get(rung.filename)
        expected = {rung.filename: rung.sha256 or (made.sha256 if made else "")}
        expected |= {name: file.sha256 for name, file in self._beside(manifest, rung).items()}
        found = {name: check(folder / name, sha256, known.get(name)) for name, sha256 in expected.items()}
        if found != known:
            if _remember(folder, found):
                self._found.pop(folder, None)
            else:
                self._found[folder] = found
        return _variant(manifest, rung, folder, found)

    def _known(self, manifest: Model, rung: Rung) -> Records:
        return self._records(manifest, rung) | self._found.get(self._folder(manifest, rung), {})

    def _records(self, manifest: Model, rung: Rung) -> Records:
        try:
            content = (self._folder(manifest, rung) / RECORD).read_bytes()
            return msgspec.json.decode(content, type=Records)
        except (FileNotFoundError, msgspec.DecodeError):
            return {}

    def _forget(self, manifest: Model, rung: Rung) -> None:
        (self._folder(manifest, rung) / rung.filename).unlink(missing_ok=True)

    def _folder(self, manifest: Model, rung: Rung) -> Path:
        return self.path / manifest.name / rung.name

    def _row(self, model: Model, rung: Rung) -> Row:
        return Row(
            model=model.name,
            variant=rung.name,
            task=model.task,
            format=rung.format,
            bytes=rung.bytes,
            memory_bytes=rung.memory_bytes[rung.backends[0]],
            present=self._present(model, rung),
            default=rung is model.variant(),
            derived=isinstance(rung.source, DerivedSource),
            licence=model.licence,
            quality=rung.quality,
        )


def _write_record(folder: Path, records: Records) -> None:
    beside = folder / f".{RECORD}.{os.getpid()}"
    beside.write_bytes(msgspec.json.encode(records))
    beside.replace(folder / RECORD)


def _remember(folder: Path, records: Records) -> bool:
    """Write the record where that is possible; in a read-only store every start hashes again."""
    try:
        _write_record(folder, records)
    except OSError:
        return False
    return True


def _has_size(path: Path, size_bytes: int) -> bool:
    """Say whether a plain file has this size; 0 stands for any."""
    return path.is_file() and size_bytes in (0, path.stat().st_size)


def _fits(rung: Rung, formats: Sequence[str], backend: str) -> bool:
    return (not formats or rung.format in formats) and (not backend or backend in rung.backends)


def _label(model: str, variant: str) -> str:
    return f"{model} {variant}".strip()


def _variant(manifest: Model, rung: Rung, folder: Path, records: Records) -> Variant:
    return Variant(
        model=manifest.name,
        name=rung.name,
        task=manifest.task,
        format=rung.format,
        path=folder / rung.filename,
        digest=records[rung.filename].sha256,
        tokenizer=folder / TOKENIZER if TOKENIZER in records else None,
        context_tokens=manifest.context_tokens,
        details=dict(manifest.details),
    )
