"""A node among its peers: what must never end it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from edged.config.tables import Config, Peers
from edged.peers import node as nodes
from edged.peers.kept_up import kept_up
from edged.peers.node import Node


def test_an_exception_is_told_and_the_work_begins_again():
    begun: list[int] = []
    told: list[BaseException] = []

    async def work() -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise ZeroDivisionError(len(begun))

    asyncio.run(kept_up(work, told.append))
    assert begun == [0, 1, 2]
    assert [str(error) for error in told] == ["1", "2"]


def test_who_is_cancelled_takes_the_work_along():
    async def scene() -> None:
        ended, begun = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        keeper = asyncio.ensure_future(kept_up(work, lambda error: pytest.fail(str(error))))
        await begun.wait()
        keeper.cancel()
        await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await keeper

    asyncio.run(scene())


class Governing:
    def __init__(self) -> None:
        self.offers: list[str] = []

    def offer(self, name: str, *, available: bool, why: str) -> None:
        self.offers.append("" if available else why)


def test_a_node_that_breaks_down_says_so_and_comes_up_again(monkeypatch):
    monkeypatch.setattr(nodes, "LOOK_AGAIN_S", 0.0)
    dispatcher = SimpleNamespace(ledger=SimpleNamespace(node=""))
    config = Config(peers=Peers(enabled=True))
    governing = Governing()
    node = Node(dispatcher, lambda: config, governing, None, None)  # type: ignore[arg-type]
    looks: list[str] = []
    up = asyncio.Event()

    def look() -> None:
        looks.append(governing.offers[-1])
        if len(looks) == 1:
            raise mishap
        up.set()

    mishap = ZeroDivisionError("of nobody's making")

    async def scene() -> None:
        monkeypatch.setattr(node, "_come_up", lambda: setattr(node, "_wires", Wires()))
        monkeypatch.setattr(node, "_look", look)
        monkeypatch.setattr(node, "_wanted", lambda: False)
        governing.offer("peer", available=True, why="")
        node.begin({})
        running = asyncio.ensure_future(node.run())
        await up.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(scene())
    assert looks[0] == ""
    assert "of nobody's making" in looks[1]
    assert node.notes() == ()


class Wires:
    def end(self) -> None:
        pass
