"""ROUTER and DEALER over a real socket file: who is unknown, who talks nonsense, what stays behind."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from edged.errors import ProtocolError
from edged.messages import Batch, Fault, Ping, Pong, Ready, SlotRef, Stop, Work, encode
from edged.transport.links import Dealer, Router

WAIT_MS = 30_000


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    made = Router(tmp_path / "workers.sock")
    yield made
    made.close()


@pytest.fixture
def dealer(router: Router, tmp_path: Path) -> Iterator[Dealer]:
    made = Dealer(tmp_path / "workers.sock", "w-1")
    made.send(Pong(0))
    assert take(router, 1) == [("w-1", Pong(0))]
    yield made
    made.close()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[zmq.Socket[bytes]]:
    """Somebody who speaks ZeroMQ, but not the protocol; connects when a test says so."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 1000
        yield socket


def take(router: Router, count: int) -> list[tuple[str, object]]:
    """Wait for so many messages, on the descriptor alone, as the daemon's event loop does."""
    taken = list(router.receive())
    while len(taken) < count:
        assert select.select([router.fileno], [], [], WAIT_MS / 1e3)[0], f"only {taken}"
        taken += router.receive()
    return taken


def test_a_message_to_somebody_unknown_is_refused(router: Router) -> None:
    assert router.send("nobody", Ping(1)) is False


def test_messages_travel_both_ways_in_order(router: Router, dealer: Dealer) -> None:
    ref = SlotRef(1, 2, 3, 4, 5)
    work = Work(7, 1, "chat", ref, ref, 900, (1, 2, 3), 4)
    sent = [Batch((work, work)), Ping(5), Stop()]
    assert all(router.send("w-1", message) for message in sent)
    assert [dealer.receive(WAIT_MS) for _ in sent] == sent
    assert dealer.receive(0) is None


def test_every_message_is_found_although_the_descriptor_fires_once(router: Router, dealer: Dealer) -> None:
    """It is edge-triggered: what a wake-up leaves behind would never be announced again."""
    for nonce in range(500):
        dealer.send(Pong(nonce))
    assert take(router, 500) == [("w-1", Pong(nonce)) for nonce in range(500)]
    assert not router.pending()


def test_a_message_that_arrives_during_a_send_is_seen_as_pending(router: Router, dealer: Dealer) -> None:
    """A send eats the edge; `pending` tells."""
    dealer.send(Pong(1))
    for _ in range(10_000):
        router.send("w-1", Ping(0))
        if router.pending():
            break
    assert list(router.receive()) == [("w-1", Pong(1))]


def test_two_workers_are_told_apart(router: Router, dealer: Dealer, tmp_path: Path) -> None:
    other = Dealer(tmp_path / "workers.sock", "w-2")
    other.send(Ready(3, 99, 0.5, {"model": "m"}))
    assert take(router, 1) == [("w-2", Ready(3, 99, 0.5, {"model": "m"}))]
    router.send("w-2", Ping(2))
    assert other.receive(WAIT_MS) == Ping(2)
    assert dealer.receive(0) is None
    other.close()


@pytest.mark.parametrize(
    "frames",
    [[b""], [b"\xc1nonsense"], [b"\x92\xa4done\x01"], [encode(Pong(1)), b"more"], [b"a", b"b", b"c"]],
    ids=["empty", "nonsense", "cut", "one frame too many", "three frames"],
)
def test_nonsense_is_its_senders_fault_and_the_next_message_is_heard(
    router: Router, dealer: Dealer, stranger: zmq.Socket[bytes], tmp_path: Path, frames: list[bytes]
) -> None:
    stranger.setsockopt(zmq.IDENTITY, b"bad")
    stranger.connect(f"ipc://{tmp_path / 'workers.sock'}")
    stranger.send_multipart(frames)
    ((sender, message),) = take(router, 1)
    assert sender == "bad"
    assert isinstance(message, Fault)
    assert message.code == "protocol"
    dealer.send(Pong(2))
    assert take(router, 1) == [("w-1", Pong(2))]


