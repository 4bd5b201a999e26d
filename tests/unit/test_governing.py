"""The governor at work, without stages and sensors: when it looks again, and what becomes of refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from edged.catalogue import Catalogue
from edged.config import BUILT_IN, Config
from edged.config.tables import Governor, Rung, Thermal, ThermalBand
from edged.dispatch.ledger import Ledger, Slots
from edged.governor.governing import LOOK_AGAIN_S, Governing
from edged.governor.history import History
from edged.governor.ladder import REFUSED_S
from edged.governor.readings import DeviceHeat, Readings, Senses
from edged.governor.senses import Sensing
from edged.governor.variants import Variants
from edged.governor.wishes import Wish
from edged.models.store import ModelStore
from edged.placement.applied import Step
from tests.conftest import MODELS

from .test_frugal import spec

CONFIG = msgspec.convert(BUILT_IN, Config)
HOT_C = 90.0
BAND = Thermal(critical_c=100.0, bands=(ThermalBand(rung="light", enter_c=80.0, leave_c=70.0),))
TWO_RUNGS = msgspec.structs.replace(
    CONFIG,
    governor=Governor(
        ladder=(Rung(name="full"), Rung(name="light", variants={"generator": "lighter"})),
        temperature={"cpu": BAND},
        load=(),
        memory=(),
        stall=(),
        dwell_s=2.0,
        climb_after_s=5.0,
    ),
)
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
    def __init__(self, folder: Path, config: Config = CONFIG) -> None:
        self.now = 0.0
        self.variants = Scripted()
        dispatcher = SimpleNamespace(ledger=Ledger(Slots(0, 4)), now=lambda: self.now)
        self.governing = Governing(lambda: config, dispatcher, self.variants, History(folder))  # type: ignore[arg-type]
        self.governing.begin()

    def feel(self, seconds: float, celsius: float | None = None) -> None:
        self.now += seconds
        heat = () if celsius is None else (DeviceHeat(device="cpu", celsius=celsius, filtered_c=celsius),)
        self.governing.feel(Sensing(), Senses(readings=Readings(at_s=self.now), devices=heat))

    def aimed(self) -> Callable[[str], None]:
        """Stay hot until variants are asked for; who is told what became of them."""
        while self.variants.told is None:
            self.feel(1.0, HOT_C)
        told, self.variants.told = self.variants.told, None
        return told


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


def test_a_rung_whose_variants_load_for_long_and_fail_is_left_out_longer_each_time(tmp_path: Path):
    box, waits_s = Box(tmp_path, TWO_RUNGS), []
    box.variants.there = False
    told = box.aimed()
    for _ in range(2):
        for _ in range(int(TWO_RUNGS.governor.dwell_s) + 2):
            box.feel(1.0, HOT_C)
        assert not box.governing.status().under_way, "heat does not wait for what loads"
        told("no memory")
        before = box.now
        told = box.aimed()
        waits_s.append(box.now - before)
    assert [round(wait_s / REFUSED_S) for wait_s in waits_s] == [1, 2]


def test_variants_that_come_late_end_the_count_of_refusals(tmp_path: Path):
    box = Box(tmp_path, TWO_RUNGS)
    box.variants.there = False
    box.aimed()("no memory")
    told = box.aimed()
    for _ in range(int(TWO_RUNGS.governor.dwell_s) + 2):
        box.feel(1.0, HOT_C)
    told("")
    assert box.governing._state.refusals == {}


def test_each_stage_is_placed_once_a_look_however_many_rungs_ask_for_it():
    asked: list[str] = []
    swaps = SimpleNamespace(planned=asked.append, is_overridden=lambda _: False)
    store = ModelStore(MODELS, Catalogue.discover())
    variants = Variants(swaps, store, lambda: CONFIG)  # type: ignore[arg-type]
    ladder = (
        Rung(name="a", frugal=("generator",)),
        Rung(name="b", variants={"generator": "lighter", "reranker": "lighter"}, frugal=("generator",)),
    )
    found = variants.lacking(ladder)
    assert sorted(asked) == ["generator", "reranker"]
    assert found[0]["frugal"] == "stage generator cannot be placed"


def test_a_variant_on_another_backend_is_in_force_without_the_options_that_this_one_lacks():
    planned = Step(spec=spec("llama_cpp", threads=2, exact=False), workers=1)
    elsewhere = spec("torch_pipeline", threads=2)
    light = msgspec.structs.replace(elsewhere.variant, name="light")
    running = Step(spec=msgspec.structs.replace(elsewhere, variant=light), workers=1)
    swaps = SimpleNamespace(
        planned=lambda _: planned, meant=lambda _: running, is_overridden=lambda _: False, plans=(0, False)
    )
    store = SimpleNamespace(present=lambda *_: True)
    variants = Variants(swaps, store, lambda: CONFIG)  # type: ignore[arg-type]
    assert variants.at({"generator": Wish("light")})
    assert not variants.at({"generator": Wish("lightest")})
