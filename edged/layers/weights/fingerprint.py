"""Whether two hosts have the same model: its shape, and samples of its files."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import msgspec

from edged.errors import ConfigError
from edged.layers.remote.messages import Identity
from edged.layers.weights.checkpoint import open_checkpoint
from edged.layers.weights.random_checkpoint import PREFIX

SAMPLES = 64
SAMPLE_BYTES = 1 << 16


def identify(source: str) -> Identity:
    """Say which model this is; `ConfigError` where it is none that layer pipelines run.

    The fingerprint is of the position scheme, the size of each file and 64 samples of 64 KiB at even
    distances, first and last bytes included: hashing all of a large model would take minutes at each start.
    Another quantisation or another training run differs in nearly every sample; a file of which single
    bytes were changed may not.
    """
    facts = open_checkpoint(source).facts
    digest = blake2b(msgspec.json.encode(facts.rope, order="deterministic"), digest_size=16)
    if source.startswith(PREFIX):
        digest.update(source.encode())
    else:
        for path in _files(Path(source)):
            size = path.stat().st_size
            digest.update(b"%d:" % size)
            for sample in _samples(path, size):
                digest.update(sample)
    return Identity(facts.architecture, digest.hexdigest())


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def _samples(path: Path, size: int) -> Iterable[bytes]:
    try:
        with path.open("rb") as file:
            for number in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                yield file.read(SAMPLE_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the model {path}: {error.strerror}") from error


def difference(here: Identity, asked: Identity) -> str:
    """Say in which way two hosts' models differ; empty where they do not."""
    for field in here.architecture.__struct_fields__:
        mine, theirs = getattr(here.architecture, field), getattr(asked.architecture, field)
        if mine != theirs:
            return f"its model has {field} {mine}, the head's {theirs}"
    if here.fingerprint != asked.fingerprint:
        return (
            "its model has the shape of the head's and other weights "
            f"(fingerprint {here.fingerprint[:8]}, the head's {asked.fingerprint[:8]})"
        )
    return ""
