"""`bypass.json` of a state folder: what was learnt, read once, replaced whole."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from edged.bypass.calibration import Evidence

logger = logging.getLogger("edged.bypass")

FILE = "bypass.json"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What evidence is about: it says nothing about another library, embedder or reranker."""

    generation: int
    """Of the library."""
    embedder: str
    """Model, variant and digest of the weights; several, where several pipelines lead to the reranker."""
    reranker: str


class Learnt(msgspec.Struct, frozen=True):
    """Evidence about one reranker."""

    key: Key
    evidence: Evidence


def load(path: Path) -> dict[str, list[Learnt]]:
    """What was stored, by stage; nothing where there is no file, or none that can be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, list[Learnt]])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        logger.warning("what was learnt is lost", extra={"path": str(path), "why": str(error)})
        return {}


def save(learnt: dict[str, list[Learnt]], path: Path) -> str:
    """Replace the file; why that failed, or nothing.

    The disk is not waited for: this runs on the event loop, and after a power cut learning again is cheap.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        beside.write_bytes(msgspec.json.encode(learnt))
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        return f"{path} cannot be written: {error.strerror}"
    return ""
