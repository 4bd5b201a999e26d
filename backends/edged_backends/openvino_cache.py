"""Keep a GGUF file in OpenVINO's own form, so that a restarted stage is back sooner.

Reading a GGUF converts weights and tokenizer in memory at each start. The converted model is written once
to `<cache_dir>/<key>`; the key covers the weights and the runtime's version, so a stale one is never read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edged.backend import Variant
from edged.errors import BackendError
from edged_backends.openvino_runtime import genai

_PARTS = ("openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "openvino_detokenizer.xml")


def load_engine(
    variant: Variant, scheduler: Any, target: str, properties: dict[str, Any], cache_dir: str
) -> Any:
    """Load a pipeline from the cache, or from the GGUF file (and fill the cache when there is one)."""
    if not cache_dir:
        return genai.ContinuousBatchingPipeline(os.fspath(variant.path), scheduler, target, properties)
    folder = Path(cache_dir) / cache_key(variant)
    if not all((folder / part).exists() for part in _PARTS):
        return _convert(variant, folder, scheduler, target, properties)
    tokenizer = genai.Tokenizer(os.fspath(folder))
    return genai.ContinuousBatchingPipeline(os.fspath(folder), tokenizer, scheduler, target, **properties)


def cache_key(variant: Variant) -> str:
    """Name the folder of a converted model: by its digest, or by the file's identity without one."""
    status = variant.path.stat()
    weights = variant.digest or f"{variant.path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(f"{genai.__version__} {weights}".encode()).hexdigest()[:32]


def _convert(variant: Variant, folder: Path, scheduler: Any, target: str, properties: dict[str, Any]) -> Any:
    """Load from the GGUF file and leave the converted model in `folder`, whole or not at all."""
    # GenAI writes beside the file that it is given, so it is given a link in a folder of its own.
    with _empty_folder(folder.with_name(f"{folder.name}.partial")) as work:
        link = work / "model.gguf"
        link.symlink_to(variant.path.resolve())
        saving = {**properties, "enable_save_ov_model": True}
        engine = genai.ContinuousBatchingPipeline(os.fspath(link), scheduler, target, saving)
        genai.Tokenizer(os.fspath(link), enable_save_ov_model=True)
        link.unlink()
        if not folder.exists():
            work.rename(folder)
    return engine


@contextmanager
def _empty_folder(work: Path) -> Iterator[Path]:
    """Give an empty folder to one process at a time; what a killed one left in it is removed first."""
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        with work.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            yield work
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise BackendError(f"cache_dir {work.parent} cannot be written: {error.strerror}") from error