@pytest.mark.parametrize("identity", [b"\xff\xfe\x00bad", None], ids=["not text", "none given"])
def test_a_sender_whose_name_is_no_text_harms_nobody(
    router: Router, dealer: Dealer, stranger: zmq.Socket[bytes], tmp_path: Path, identity: bytes | None
) -> None:
    if identity is not None:
        stranger.setsockopt(zmq.IDENTITY, identity)
    stranger.connect(f"ipc://{tmp_path / 'workers.sock'}")
    stranger.send(encode(Pong(1)))
    ((sender, _),) = take(router, 1)
    assert sender != "w-1"
    dealer.send(Pong(2))
    assert take(router, 1) == [("w-1", Pong(2))]


def test_a_second_owner_of_a_name_is_not_heard_and_gets_nothing(
    router: Router, dealer: Dealer, stranger: zmq.Socket[bytes], tmp_path: Path
) -> None:
    stranger.setsockopt(zmq.IDENTITY, b"w-1")
    stranger.connect(f"ipc://{tmp_path / 'workers.sock'}")
    stranger.send(encode(Pong(666)))
    for nonce in range(100):
        router.send("w-1", Ping(nonce))
        assert dealer.receive(WAIT_MS) == Ping(nonce)
        dealer.send(Pong(nonce))
    assert take(router, 100) == [("w-1", Pong(nonce)) for nonce in range(100)]
    assert stranger.poll(0) == 0


def test_a_message_beyond_the_limit_is_not_read(
    router: Router, dealer: Dealer, stranger: zmq.Socket[bytes], tmp_path: Path
) -> None:
    stranger.setsockopt(zmq.IDENTITY, b"big")
    stranger.setsockopt(zmq.RECONNECT_IVL, -1)
    with stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED) as events:
        stranger.connect(f"ipc://{tmp_path / 'workers.sock'}")
        stranger.send(bytes((1 << 24) + 1))
        assert events.poll(WAIT_MS), "the connection was kept"
        stranger.disable_monitor()
    dealer.send(Pong(2))
    assert take(router, 1) == [("w-1", Pong(2))]


def test_nothing_that_the_ledger_allows_is_dropped_by_a_water_mark(router: Router, dealer: Dealer) -> None:
    """A worker that is deep in its work reads nothing for a while: 1024 answers resumed at 500 tokens."""
    ref = SlotRef(1, 2, 3, 4, 5)
    works = [Batch((Work(n, 1, "chat", ref, ref, 900, tuple(range(500))),)) for n in range(4096)]
    assert all(router.send("w-1", work) for work in works)
    assert [dealer.receive(WAIT_MS) for _ in works] == works


def test_a_worker_refuses_nonsense(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(f"ipc://{tmp_path / 'fake.sock'}")
        dealer = Dealer(tmp_path / "fake.sock", "w-1")
        dealer.send(Pong(0))
        identity, _ = socket.recv_multipart()
        socket.send_multipart([identity, b"\xc1"])
        with pytest.raises(ProtocolError):
            dealer.receive(WAIT_MS)
        dealer.close()


def test_what_a_worker_said_last_is_flushed_when_it_closes(router: Router, tmp_path: Path) -> None:
    dealer = Dealer(tmp_path / "workers.sock", "w-9")
    dealer.send(Fault("config", "no such device"))
    dealer.close()
    assert take(router, 1) == [("w-9", Fault("config", "no such device"))]


def test_a_close_leaves_no_file_no_descriptor_and_does_not_wait(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    router = Router(tmp_path / "workers.sock")
    dealer = Dealer(tmp_path / "workers.sock", "w-1")
    dealer.send(Pong(0))
    take(router, 1)
    router.send("w-1", Ping(0))  # never read
    router.close()
    dealer.send(Pong(1))  # never delivered
    dealer.close(linger_ms=0)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before
