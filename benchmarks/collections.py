"""Test collections with relevance judgements, fetched for measurements and never vendored."""

from __future__ import annotations

import os
from pathlib import Path

from edged.catalogue import File, IndexSource, Part
from edged.errors import ModelError
from edged.models.digest import check
from edged.models.progress import Progress, silent
from edged.models.sources import Fetcher

ARCHIVE_SHA256 = "631a479f88067ebe18f71ead42fddc84ed5ced978017aa2e84f54abf4cbc60f0"
FOLDER = "vector_graph_rag-0.4.0/evaluation/data"


def _member(name: str, size_bytes: int, sha256: str) -> File:
    part = Part(
        package="vector-graph-rag",
        version="0.4.0",
        archive_bytes=33_534_592,
        archive_sha256=ARCHIVE_SHA256,
        member=f"{FOLDER}/{name}",
    )
    return File(bytes=size_bytes, sha256=sha256, source=IndexSource(parts=(part,), sdist=True))


# HotpotQA (https://hotpotqa.github.io), CC BY-SA 4.0: 1,000 questions and 9,221 passages.
QUESTIONS = _member(
    "hotpotqa.json", 8_130_985, "64654fe78f44ffe6dabd44693743bf620e6051613a6241b4568583ce233f3b2c"
)
CORPUS = _member(
    "hotpotqa_corpus.json", 5_911_617, "61776e344b99aaf1c0507df6ecc78b203b92c25e12734f8b86a4e8018a56c217"
)


def hotpotqa(cache: Path, progress: Progress = silent) -> tuple[Path, Path]:
    """Return questions and passages, both JSON, fetched into `cache` unless they are there.

    Raises `ModelError` when they cannot be fetched, `DigestMismatch` when they are not the known ones.
    """
    wanted = {cache / "hotpotqa.json": QUESTIONS, cache / "hotpotqa_corpus.json": CORPUS}
    missing = {path: file for path, file in wanted.items() if not _sound(path, file)}
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with Fetcher(cache, os.environ, progress) as fetcher:
            for path, file in missing.items():
                fetcher.fetch(file, path.name).replace(path)
    questions, corpus = wanted
    return questions, corpus


def _sound(path: Path, file: File) -> bool:
    try:
        check(path, file.sha256, None)
    except ModelError:
        return False
    return True
