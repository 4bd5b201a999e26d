"""The node's own key pair: the secret in a file that nobody else can read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from edged.errors import ConfigError, StorageError
from edged.transport.curve import KeyPair, new_keys, public_of

FILE = "curve.key"
FOLDER = "peers"
OTHERS = 0o077
OTHERS_OF_CREDENTIAL = 0o037
"""systemd gives a credential to its user by an ACL, whose mask shows as the group's right to read."""
CREDENTIALS = "CREDENTIALS_DIRECTORY"


def folder_of(state_dir: Path) -> Path:
    """Where keys and the list of peers lie."""
    return state_dir / FOLDER


def key_file(state_dir: Path, environment: Mapping[str, str]) -> Path:
    """The secret key's file: systemd's credential where there is one, else in the state folder."""
    credentials = environment.get(CREDENTIALS)
    given = Path(credentials) / FILE if credentials else None
    return given if given is not None and given.exists() else folder_of(state_dir) / FILE


def read_keys(path: Path, environment: Mapping[str, str]) -> KeyPair:
    """The pair of a secret key's file; `ConfigError` where it is missing, open to others or no key."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(1000).strip()
    except OSError as error:
        raise ConfigError(
            f"the key of this node cannot be read ({path}: {error.strerror}); run `edgectl peers keygen`"
        ) from error
    if mode & _others(path, environment):
        raise ConfigError(f"others may read the secret key {path}; run: chmod 600 {path}")
    secret = content.decode("ascii", errors="replace")
    return KeyPair(public_of(secret), secret)


def _others(path: Path, environment: Mapping[str, str]) -> int:
    """What nobody else may do with the file."""
    credentials = environment.get(CREDENTIALS)
    return OTHERS_OF_CREDENTIAL if credentials and path.parent == Path(credentials) else OTHERS


def make_keys(path: Path, *, replace: bool) -> KeyPair:
    """Make a pair and store its secret, mode 0600; `ConfigError` where there is one and it is to stay."""
    if path.exists() and not replace:
        raise ConfigError(f"there is a key in {path}; with --replace peers have to learn the new one")
    keys = new_keys()
    write_private(path, keys.secret.encode() + b"\n")
    return keys


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 that is whole or not there; `StorageError` where that fails."""
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
