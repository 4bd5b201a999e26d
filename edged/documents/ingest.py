"""Bring documents into a library: read, cut, embed, publish. Interrupt it at any time and run it again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edged.config import Library as Settings
from edged.documents import index, readers
from edged.documents.access import Owner, locked, translated
from edged.documents.chunk import Chunk, Parsed, chunk, embedded_text
from edged.documents.publish import publish_next
from edged.documents.recovery import known_manifest, lost
from edged.documents.store import Document, Store
from edged.documents.walk import File, LeftOut, walk
from edged.errors import DocumentError, EdgedError, NotFound
from edged.stages.encoder import Encoder

BATCH_PASSAGES = 64
"""Passages embedded and committed at a time: what a kill can cost at most."""
PUBLISH_INTERVAL_S = 30.0
PUBLISH_SHARE = 0.05
"""Most of an ingest's time that may go into publishing generations on the way."""
_TITLE_CHARACTERS = 200


class IngestProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an ingest is."""

    phase: Literal["reading", "embedding", "publishing"]
    source: str = ""
    files_done: int
    files_total: int
    passages_embedded: int


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """A document that was not ingested, and why."""

    source: str
    code: str
    message: str


class IngestReport(msgspec.Struct, kw_only=True):
    """What an ingest did; lists hold sources."""

    added: list[str] = []
    updated: list[str] = []
    unchanged: int = 0
    removed: list[str] = []
    skipped: list[LeftOut] = []
    failed: list[Trouble] = []
    notes: list[str] = []
    passages_embedded: int = 0
    tokens: int = 0
    generation: int = 0
    documents: int = 0
    """In the library, afterwards."""
    passages: int = 0
    elapsed_s: float = 0.0


Report = Callable[[IngestProgress], None]


def ingest(
    library: Path,
    paths: Sequence[Path],
    encoder: Encoder,
    settings: Settings,
    *,
    prune: bool,
    progress: Report,
    re_embed: bool = False,
) -> IngestReport:
    """Ingest files and folders; unchanged documents cost a look at their size and time.

    A document that cannot be read is reported and the others go on. `prune` removes the documents
    under `paths` whose files vanished, but none below a folder that cannot be listed. `re_embed`
    embeds what is there with `encoder`, whatever embedded it before. Raises `AlreadyRunning`,
    `IndexMismatch`, `StorageError`, `BackendError`.
    """
    started = time.monotonic()
    owner = Owner(library)
    with translated(library), owner.acting(), locked(library):
        store = Store(library)
        try:
            run = _Ingest(library, store, encoder, settings, owner, progress)
            run.begin(re_embed=re_embed)
            run.read(paths, prune=prune)
            report = run.finish()
        finally:
            store.close()
    report.elapsed_s = time.monotonic() - started
    return report


class _Ingest:
    """One run, under the library's lock."""

    def __init__(
        self,
        library: Path,
        store: Store,
        encoder: Encoder,
        settings: Settings,
        owner: Owner,
        progress: Report,
    ) -> None:
        self._library = library
        self._store = store
        self._encoder = encoder
        self._settings = settings
        self._owner = owner
        self._progress = progress
        self._report = IngestReport()
        self._recipe = f"{readers.VERSION}/{settings.chunk_tokens}/{settings.overlap_tokens}"
        self._files_done = self._files_total = self._waiting = self._cursor = 0
        self._published_at = time.monotonic()
        self._publish_s = 0.0

    def begin(self, *, re_embed: bool) -> None:
        """Check that the vectors fit together; finish what an interrupted run left over."""
        number = index.current(self._library)
        former = known_manifest(self._library, number, self._store)
        if former and not re_embed:
            index.check_family(former, self._encoder.fingerprint)
        with self._store:
            self._embedder = self._store.embedder(self._encoder.fingerprint, self._encoder.digest)
            siblings = self._store.siblings(self._encoder.fingerprint)
        self._accepted = siblings
        if not re_embed:
            self._embed()
            return
        self._embed_all()
        if former and former.passages:
            self._publish(rebuild=True)

    def read(self, paths: Sequence[Path], *, prune: bool) -> None:
        """Read what changed under `paths`, embedding on the way."""
        with self._owner.reading():
            found = list(walk(paths, self._settings.max_document_bytes))
        files = [entry for entry in found if isinstance(entry, File)]
        left_out = [entry for entry in found if isinstance(entry, LeftOut)]
        self._leave_out(left_out, prune=prune)
        self._files_total = len(files)
        for file in files:
            self._tell("reading", str(file.path))
            self._take(file)
            self._files_done += 1
        if prune:
            unknown = [Path(entry.source) for entry in left_out if entry.unreadable]
            self._prune([path.absolute() for path in paths], unknown, {str(file.path) for file in files})

    def finish(self) -> IngestReport:
        """Embed the rest and publish, if anything changed or the generation in force is lost."""
        self._embed()
        number = index.current(self._library)
        if self._store.changed_since(number) or lost(self._library, number):
            self._publish()
        number = index.current(self._library)
        self._report.generation = number
        self._report.documents, self._report.passages = self._store.counts(number)
        self._tell("publishing")
        return self._report

    def _leave_out(self, entries: list[LeftOut], *, prune: bool) -> None:
        for entry in entries:
            if entry.unreadable:
                self._fail(entry.source, DocumentError(entry.reason))
            elif not entry.missing:
                self._report.skipped.append(entry)
            elif not prune:
                self._fail(entry.source, NotFound("there is no such file or folder"))

    def _take(self, file: File) -> None:
        """Ingest one file; what is wrong with it is its own trouble."""
        source = str(file.path)
        former, complete = self._store.find(source)
        try:
            document = self._changed(file, former)
            if document is None:
                self._report.unchanged += 1
                return
            parsed, data_hash = document
            chunks = self._cut(parsed)
        except DocumentError as error:
            self._fail(source, error)
            return
        self._keep(file, parsed, data_hash, chunks)
        (self._report.updated if former and complete else self._report.added).append(source)

    def _changed(self, file: File, former: Document | None) -> tuple[Parsed, str] | None:
        """The document and its hash, or None when the library has exactly it."""
        known = former if former and former.recipe == self._recipe else None
        if known and (known.bytes, known.mtime_ns) == (file.bytes, file.mtime_ns):
            return None
        data = self._data(file)
        digest = hashlib.sha256(data).hexdigest()
        if known and known.sha256 == digest:
            with self._store:
                self._store.touch(known.id, file.mtime_ns)
            return None
        reader = readers.reader_for(file.path)
        assert reader is not None
        return reader(data, file.path), digest

    def _data(self, file: File) -> bytes:
        try:
            with self._owner.reading(), file.path.open("rb") as stream:
                data = stream.read(self._settings.max_document_bytes + 1)
        except OSError as error:
            raise DocumentError(f"cannot be read: {error.strerror}") from error
        if len(data) > self._settings.max_document_bytes:
            raise DocumentError("grew beyond library.max_document_bytes while it was read")
        return data

    def _cut(self, parsed: Parsed) -> list[Chunk]:
        chunks = chunk(
            msgspec.structs.replace(parsed, title=parsed.title[:_TITLE_CHARACTERS]),
            self._encoder.count_tokens,
            chunk_tokens=self._settings.chunk_tokens,
            overlap_tokens=self._settings.overlap_tokens,
            capacity_tokens=self._encoder.capacity_tokens,
        )
        if not chunks:
            raise DocumentError("holds no text")
        return chunks

    def _keep(self, file: File, parsed: Parsed, digest: str, chunks: list[Chunk]) -> None:
        source = str(file.path)
        self._report.notes += [f"{source}: {note}" for note in parsed.notes]
        document = Document(
            id=0,
            source=source,
            title=parsed.title[:_TITLE_CHARACTERS],
            media_type=parsed.media_type,
            sha256=digest,
            bytes=file.bytes,
            mtime_ns=file.mtime_ns,
            recipe=self._recipe,
            ingested_at=time.time(),
            chunks=len(chunks),
        )
        with self._store:
            self._store.add(document, chunks)
        self._waiting += len(chunks)
        if self._waiting >= BATCH_PASSAGES:
            self._embed()
            self._publish_when_due()

    def _embed_all(self) -> None:
        """Embed every passage that this very embedder has not embedded."""
        self._embed_those([self._embedder], 0)

    def _embed(self) -> None:
        """Embed the new passages that have no vector."""
        self._embed_those(self._accepted, index.current(self._library))

    def _embed_those(self, accepted: Sequence[int], beyond: int) -> None:
        """Embed passages that came after a generation, a batch and a commit at a time, then stage them."""
        while batch := self._store.unembedded(accepted, self._cursor, BATCH_PASSAGES, beyond=beyond):
            self._tell("embedding", batch[0][1])
            vectors, tokens = self._encoder.embed(
                [embedded_text(title, heading, text) for _, title, heading, text in batch], "passage"
            )
            with self._store:
                self._store.save_vectors(self._embedder, [row[0] for row in batch], vectors)
            self._cursor = batch[-1][0]
            self._report.passages_embedded += len(batch)
            self._report.tokens += tokens
        with self._store:
            self._store.stage(index.current(self._library) + 1)
        self._waiting = 0

    def _prune(self, roots: Sequence[Path], unknown: Sequence[Path], present: set[str]) -> None:
        gone = [
            source
            for source in self._store.sources()
            if source not in present and _below(source, roots) and not _below(source, unknown)
        ]
        number = index.current(self._library) + 1
        with self._store:
            for source in gone:
                self._store.remove(source, number)
        self._report.removed += gone

    def _publish_when_due(self) -> None:
        interval = max(PUBLISH_INTERVAL_S, self._publish_s / PUBLISH_SHARE)
        if time.monotonic() - self._published_at >= interval:
            self._publish()

    def _publish(self, *, rebuild: bool = False) -> None:
        started = time.monotonic()
        self._tell("publishing")
        encoder = self._encoder
        publish_next(
            self._library,
            self._store,
            encoder.fingerprint,
            encoder.digest,
            encoder.dimension,
            wanted=self._settings.index,
            rebuild=rebuild,
        )
        self._published_at = time.monotonic()
        self._publish_s = self._published_at - started

    def _fail(self, source: str, error: EdgedError) -> None:
        self._report.failed.append(Trouble(source=source, code=error.code, message=error.message))

    def _tell(self, phase: Literal["reading", "embedding", "publishing"], source: str = "") -> None:
        self._progress(
            IngestProgress(
                phase=phase,
                source=source,
                files_done=self._files_done,
                files_total=self._files_total,
                passages_embedded=self._report.passages_embedded,
            )
        )


def _below(source: str, paths: Sequence[Path]) -> bool:
    """Whether a source is one of `paths`, or lies below one."""
    return any(Path(source).is_relative_to(path) for path in paths)
