"""What all commands share: which configuration, which sockets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edged.client import AdminClient, Client
    from edged.config import Config


@dataclass(frozen=True)
class Session:
    """The global options of one `edgectl` call; everything is read when it is first needed."""

    file: Path | None
    overrides: tuple[str, ...]
    socket: Path | None
    admin_socket: Path | None
    environment: Mapping[str, str]

    @cached_property
    def config(self) -> Config:
        """The configuration, read as the daemon reads it; may raise `ConfigError`."""
        from edged.config import load

        return load(self.file, self.environment, self.overrides)

    @property
    def client(self) -> Client:
        """The client socket: `--socket`, $EDGED_SOCKET, else what the configuration says."""
        from edged.client import Client

        return Client(self._named_socket or self._configured(admin=False))

    @property
    def admin(self) -> AdminClient:
        """The admin socket; beside a client socket that was named, its neighbour `admin.sock`."""
        from edged.client import AdminClient

        named = self.admin_socket or _path(self.environment.get("EDGED_ADMIN_SOCKET"))
        if named is None and self._named_socket:
            named = self._named_socket.with_name("admin.sock")
        return AdminClient(named or self._configured(admin=True))

    @property
    def _named_socket(self) -> Path | None:
        return self.socket or _path(self.environment.get("EDGED_SOCKET"))

    def _configured(self, *, admin: bool) -> Path:
        from edged.config import find_socket

        return find_socket(self.config, self.environment, admin=admin)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


with_session = click.make_pass_decorator(Session)
"""Gives a command its `Session`."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def example(*lines: str) -> str:
    """Return the foot of a command's help: how it is typed."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def lines_of_input(what: str) -> tuple[str, ...]:
    """Read the non-empty lines of standard input, or say that `what` has to be given."""
    lines = [] if sys.stdin.isatty() else [line.strip() for line in sys.stdin]
    if not any(lines):
        raise click.UsageError(f"give {what}, or pipe lines in")
    return tuple(line for line in lines if line)
