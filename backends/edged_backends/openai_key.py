"""The key for a server, from a credential file: never from the configuration, never shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edged.errors import ConfigError

MAX_KEY_BYTES = 4096


def _plain(data: bytes) -> bool:
    text = data.decode("ascii")
    return text.isprintable() and " " not in text


def key_path(name: str) -> Path:
    """An absolute path as it is; a plain name is a file below $CREDENTIALS_DIRECTORY, which systemd sets."""
    if name.startswith("/"):
        return Path(name)
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not folder:
        raise ConfigError(
            f"api_key_file = {name!r} is a credential's name, but this process was given none: "
            "write LoadCredential= into the unit, or an absolute path",
            param="api_key_file",
        )
    if "/" in name or name in {".", ".."}:
        raise ConfigError(
            "api_key_file is an absolute path or the name of a credential", param="api_key_file"
        )
    return Path(folder) / name


def read_key(name: str) -> str:
    """Read the key anew, so that one that was replaced counts at once; empty when no file is named."""
    if not name:
        return ""
    path = key_path(name)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_KEY_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(
            f"api_key_file {path} cannot be read: {error.strerror}", param="api_key_file"
        ) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigError(
            f"api_key_file {path} is open to other users; run: chmod 600 {path}", param="api_key_file"
        )
    if not 0 < len(data) <= MAX_KEY_BYTES or not data.isascii() or not _plain(data):
        raise ConfigError(
            f"api_key_file {path} must hold one key, printable and without spaces", param="api_key_file"
        )
    return data.decode("ascii")
