"""Two daemons in two network namespaces: answers move when they should, and come home when they must."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edged.backend import Variant
from edged.peers.book import Book, Peer
from edged.replies import Delta, Final
from edged.report import PeersStatus, PeerStatus
from edged.testing.daemon import RunningDaemon
from edged.testing.network import refusal
from edged.testing.pair import NAMES, Pair, endpoint, paired

from .conftest import OFF

REFUSAL = refusal()
pytestmark = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)

QUICK = "ping_s = 0.1\nsilence_s = 0.6\nstall_s = 1.5\nfirst_wait_s = 0.2\nlongest_wait_s = 0.4\n"
GENERATOR = (
    f"{OFF}[stages.generator]\nbackend = 'simulated'\ndevice = 'sim:cpu'\nmax_batch = 2\ntimeout_s = 20\n"
    "options = { decode_ms = 8, max_sequences = 2, end_one_in = 0 }\n"
)
TOKENS = 90
"""As many as the rungs below leave an answer."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with paired(tmp_path_factory.mktemp("peers"), lambda _: GENERATOR, QUICK) as made:
        yield made


@pytest.fixture
def cool(pair: Pair) -> Iterator[Pair]:
    """The pair as it is at first, whatever a test before has done to it."""
    yield pair
    for daemon in pair.daemons:
        daemon.admin.release_rung()
        daemon.admin.pin_rung("full")
        daemon.wait_for(lambda status: bool(status.peers and not status.peers.away), "a cool box")
    pair.wait_useful()


def ask(
    daemon: RunningDaemon,
    text: str,
    during: Callable[[str], None] = lambda _: None,
    max_tokens: int = TOKENS,
) -> Final:
    """Stream an answer; `during` is called with what has come so far."""
    so_far = ""
    events = daemon.client.chat([{"role": "user", "content": text}], model="generator", max_tokens=max_tokens)
    for event in events:
        if isinstance(event, Delta):
            so_far += event.text
            during(so_far)
        else:
            final = event
    assert final.text == so_far
    return final


def once(action: Callable[[], object], after: int) -> Callable[[str], None]:
    """Act when so many characters have come."""
    done = threading.Event()

    def during(so_far: str) -> None:
        if len(so_far) >= after and not done.is_set():
            done.set()
            action()

    return during


def pin(daemon: RunningDaemon, rung: str) -> None:
    """Take a rung, and wait until the peers' side has heard of it."""
    wanted = daemon.admin.pin_rung(rung).settings
    urgent = wanted.peer and wanted.shed_batch
    daemon.wait_for(
        lambda status: bool(
            status.peers and (status.peers.away, status.peers.urgent) == (wanted.peer, urgent)
        ),
        f"rung {rung}",
    )


def wait_away(pair: Pair) -> None:
    """Wait until the peer would take an answer, and the rung that hands it on is taken again."""
    pair.wait_useful()
    pair.home.wait_for(lambda status: bool(status.peers and status.peers.away), "the rung to be back")


def peers_of(daemon: RunningDaemon) -> PeersStatus:
    status = daemon.client.status().peers
    assert status is not None
    return status


def test_a_full_box_hands_on_what_would_wait(cool: Pair) -> None:
    alone = {text: ask(cool.home, text).text for text in ("one", "two", "three", "four")}
    handed = cool.peer().handed
    with ThreadPoolExecutor(4) as pool:
        finals = dict(zip(alone, pool.map(lambda text: ask(cool.home, text), alone), strict=True))
    assert {text: final.text for text, final in finals.items()} == alone
    assert {final.node for final in finals.values()} == set(NAMES)
    assert cool.peer().handed - handed in {1, 2}
    assert not any(final.resumed for final in finals.values())


def test_a_hot_box_hands_on_everything(cool: Pair) -> None:
    alone = ask(cool.home, "heat").text
    pin(cool.home, "peer")
    final = ask(cool.home, "heat")
    assert (final.node, final.text, final.resumed) == ("box-b", alone, 0)
    assert 'device="peer:box-b"' in cool.home.client.metrics()


def test_a_hot_box_with_a_hot_peer_works_at_home(cool: Pair) -> None:
    pin(cool.home, "shed-batch")
    pin(cool.other, "shed-batch")
    cool.wait_peer(lambda peer: peer.hot, "a hot peer")
    before = [peers_of(daemon).taken for daemon in cool.daemons]
    assert {ask(daemon, "hot").node for daemon in cool.daemons} == set(NAMES)
    assert [peers_of(daemon).taken for daemon in cool.daemons] == before


def test_an_answer_that_came_from_a_peer_is_not_handed_back(cool: Pair) -> None:
    """The other box turns hot while it makes the answer; only it could hand it on, and only back."""
    alone = ask(cool.home, "hops").text
    pin(cool.home, "peer")
    taken = peers_of(cool.home).taken
    final = ask(cool.home, "hops", once(lambda: pin(cool.other, "shed-batch"), 10))
    assert (final.node, final.text, final.resumed) == ("box-b", alone, 0)
    assert peers_of(cool.home).taken == taken


