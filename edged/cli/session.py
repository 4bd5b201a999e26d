"""What all commands share: which configuration, which sockets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edged.errors import BadRequest, ConfigError, Unreachable

if TYPE_CHECKING:
    from edged.client import AdminClient, Client
    from edged.config import Config

_NOT_TEXT = "the text is not valid UTF-8"
MAX_SOCKET_PATH_BYTES = 107
"""Of a Unix socket, by the kernel."""


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

        return Client(_fitting(self._named_socket or self._configured(admin=False)))

    @property
    def admin(self) -> AdminClient:
        """The admin socket; beside a client socket that was named, its neighbour `admin.sock`."""
        from edged.client import AdminClient

        named = self.admin_socket or _path(self.environment.get("EDGED_ADMIN_SOCKET"))
        if named is None and self._named_socket:
            named = self._named_socket.with_name("admin.sock")
        return AdminClient(_fitting(named or self._configured(admin=True)))

    @property
    def _named_socket(self) -> Path | None:
        return self.socket or _path(self.environment.get("EDGED_SOCKET"))

    def _configured(self, *, admin: bool) -> Path:
        from edged.config import find_socket

        try:
            return find_socket(self.config, self.environment, admin=admin)
        except ConfigError as error:
            sentence = f"{error.message}; `--socket PATH` works without the configuration"
            raise ConfigError(sentence, param=error.param) from error


def _fitting(socket: Path) -> Path:
    size = len(os.fsencode(socket))
    if size > MAX_SOCKET_PATH_BYTES:
        raise Unreachable(
            f"the socket's path has {size} bytes, and at most {MAX_SOCKET_PATH_BYTES} are possible: {socket}"
        )
    return socket


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


with_session = click.make_pass_decorator(Session)
"""Gives a command its `Session`."""


class _Text(click.ParamType[str]):
    """Text for the daemon; the system hands over bytes that may not be any."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text as it is; `BadRequest` when it is not valid UTF-8."""
        del param, ctx
        return valid(value)


TEXT = _Text()


def valid(text: str) -> str:
    """Return a text that can be sent; `BadRequest` when its bytes were not valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(_NOT_TEXT) from error
    return text


def text_from(read: Callable[[], str]) -> str:
    """Read text from standard input; `BadRequest` when it is not valid UTF-8."""
    try:
        return valid(read())
    except UnicodeDecodeError as error:
        raise BadRequest(_NOT_TEXT) from error


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def example(*lines: str) -> str:
    """Return the foot of a command's help: how it is typed."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def lines_of_input(what: str) -> tuple[str, ...]:
    """Read the non-empty lines of standard input, or say that `what` has to be given."""
    lines = [] if sys.stdin.isatty() else [line.strip() for line in text_from(sys.stdin.read).split("\n")]
    if not any(lines):
        raise click.UsageError(f"give {what}, or pipe lines in")
    return tuple(line for line in lines if line)
