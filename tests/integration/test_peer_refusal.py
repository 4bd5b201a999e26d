"""A peer that refuses this node, over real sockets: why is told, and it is asked again on a new one."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from edged.breaker import Breaker
from edged.dispatch.peer import Offer
from edged.messages import encode
from edged.peers.book import Peer
from edged.peers.identity import Kin
from edged.peers.link import Link
from edged.peers.messages import VERSION, Ask, Offers, read_to_server
from edged.peers.seams import Patience
from edged.peers.wires import LoopWires, beat_of
from edged.transport.curve import Gatekeeper, KeyPair, Server, context, new_keys

PATIENCE = Patience(ping_s=0.02, silence_s=0.3, stall_s=2.0)
OFFER = Offer("model", 2, 2, 0.0, 1.0, 10.0, 4096, hot=False)
MOST_BYTES = 1 << 16


class Stage:
    """The dispatcher's side, which gets a seat and no work."""

    def join(self, stage: str, *_: object) -> str:
        return stage

    def leave(self, *_: object) -> None:
        return

    def offered(self, *_: object, same: bool) -> None:
        assert same


@dataclass
class Door:
    """The other node: it lets listed keys in, and answers their questions."""

    keys: KeyPair = field(default_factory=new_keys)
    allowed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.context = context()
        self.gate = Gatekeeper(self.context, lambda key: key in self.allowed)
        self.server = Server(self.context, self.keys, MOST_BYTES, beat_of(PATIENCE))
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.endpoint = f"tcp://127.0.0.1:{found.getsockname()[1]}"
        self.server.bind(self.endpoint)

    def look(self) -> None:
        self.gate.answer()
        for heard in self.server.receive():
            asked = read_to_server(heard.body)
            if heard.key in self.allowed and isinstance(asked, Ask):
                said = Offers(VERSION, asked.nonce, "box-b", "full", (OFFER,))
                self.server.send(heard.route, encode(said))

    def close(self) -> None:
        self.server.close()
        self.gate.close()
        self.context.term()


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


class Asker:
    """This node: a link on a running loop."""

    def __init__(self, door: Door, *, key: str = "", first_wait_s: float = 0.05) -> None:
        self.door = door
        self.keys = new_keys()
        self.wires = LoopWires(self.keys, MOST_BYTES, beat_of(PATIENCE))
        self.link = Link(
            Peer(name="b", key=key or door.keys.public, endpoint=door.endpoint),
            wires=self.wires,
            remotes=Stage(),  # type: ignore[arg-type]
            kins=lambda: {"speak": Kin("model")},
            patience=PATIENCE,
            breaker=Breaker(1, first_wait_s, 2 * first_wait_s),
            clock=time.monotonic,
            bytes_per_s=1 << 20,
            wanted=lambda: True,
            changed=lambda: None,
        )

    async def until(self, condition: Callable[[Link], bool]) -> None:
        """Let both nodes look after themselves until a condition holds."""
        async with asyncio.timeout(30.0):
            while not condition(self.link):
                self.door.look()
                self.link.look()
                await asyncio.sleep(0.005)

    def close(self) -> None:
        self.link.close("the test ends")
        self.wires.end()


def refused(link: Link) -> bool:
    return "does not know this node's key" in link.reason


def test_a_peer_that_refused_this_node_is_up_once_it_lists_it(door: Door) -> None:
    async def run() -> None:
        asker = Asker(door)
        try:
            await asker.until(refused)
            door.allowed.add(asker.keys.public)
            await asker.until(lambda link: link.up)
            assert not asker.link.reason
        finally:
            asker.close()

    asyncio.run(run())


def test_a_peer_that_forgets_this_node_and_lists_it_again_is_up_again(door: Door) -> None:
    async def run() -> None:
        asker = Asker(door)
        try:
            door.allowed.add(asker.keys.public)
            await asker.until(lambda link: link.up)
            door.allowed.clear()
            await asker.until(lambda link: not link.up)
            assert "silent" in asker.link.reason
            await asker.until(refused)
            door.allowed.add(asker.keys.public)
            await asker.until(lambda link: link.up)
        finally:
            asker.close()

    asyncio.run(run())


def test_who_is_listed_again_here_is_asked_without_a_wait(door: Door) -> None:
    async def run() -> None:
        asker = Asker(door, first_wait_s=3600.0)
        try:
            await asker.until(refused)
            assert asker.link.breaker.state == "open"
            door.allowed.add(asker.keys.public)
            asker.link.hurry()
            await asker.until(lambda link: link.up)
        finally:
            asker.close()

    asyncio.run(run())


def test_a_wrong_key_is_told_as_such(door: Door) -> None:
    async def run() -> None:
        asker = Asker(door, key=new_keys().public)
        try:
            await asker.until(lambda link: link.reason == "it does not have the key that was added for it")
        finally:
            asker.close()

    asyncio.run(run())
