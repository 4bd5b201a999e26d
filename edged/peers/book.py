"""The list of peers: who they are, where they listen, which key they have."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from edged.errors import ConfigError, NotFound
from edged.peers.keys import folder_of, write_private
from edged.transport.curve import check_key

FILE = "peers.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ENDPOINT = re.compile(r"tcp://(\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
MOST_PORT = 65535


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another node."""

    name: str
    key: str
    """Its public key, Z85."""
    endpoint: str = ""
    """Where it listens; empty: it may ask us, we never ask it."""


class Book:
    """The file with all peers, mode 0600. It is small, and read again when it has changed."""

    def __init__(self, state_dir: Path) -> None:
        self.path = folder_of(state_dir) / FILE

    def read(self) -> tuple[Peer, ...]:
        """All peers in order of their names; none where there is no file. `ConfigError` for a bad one."""
        try:
            found = msgspec.json.decode(self.path.read_bytes(), type=list[Peer])
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(f"the list of peers cannot be read ({self.path}: {error.strerror})") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{self.path} is no list of peers: {error}") from error
        for peer in found:
            check(peer)
        return tuple(sorted(found, key=lambda peer: peer.name))

    def version(self) -> tuple[int, int]:
        """Changes when the file does."""
        try:
            stat = self.path.stat()
        except OSError:
            return 0, 0
        return stat.st_mtime_ns, stat.st_ino

    def add(self, peer: Peer) -> None:
        """Add a peer, or replace the one of its name; `ConfigError` where another one has its key."""
        check(peer)
        others = [known for known in self.read() if known.name != peer.name]
        twin = next((known for known in others if known.key == peer.key), None)
        if twin is not None:
            raise ConfigError(f"the key is that of peer {twin.name!r}; every node has its own")
        self._write([*others, peer])

    def remove(self, name: str) -> None:
        """Forget a peer; `NotFound` for a stranger."""
        known = self.read()
        if name not in {peer.name for peer in known}:
            raise NotFound(f"there is no peer {name!r}; see `edgectl peers list`")
        self._write([peer for peer in known if peer.name != name])

    def _write(self, peers: list[Peer]) -> None:
        ordered = sorted(peers, key=lambda peer: peer.name)
        write_private(self.path, msgspec.json.format(msgspec.json.encode(ordered), indent=2) + b"\n")


def check(peer: Peer) -> None:
    """`ConfigError` for a peer that cannot be."""
    if not NAME.fullmatch(peer.name):
        raise ConfigError(f"the name {peer.name!r} may hold only a-z, 0-9, '.', '_' and '-', at most 64")
    check_key(peer.key)
    if peer.endpoint:
        check_endpoint(peer.endpoint)


def check_endpoint(endpoint: str) -> str:
    """Return tcp://HOST:PORT; `ConfigError` for anything else."""
    found = ENDPOINT.fullmatch(endpoint)
    if found is None or not 0 < int(found[2]) <= MOST_PORT:
        raise ConfigError(f"{endpoint!r} is no address of a peer; write tcp://HOST:PORT")
    return endpoint
