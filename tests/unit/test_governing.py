"""The governor at work, without stages and sensors: when it looks again, and what becomes of refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from edged.catalogue import Catalogue
from edged.config import BUILT_IN, Config
from edged.config.tables import Rung
from edged.dispatch.ledger import Ledger, Slots
from edged.governor.governing import LOOK_AGAIN_S, Governing
from edged.governor.history import History
from edged.governor.readings import Readings, Senses
from edged.governor.senses import Sensing
from edged.governor.variants import Variants
from edged.governor.wishes import Wish
from edged.models.store import ModelStore
from tests.conftest import MODELS

CONFIG = msgspec.convert(BUILT_IN, Config)
MISSING = {"variants": "it is not here: edgectl models pull", "frugal": "nothing to save"}


class Scripted:
    """Variants that a test has there or not, and that come up when it says so."""

    def __init__(self) -> None:
        self.looks = 0
        self.missing: dict[str, str] = {}
        self.there = True
        self.told: Callable[[str], None] | None = None
        self.pursuing = False

    def lacking(self, ladder: Sequence[Rung]) -> list[dict[str, str]]:
        self.looks += 1
        return [self.missing for _ in ladder]

    def stirred(self) -> bool:
        return False

    def at(self, wanted: Mapping[str, Wish]) -> bool:
        return self.there or not wanted

    def aim(self, _wanted: Mapping[str, Wish], told: Callable[[str], None]) -> None:
        self.told = told

    def leave_none_alone(self) -> None:
        """See `Variants.leave_none_alone`."""


class Box:
    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.variants = Scripted()
        dispatcher = SimpleNamespace(ledger=Ledger(Slots(0, 4)), now=lambda: self.now)
        self.governing = Governing(lambda: CONFIG, dispatcher, self.variants, History(folder))  # type: ignore[arg-type]
        self.governing.begin()

    def feel(self, seconds: float) -> None:
        self.now += seconds
        self.governing.feel(Sensing(), Senses(readings=Readings(at_s=self.now)))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_what_is_offered_as_before_is_not_looked_into(box: Box):
    before = box.variants.looks
    for _ in range(20):
        box.governing.offer("peer", available=False, why="it does not answer")
    assert box.variants.looks == before + 1
    for _ in range(20):
        box.governing.offer("peer", available=True)
    assert box.variants.looks == before + 2
    assert "peer" not in box.governing.status().unavailable


def test_weights_that_came_without_a_word_are_noticed(box: Box):
    box.variants.missing = MISSING
    box.governing.look_again()
    assert "lighter-models" in box.governing.status().unavailable
    box.feel(1.0)
    box.variants.missing = {}
    box.feel(LOOK_AGAIN_S - 1.0)
    assert "lighter-models" in box.governing.status().unavailable
    box.feel(1.0)
    assert "lighter-models" not in box.governing.status().unavailable


def test_each_stage_is_placed_once_a_look_however_many_rungs_ask_for_it():
    asked: list[str] = []
    swaps = SimpleNamespace(planned=asked.append, overrides={})
    store = ModelStore(MODELS, Catalogue.discover())
    variants = Variants(swaps, store, lambda: CONFIG)  # type: ignore[arg-type]
    ladder = (
        Rung(name="a", frugal=("generator",)),
        Rung(name="b", variants={"generator": "lighter", "reranker": "lighter"}, frugal=("generator",)),
    )
    found = variants.lacking(ladder)
    assert sorted(asked) == ["generator", "reranker"]
    assert found[0]["frugal"] == "stage generator cannot be placed"
