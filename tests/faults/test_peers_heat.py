"""Two daemons in two network namespaces, each with a sensor of its own: heat moves answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.config import Governor
from edged.testing.heat_box import COOL_C, Box, changes, governor, hurried, wait_rung
from edged.testing.network import refusal as no_network
from edged.testing.pair import Pair, paired
from edged.testing.sysfs import refusal as no_mounts

from .test_peers import GENERATOR, QUICK, ask, once, peers_of

REFUSAL = no_network() or no_mounts()
pytestmark = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)

BUILT_IN = Governor()
LADDER = """ladder = [
  { name = "full" },
  { name = "peer", peer = true },
  { name = "shed-batch", peer = true, shed_batch = true },
]"""
BANDS = """[governor.temperature.cpu]
critical_c = 95
bands = [
  { rung = "peer", enter_c = 80, leave_c = 75 },
  { rung = "shed-batch", enter_c = 88, leave_c = 83 },
]"""
OTHERS = "".join(
    f"[governor.temperature.{kind}]\nbands = []\n" for kind in BUILT_IN.temperature if kind != "cpu"
)
LONG = 460
"""Tokens: longer than the governor takes to believe a sensor."""
WARM_C, HOT_C = 82.0, 90.0


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Box, Box]:
    folder = tmp_path_factory.mktemp("trees")
    return Box(folder / "a"), Box(folder / "b")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, boxes: tuple[Box, Box]) -> Iterator[Pair]:
    config = hurried(LADDER, more=BANDS + "\n" + OTHERS) + GENERATOR.replace(
        "decode_ms = 8", "decode_ms = 12"
    )
    folder: Path = tmp_path_factory.mktemp("peers")
    with paired(folder, lambda _: config, QUICK, program=lambda end: boxes[end].tree.command()) as made:
        yield made


@pytest.fixture(autouse=True)
def cool(pair: Pair, boxes: tuple[Box, Box]) -> None:
    for box, daemon in zip(boxes, pair.daemons, strict=True):
        box.heat(COOL_C)
        wait_rung(daemon, "full")
    pair.wait_useful()


def wait_away(pair: Pair) -> None:
    pair.home.wait_for(lambda status: bool(status.peers and status.peers.away), "answers to go elsewhere")


def test_a_warm_sensor_sends_answers_to_the_cool_box_and_a_cool_one_keeps_them(pair, boxes):
    alone = ask(pair.home, "warm")
    assert alone.node == "box-a"
    boxes[0].heat(WARM_C)
    wait_rung(pair.home, "peer")
    wait_away(pair)
    final = ask(pair.home, "warm")
    assert (final.node, final.text) == ("box-b", alone.text)
    boxes[0].heat(COOL_C)
    wait_rung(pair.home, "full")
    pair.home.wait_for(lambda status: bool(status.peers and not status.peers.away), "answers at home")
    assert ask(pair.home, "warm").node == "box-a"


def test_a_box_that_turns_hot_in_mid_answer_hands_it_on(pair, boxes):
    alone = ask(pair.other, "turns", max_tokens=LONG).text

    def heat() -> None:
        boxes[0].heat(HOT_C)
        wait_rung(pair.home, "shed-batch")

    final = ask(pair.home, "turns", once(heat, 5), LONG)
    assert (final.node, final.text, final.resumed) == ("box-b", alone, 1)


def test_a_hot_box_whose_peer_is_hot_too_keeps_its_answers(pair, boxes):
    for box, daemon in zip(boxes, pair.daemons, strict=True):
        box.heat(HOT_C)
        wait_rung(daemon, "shed-batch")
    pair.wait_peer(lambda peer: peer.hot, "a hot peer")
    taken = [peers_of(daemon).taken for daemon in pair.daemons]
    decided = [len(changes(daemon)) for daemon in pair.daemons]
    assert [ask(daemon, "both").node for daemon in pair.daemons] == ["box-a", "box-b"]
    assert [peers_of(daemon).taken for daemon in pair.daemons] == taken
    assert [len(changes(daemon)) for daemon in pair.daemons] == decided
    assert {governor(daemon).name for daemon in pair.daemons} == {"shed-batch"}
