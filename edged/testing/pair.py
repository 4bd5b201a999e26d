"""Two daemons, each other's peers, on the two ends of a cable that can be cut."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from edged.peers.book import Book, Peer
from edged.peers.keys import key_file, make_keys
from edged.report import PeerStatus
from edged.testing.daemon import RunningDaemon, running
from edged.testing.network import Cable, cable
from edged.transport.curve import KeyPair

PORT = 7443
NAMES = ("box-a", "box-b")


class Pair(NamedTuple):
    """The first asks, the second is asked; or the other way round."""

    cable: Cable
    daemons: tuple[RunningDaemon, RunningDaemon]
    keys: tuple[KeyPair, KeyPair]

    @property
    def home(self) -> RunningDaemon:
        """The first."""
        return self.daemons[0]

    @property
    def other(self) -> RunningDaemon:
        """The second."""
        return self.daemons[1]

    def peer(self) -> PeerStatus:
        """The second as the first sees it."""
        return _peer(self.home)

    def wait_peer(self, condition: Callable[[PeerStatus], bool], what: str, timeout_s: float = 30.0) -> None:
        """Wait until the first sees the second so."""
        self.home.wait_for(
            lambda status: bool(status.peers and status.peers.peers) and condition(_peer(self.home)),
            what,
            timeout_s,
        )

    def wait_useful(self) -> None:
        """Wait until the second would take an answer of the first."""
        self.wait_peer(lambda peer: peer.state == "up" and peer.free > 0, "a peer with room")


def _peer(daemon: RunningDaemon) -> PeerStatus:
    peers = daemon.client.status().peers
    assert peers is not None
    return peers.peers[0]


def endpoint(end: int) -> str:
    """Where the daemon at an end listens for peers."""
    return f"tcp://{Cable.address(end)}:{PORT}"


def peers_table(end: int, more: str = "") -> str:
    """`[peers]` of the daemon at an end."""
    return f"[peers]\nenabled = true\nname = '{NAMES[end]}'\nlisten = '{endpoint(end)}'\n{more}\n"


def _plain(_end: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "edged")


@contextmanager
def paired(
    folder: Path,
    config: Callable[[int], str],
    peers: str = "",
    *,
    models: Sequence[Path] = (),
    program: Callable[[int], Sequence[str]] = _plain,
) -> Iterator[Pair]:
    """Start two daemons that know each other; `config(end)` is what each has beside `[peers]`.

    `models` are folders of variants that both have, and no others; `program(end)` starts a daemon.
    """
    with ExitStack() as stack:
        laid = stack.enter_context(cable())
        folders = [folder / name for name in NAMES]
        for each in folders:
            (each / "state").mkdir(parents=True)
            for variant in models:
                place = each / "state" / "models" / variant.parent.name / variant.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(variant.absolute())
        keys = [make_keys(key_file(each / "state", {}), replace=False) for each in folders]
        for end, each in enumerate(folders):
            other = 1 - end
            Book(each / "state").add(
                Peer(name=NAMES[other], key=keys[other].public, endpoint=endpoint(other))
            )
        daemons = [
            stack.enter_context(
                running(
                    each,
                    peers_table(end, peers) + config(end),
                    command=laid.command(end, program(end)),
                    wait=False,
                )
            )
            for end, each in enumerate(folders)
        ]
        pair = Pair(laid, (daemons[0], daemons[1]), (keys[0], keys[1]))
        for daemon in daemons:
            daemon.wait_ready()
        pair.wait_useful()
        yield pair
