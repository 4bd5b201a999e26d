"""Who must not be heard on the port for peers: nothing of theirs reaches the application."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks._hostile_peers import NAMES, Target, attacks
from edged.peers.book import Book, Peer
from edged.peers.keys import key_file, make_keys
from edged.peers.probe import probe
from edged.testing.daemon import RunningDaemon, running
from edged.transport.curve import Beat, KeyPair, Line, context, new_keys

from .conftest import simulated

FRIEND = new_keys()


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def keys(state: Path) -> KeyPair:
    return make_keys(key_file(state, {}), replace=False)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fortress") / "state"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def fortress(state: Path, port: int, keys: KeyPair) -> Iterator[RunningDaemon]:
    """A daemon that listens for peers and knows one."""
    Book(state).add(Peer(name="friend", key=FRIEND.public))
    config = simulated(before=f"[peers]\nenabled = true\nlisten = 'tcp://127.0.0.1:{port}'\n")
    with running(state.parent, config) as daemon:
        yield daemon


@pytest.fixture
def target(fortress: RunningDaemon, port: int, keys: KeyPair) -> Target:
    return Target(f"tcp://127.0.0.1:{port}", keys.public, FRIEND)


def messages(daemon: RunningDaemon) -> int:
    peers = daemon.client.status().peers
    assert peers is not None
    return peers.messages


def friend(target: Target) -> Peer:
    return Peer(name="fortress", key=target.server, endpoint=target.endpoint)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_an_attack_reaches_the_application(fortress, target, name):
    attack = attacks(target)[name]
    before = messages(fortress)
    attack()
    assert messages(fortress) == before
    assert probe(friend(target), FRIEND, 5.0).models, "who may come in is served as before"
    assert messages(fortress) > before, "and the counter counts"


def test_nonsense_of_a_listed_peer_ends_its_connection(fortress, target):
    status = fortress.client.status().peers
    assert status is not None
    sockets = context()
    line = Line(sockets, FRIEND, target.endpoint, target.server, most_bytes=1 << 20, beat=Beat(500, 1500))
    try:
        before = messages(fortress)

        def told() -> bool:
            line.send(os.urandom(64))
            peers = fortress.client.status().peers
            return peers is not None and peers.malformed > status.malformed

        fortress.wait_for(lambda _: told(), "a malformed message to be counted")
        assert messages(fortress) == before
    finally:
        line.close()
        sockets.term()
    assert probe(friend(target), FRIEND, 5.0).models


def test_a_daemon_that_was_not_told_to_does_not_listen(tmp_path):
    with running(tmp_path, simulated()) as daemon:
        assert daemon.client.status().peers is None
        inodes = set()
        for fd in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                inodes.add(str(fd.readlink()))
        listening = [
            line.split()[9]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        ]
        assert not {f"socket:[{inode}]" for inode in listening} & inodes


def test_a_key_that_others_may_read_keeps_peers_off_and_the_box_serving(tmp_path, port):
    state = tmp_path / "state"
    path = key_file(state, {})
    make_keys(path, replace=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    config = simulated(before="[peers]\nenabled = true\n")
    with running(tmp_path, config) as daemon:
        status = daemon.client.status()
        assert status.peers is not None
        assert "chmod 600" in status.peers.problem
        assert any("chmod 600" in note for note in status.notes)
        path.chmod(0o600)
        daemon.wait_for(lambda s: bool(s.peers and not s.peers.problem), "peers to come up by themselves")
