"""Asks one peer without a daemon: whether it answers to this key, how fast, and what it offers."""

from __future__ import annotations

import time

import msgspec

from edged.dispatch.peer import Offer
from edged.errors import ConfigError, ProtocolError, Unreachable
from edged.messages import encode
from edged.peers.book import Peer
from edged.peers.messages import VERSION, Ask, Offers, read_from_server
from edged.transport.curve import Beat, KeyPair, Line, context

POLL_MS = 50
MOST_BYTES = 1 << 20


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer that answers says."""

    peer: str
    node: str
    rung: str
    rtt_ms: float
    models: tuple[Offer, ...]


def probe(peer: Peer, keys: KeyPair, timeout_s: float) -> Found:
    """Ask; `Unreachable` when it does not answer in time, with what is known of the reason."""
    if not peer.endpoint:
        raise ConfigError(f"peer {peer.name!r} has no address: it only asks; see `edgectl peers add`")
    sockets = context()
    line = Line(sockets, keys, peer.endpoint, peer.key, most_bytes=MOST_BYTES, beat=Beat(1000, 3000))
    try:
        return _ask(peer, line, timeout_s)
    finally:
        line.close()
        sockets.term()


def _ask(peer: Peer, line: Line, timeout_s: float) -> Found:
    deadline = time.monotonic() + timeout_s
    sent: dict[int, float] = {}
    while time.monotonic() < deadline:
        if line.send(encode(Ask(VERSION, 0, len(sent) + 1))):
            sent[len(sent) + 1] = time.monotonic()
        if line.wait(POLL_MS):
            for body in line.receive():
                if isinstance(said := read_from_server(body), Offers):
                    return _found(peer, said, time.monotonic() - sent[said.nonce])
    raise Unreachable(f"peer {peer.name!r} at {peer.endpoint} {line.quarrel.reason()}")


def _found(peer: Peer, said: Offers, rtt_s: float) -> Found:
    if said.version != VERSION:
        raise ProtocolError(f"it speaks version {said.version} of the protocol, this node {VERSION}")
    return Found(
        peer=peer.name, node=said.node, rung=said.rung, rtt_ms=round(rtt_s * 1000, 3), models=said.models
    )