def test_a_box_that_sheds_hands_on_what_it_has_begun(cool: Pair) -> None:
    alone = ask(cool.home, "begun").text
    final = ask(cool.home, "begun", once(lambda: pin(cool.home, "shed-batch"), 10))
    assert (final.node, final.text, final.resumed) == ("box-b", alone, 1)


def test_a_cut_cable_brings_the_answer_home_and_the_peer_returns(cool: Pair) -> None:
    alone = ask(cool.home, "cut").text
    pin(cool.home, "peer")
    returned = cool.peer().returned
    try:
        final = ask(cool.home, "cut", once(cool.cable.cut, 10))
    finally:
        cool.cable.mend()
    assert (final.node, final.text, final.resumed) == ("box-a", alone, 1)
    assert cool.peer().returned == returned + 1
    wait_away(cool)
    assert ask(cool.home, "cut").node == "box-b"
    cool.other.wait_for(
        lambda status: bool(status.peers and not any(peer.made_here for peer in status.peers.peers)),
        "the other box to give up what nobody waits for",
    )


def test_a_slow_peer_is_ejected_and_returns(cool: Pair) -> None:
    """Its daemon answers every question, and its worker stands still."""
    alone = ask(cool.home, "slow").text
    pin(cool.home, "peer")
    worker = cool.other.workers()[0].pid
    failures = cool.peer().failures
    try:
        final = ask(cool.home, "slow", once(lambda: os.kill(worker, signal.SIGSTOP), 10))
    finally:
        os.kill(worker, signal.SIGCONT)
    assert (final.node, final.text, final.resumed) == ("box-a", alone, 1)
    assert cool.peer().failures == failures + 1
    wait_away(cool)
    assert ask(cool.home, "slow").node == "box-b"


def test_a_client_that_leaves_frees_the_peer(cool: Pair) -> None:
    pin(cool.home, "peer")
    events = cool.home.client.chat(
        [{"role": "user", "content": "leave"}], model="generator", max_tokens=TOKENS
    )
    next(events)
    cool.wait_peer(lambda peer: peer.making == 1, "an answer on its way")
    events.close()
    cool.wait_peer(lambda peer: peer.making == 0 and peer.free == 2, "a free peer")
    assert peers_of(cool.other).peers[0].made_here == 0


def test_a_peer_that_is_removed_is_gone_and_may_come_again(cool: Pair) -> None:
    book = Book(cool.home.folder / "state")
    book.remove("box-b")
    cool.home.wait_for(lambda status: bool(status.peers and not status.peers.peers), "no peer")
    cool.other.wait_for(
        lambda status: bool(status.peers and status.peers.peers[0].state != "up"), "nobody up"
    )
    book.add(Peer(name="box-b", key=cool.keys[1].public, endpoint=endpoint(1)))
    cool.wait_useful()


def test_a_peer_that_forgot_this_box_is_up_again_once_it_lists_it(cool: Pair) -> None:
    """Who is refused hears why, and is let in as soon as the other side has changed its mind."""
    book = Book(cool.other.folder / "state")
    book.remove("box-a")
    cool.wait_peer(
        lambda peer: peer.state == "ejected" and "does not know this node's key" in peer.reason,
        "a refusal with its reason",
    )
    book.add(Peer(name="box-a", key=cool.keys[0].public, endpoint=endpoint(0)))
    cool.wait_useful()


def real(_: int) -> str:
    stage = "model = 'smollm2-135m-instruct'\nvariant = 'q4_1'\nbackend = 'openvino'\nmax_batch = 4"
    return f"{OFF}[stages.generator]\n{stage}\noptions = {{ exact = true, threads = 1 }}\n"


def test_tokens_of_a_real_model_are_those_of_an_undisturbed_run(
    tmp_path: Path, variant: Callable[[str, str], Variant]
) -> None:
    """There and back: handed on in the middle, and home again when the cable is cut."""
    weights = variant("smollm2-135m-instruct", "q4_1").path.parent
    question = "Write a short story about a lighthouse keeper."
    with paired(tmp_path, real, QUICK, models=[weights]) as pair:
        alone = ask(pair.home, question, max_tokens=48)
        begun = once(lambda: pin(pair.home, "shed-batch"), 10)
        cut = once(pair.cable.cut, 90)

        def during(so_far: str) -> None:
            begun(so_far)
            cut(so_far)

        moved = ask(pair.home, question, during, max_tokens=48)
        handed: PeerStatus = pair.peer()
        pair.cable.mend()
    assert (moved.text, moved.usage) == (alone.text, alone.usage)
    assert (moved.node, moved.resumed, handed.handed, handed.returned) == ("box-a", 2, 1, 1)
