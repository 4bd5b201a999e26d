"""Ingest through its public door, with a real embedder: what ends up in the library, and what survives."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from pypdf import PdfWriter

from edged.config import Library as Settings
from edged.documents.access import locked
from edged.documents.library import Library
from edged.errors import AlreadyRunning

from .ingestion import MANUAL, ask, run


def test_what_was_ingested_is_found_with_its_place(library, documents, encoder):
    report = run(library, documents, encoder)
    assert [Path(source).name for source in report.added] == ["router.md", "pump.txt"]
    with Library.open(library) as opened:
        best = ask(opened, encoder, "how do I reset to factory settings?")[0]
        assert best.source == str(documents / "router.md")
        assert (best.title, best.heading, best.first_line, best.last_line) == ("Router", "Reset", 7, 7)
        assert set(best.scores) == {"dense", "bm25", "fused"}


def test_a_second_run_does_nothing(library, documents, encoder):
    first = run(library, documents, encoder)
    second = run(library, documents, encoder)
    assert (second.unchanged, second.added, second.passages_embedded) == (2, [], 0)
    assert second.generation == first.generation


def test_a_touched_file_with_the_same_content_is_unchanged(library, documents, encoder):
    run(library, documents, encoder)
    os.utime(documents / "router.md", ns=(1, 1))
    assert run(library, documents, encoder).passages_embedded == 0


def test_a_changed_file_replaces_its_passages(library, documents, encoder):
    run(library, documents, encoder)
    (documents / "router.md").write_text("# Router\n\nPull the plug instead.\n")
    report = run(library, documents, encoder)
    assert [Path(source).name for source in report.updated] == ["router.md"]
    with Library.open(library) as opened:
        _, passages = opened.show("router.md")
        assert [passage.text for passage in passages] == ["Pull the plug instead."]
        texts = [passage.text for passage in ask(opened, encoder, "hold the button", 10)]
        assert not any("button" in text for text in texts)


def test_new_chunk_settings_cut_again(library, documents, encoder):
    run(library, documents, encoder)
    report = run(library, documents, encoder, settings=Settings(chunk_tokens=32, overlap_tokens=0))
    assert len(report.updated) == 2


@pytest.fixture
def closed(documents, monkeypatch):
    """Makes a folder one that nobody may list, root included."""
    folder, scandir = documents / "sub", os.scandir

    def refuse(path="."):
        if not isinstance(path, int) and Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(path)

    def close() -> Path:
        monkeypatch.setattr(os, "scandir", refuse)
        return folder

    return close


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("below", ["", "sub"])
def test_a_folder_that_cannot_be_listed_failed_and_keeps_its_documents(
    library, documents, encoder, closed, prune, below
):
    run(library, documents, encoder)
    folder = closed()
    report = run(library, documents / below, encoder, prune=prune)
    assert [(trouble.source, trouble.code) for trouble in report.failed] == [(str(folder), "document")]
    assert "cannot be listed: Permission denied" in report.failed[0].message
    assert (report.removed, report.documents) == ([], 2)


def test_prune_keeps_a_file_that_cannot_be_looked_at(library, documents, encoder, monkeypatch):
    run(library, documents, encoder)
    lstat = Path.lstat

    def refuse(path):
        if path.name == "pump.txt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    report = run(library, documents, encoder, prune=True)
    assert [Path(trouble.source).name for trouble in report.failed] == ["pump.txt"]
    assert report.removed == []


def test_prune_removes_vanished_files_under_the_paths_only(library, documents, encoder):
    run(library, documents, encoder)
    (documents / "router.md").unlink()
    (documents / "sub" / "pump.txt").unlink()
    assert run(library, documents / "sub", encoder).documents == 2
    report = run(library, documents / "sub", encoder, prune=True)
    assert [Path(source).name for source in report.removed] == ["pump.txt"]
    with Library.open(library) as opened:
        assert [Path(document.source).name for document in opened.documents()] == ["router.md"]


def test_what_is_left_out_has_a_reason(library, documents, encoder):
    (documents / ".hidden.md").write_text("hidden")
    (documents / "picture.png").write_bytes(b"\x89PNG")
    (documents / "big.txt").write_text("x" * 5000)
    (documents / "link.md").symlink_to("/etc/hostname")
    (documents / "binary.txt").write_bytes(b"\x7fELF\0\0\0")
    (documents / "damaged.pdf").write_bytes(b"%PDF-1.7 nothing more")
    settings = Settings(max_document_bytes=4000)
    report = run(library, [documents, documents / "missing"], encoder, settings=settings)
    reasons = {Path(entry.source).name: entry.reason for entry in report.skipped}
    assert set(reasons) == {"picture.png", "big.txt", "link.md"}
    failures = {Path(trouble.source).name: trouble.code for trouble in report.failed}
    assert failures == {"binary.txt": "document", "damaged.pdf": "document", "missing": "not_found"}
    assert len(report.added) == 2


def test_pdf_passages_know_their_page(library, tmp_path, encoder):
    path = tmp_path / "manual.pdf"
    path.write_bytes(two_page_pdf())
    run(library, path, encoder)
    with Library.open(library) as opened:
        best = ask(opened, encoder, "float switch of the pump")[0]
        assert (best.page, best.first_line) == (2, 0)
        assert "float switch" in best.text


def test_an_encrypted_pdf_fails_alone(library, documents, encoder):
    writer = PdfWriter()
    writer.add_blank_page(200, 200)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(documents / "locked.pdf")
    report = run(library, documents, encoder)
    assert [trouble.code for trouble in report.failed] == ["document"]
    assert "encrypted" in report.failed[0].message
    assert len(report.added) == 2


def test_two_ingests_exclude_one_another(library, documents, encoder):
    with locked(library), pytest.raises(AlreadyRunning):
        run(library, documents, encoder)


INGEST_IN_CHILD = """
import sys
from pathlib import Path
from edged.documents import ingest as module
from edged.documents.library import Library
from edged.errors import EdgedError
from tests.integration.ingestion import SETTINGS, open_encoder
import msgspec
from edged.backend import Variant
described = msgspec.json.decode(sys.argv[1])
variant = msgspec.convert(described, Variant, dec_hook=lambda kind, value: kind(value))
module.BATCH_PASSAGES = 4
module.PUBLISH_INTERVAL_S = 0.0
encoder = open_encoder(variant)
try:
    report = module.ingest(Path(sys.argv[2]), [Path(sys.argv[3])], encoder, SETTINGS, prune=False,
        progress=lambda step: print(step.phase, step.passages_embedded, flush=True))
except EdgedError as error:
    print("refused", error.code, flush=True)
    with Library.open(Path(sys.argv[2])) as library:
        shown = [library.show(document.source)[1] for document in library.documents()]
        vectors, _ = encoder.embed(["float switch"], "query")
        found = library.search(["float switch"], vectors, encoder.fingerprint, 100)[0]
    print("intact", len(shown) > 1, len(found) > 1, flush=True)
else:
    print("finished", report.passages_embedded, flush=True)
"""


def child(variant, library, documents, *prefix):
    described = msgspec.json.encode(variant, enc_hook=str).decode()
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", INGEST_IN_CHILD, described, str(library), str(documents)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("embedded", [4, 16, 28])
def test_a_killed_ingest_loses_no_finished_batch(library, documents, encoder, variant, embedded):
    for number in range(12):
        text = "\n\n".join(f"## Part {part}\n\nNote {number} says {part}." for part in range(3))
        (documents / f"note-{number:02}.md").write_text(f"# Note {number}\n\n{text}\n")
    with child(variant("all-minilm-l6-v2", "int8"), library, documents) as process:
        for line in process.stdout:
            if int(line.split()[-1]) >= embedded:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()
    with Library.open(library) as opened:
        for document in opened.documents():
            assert len(opened.show(document.source)[1]) == document.chunks
    report = run(library, documents, encoder)
    assert report.documents == 14
    assert report.passages_embedded <= report.passages - embedded
    with Library.open(library) as opened:
        assert "says 2" in ask(opened, encoder, "what does part 2 of note 7 say?")[0].text
        assert opened.statistics().passages == sum(document.chunks for document in opened.documents())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_a_clean_error_and_leaves_the_library_intact(tmp_path, documents, encoder, variant):
    mount = tmp_path / "mount"
    mount.mkdir()
    (documents / "switch.md").write_text(MANUAL.replace("Router", "Switch"))
    long = "\n\n".join(f"Sentence {number} of the log." * 8 for number in range(400))
    (documents / "sub" / "zlong.txt").write_text(long)
    small = 'mount -t tmpfs -o size=900k none "$0" && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", small, str(mount))
    with child(variant("all-minilm-l6-v2", "int8"), mount / "library", documents, *prefix) as process:
        lines = process.stdout.read().splitlines()
    assert lines[-2:] == ["refused storage", "intact True True"]


def two_page_pdf() -> bytes:
    """A hand-written PDF: one line of text on each of two pages."""
    streams = [
        f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
        for text in ("Chapter one is about routers.", "The float switch starts the pump.")
    ]
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [3 0 R 4 0 R] /Count 2 >>"]
    objects += [
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Resources << /Font << /F1 7 0 R >> >> "
        f"/Contents {number} 0 R >>"
        for number in (5, 6)
    ]
    objects += [f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream" for stream in streams]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return body + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode() + trailer.encode()
