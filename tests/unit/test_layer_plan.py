"""The planner of layer pipelines, against trying out every partition."""

from __future__ import annotations

from itertools import combinations, pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import ConfigError
from edged.layers.planning import partition
from edged.layers.planning.bubble import around_s, period_s
from edged.layers.planning.costs import UNIT, LayerCosts, Sizes, estimated, sizes_of
from edged.layers.planning.partition import Load, Placed, stage_bytes, stage_seconds
from edged.layers.planning.plan import Candidate, LayerPlan, Work, even, plan, shares, weighted
from edged.layers.planning.prospects import words
from edged.layers.share import Architecture

SMOLLM2 = Architecture(
    family="llama",
    layers=30,
    hidden=576,
    intermediate=1536,
    heads=9,
    key_value_heads=3,
    head_dimension=64,
    vocabulary=49152,
    context_tokens=8192,
    tied=True,
)
SIZES = sizes_of(SMOLLM2, "float32", 2048)
ALIKE = [Candidate(id=f"cuda:{number}") for number in range(4)]


def planned(candidates=ALIKE, kind="weighted", costs=None, sizes=SIZES, **work) -> LayerPlan:
    load = Work(**{"micro_batches": len(candidates), "prompt_tokens": 1920, **work})
    return plan(sizes, costs or estimated(sizes, load.micro_batch), candidates, load, kind)


# ------------------------------------------------------------------ even


@given(st.integers(1, 200), st.data())
def test_even_is_the_greedy_remainder(layers: int, data: st.DataObject):
    stages = data.draw(st.integers(1, layers))
    found = even(layers, stages)
    sizes = [share.layers for share in found]
    assert sum(sizes) == layers
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] == (layers % stages > 0)
    assert [share.first for share in found[1:]] == [share.end for share in found[:-1]]
    assert [share.embedding for share in found] == [index == 0 for index in range(stages)]
    assert [share.head for share in found] == [index == stages - 1 for index in range(stages)]


@pytest.mark.parametrize("stages", [0, 4])
def test_more_stages_than_layers_are_refused(stages: int):
    with pytest.raises(ConfigError, match="take 1 to 3 stages") as refusal:
        even(3, stages)
    assert refusal.value.param == "stages"


# ------------------------------------------------------------------ weighted


def every_partition(sizes: Sizes, candidates: list[Candidate]) -> list[tuple[Placed, ...]]:
    found = []
    for count in range(1, min(len(candidates), sizes.layers) + 1):
        for used in combinations(range(len(candidates)), count):
            for cuts in combinations(range(1, sizes.layers), count - 1):
                ends = (0, *cuts, sizes.layers)
                laid = shares([after - before for before, after in pairwise(ends)])
                found.append(
                    tuple(
                        Placed(place, candidates[place], share)
                        for place, share in zip(used, laid, strict=True)
                    )
                )
    return found


def fits(placed: tuple[Placed, ...], sizes: Sizes, load: Load) -> bool:
    return all(
        not each.candidate.memory_bytes
        or stage_bytes(each.share, sizes, load.sequences) <= each.candidate.memory_bytes
        for each in placed
    )


def price(placed: tuple[Placed, ...], costs: LayerCosts, load: Load) -> float:
    stage_s = [stage_seconds(each, costs) for each in placed]
    return period_s(load.mode, around_s(stage_s, costs.hop_s), max(stage_s), load.micro_batches)


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.just("device"),
        speed=st.sampled_from([0.125, 0.5, 1.0, 2.0, 3.0, 7.5]),
        memory_bytes=st.sampled_from([0, 0, 20, 45, 90, 200]),
    ),
    min_size=1,
    max_size=4,
)
COSTS = st.builds(
    LayerCosts,
    layer_s=st.sampled_from([1.0, 2.5]),
    embedding_s=st.sampled_from([0.0, 0.5]),
    head_s=st.sampled_from([0.0, 4.0, 20.0]),
    stage_s=st.sampled_from([0.0, 0.0, 1.5]),
    hop_s=st.sampled_from([0.0, 0.0, 0.75]),
)
LOADS = st.builds(
    Load,
    mode=st.sampled_from(["ring", "flush", "naive"]),
    micro_batches=st.integers(1, 6),
    sequences=st.integers(1, 3),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 8), CANDIDATES, COSTS, LOADS, st.booleans())
def test_no_partition_is_better_than_the_weighted_one(layers, candidates, costs, load, tied):
    sizes = Sizes(
        layers=layers,
        layer_bytes=10,
        embedding_bytes=15,
        head_bytes=16,
        shared_bytes=15 * tied,
        cache_bytes=2,
    )
    possible = [each for each in every_partition(sizes, candidates) if fits(each, sizes, load)]
    if not possible:
        with pytest.raises(ConfigError, match="are missing"):
            weighted(sizes, costs, candidates, load)
        return
    found = weighted(sizes, costs, candidates, load)
    assert fits(found, sizes, load)
    assert found in possible
    least = min(price(each, costs, load) for each in possible)
    assert price(found, costs, load) == pytest.approx(least)
    used = {each.place for each in found}
    as_good = [{p.place for p in each} for each in possible if price(each, costs, load) <= least * (1 + 1e-9)]
    assert not any(others < used for others in as_good), "a device that does not help is left out"


def test_equal_devices_without_ends_are_split_evenly():
    placed = weighted(Sizes(layers=30), UNIT, ALIKE, Load(micro_batches=4))
    assert tuple(each.share for each in placed) == even(30, 4)


def test_the_head_is_worth_layers():
    by_weight, by_number = planned(), planned(kind="even")
    assert by_number.sizes == (8, 8, 7, 7)
    assert by_weight.sizes == (9, 9, 9, 3)
    assert by_weight.times_one_device > 1.3 * by_number.times_one_device
    assert by_weight.bubble < by_number.bubble


def test_many_devices_are_planned_at_once():
    candidates = [Candidate(id=f"cuda:{number}", speed=1 + number % 3) for number in range(24)]
    found = planned(candidates, sizes=msgspec.structs.replace(SIZES, layers=126))
    assert sum(found.sizes) == 126


def test_the_search_ends_where_the_shortest_way_fits(monkeypatch: pytest.MonkeyPatch):
    found: list[list[int]] = []

    def counted(rows, *rest):
        found.append([row.place for row in rows])
        return shortest_way(rows, *rest)

    shortest_way = partition._shortest_way
    monkeypatch.setattr(partition, "_shortest_way", counted)
    placed = weighted(
        Sizes(layers=8), UNIT, [Candidate(id="fast"), Candidate(id="slow", speed=0.125)], Load()
    )
    assert [each.candidate.id for each in placed] == ["fast"]
    assert found == [[0], [0, 1], [1]], "once each"


def test_too_many_or_no_devices_are_refused():
    for count in (0, 65):
        with pytest.raises(ConfigError, match="1 to 64"):
            weighted(SIZES, UNIT, [Candidate(id="cpu")] * count, Load())


def test_a_model_that_fits_nowhere_is_refused_with_what_is_missing():
    small = [Candidate(id="cuda:0", memory_bytes=300 << 20), Candidate(id="cuda:1", memory_bytes=200 << 20)]
    with pytest.raises(ConfigError, match=r"cuda:0 \(300\.0 MiB\) takes \d+, .* MiB are missing") as refusal:
        planned(small)
    assert refusal.value.param == "devices"
    needed = SIZES.total_bytes + SIZES.embedding_bytes + 30 * 2 * SIZES.cache_bytes
    stated = float(refusal.value.message.split("about ")[1].split(" MiB")[0])
    assert stated == pytest.approx((needed >> 20) - 500, abs=2 * 20)


def test_an_even_split_that_does_not_fit_names_the_stage():
    devices = [Candidate(id="cuda:0", memory_bytes=1 << 30), Candidate(id="cuda:1", memory_bytes=300 << 20)]
    with pytest.raises(ConfigError, match=r"15 layers with .* on cuda:1"):
        planned(devices, kind="even")
    assert planned(devices).sizes[0] > 15


# ------------------------------------------------------------------ what a plan says


def test_bytes_are_those_of_the_architecture():
    found = planned(kind="even", micro_batch=2, tokens=128)
    for stage in found.stages:
        assert stage.weight_bytes == SMOLLM2.parameters_of(stage.share) * 4
        assert stage.cache_bytes == stage.share.layers * 8 * SMOLLM2.cache_bytes(2048, 4)
    assert (found.decode_hop_bytes, found.return_bytes) == (2 * 2304, 16)
    assert found.prefill_hop_bytes == 2 * 1920 * 2304
    (alone,) = planned([ALIKE[0]]).stages
    assert alone.weight_bytes == SMOLLM2.parameters_of(alone.share) * 4


def test_one_request_at_a_time_is_told_that_it_gains_room_and_not_speed():
    found = planned(kind="even", requests=1)
    assert found.times_one_device == pytest.approx(1, abs=0.01)
    assert found.spare_micro_batches == 3
    said = " ".join(words(found))
    assert "take turns" in said
    assert "not speed" in said
    assert "4 requests at a time" in said


def test_slices_of_one_batch_gain_nothing_and_more_requests_do():
    costs = LayerCosts(layer_s=0.001)
    found = planned([*ALIKE[:2]], kind="even", costs=costs, tokens=1000)
    assert found.times_one_batch == pytest.approx(1, abs=0.01)
    assert found.times_one_device == pytest.approx(2, abs=0.01)
    assert found.measured
    assert "not in cutting a batch up" in " ".join(words(found))


def test_a_slow_device_is_left_out_with_figures_and_its_twin_is_not_confused_with_it():
    found = planned([Candidate(id="cpu"), Candidate(id="cpu", speed=0.001)])
    assert len(found.stages) == 1
    (dropped,) = found.dropped
    assert "one layer takes" in dropped.why
    assert "nothing is split" in " ".join(words(found))


def test_a_device_too_small_for_a_layer_is_left_out_for_that():
    found = planned([Candidate(id="cuda:0"), Candidate(id="igpu", memory_bytes=1 << 20)])
    assert "one layer takes" in found.dropped[0].why
    assert "1.0 MiB" in found.dropped[0].why


def test_a_split_that_makes_the_model_run_says_so():
    devices = [Candidate(id=f"cuda:{number}", memory_bytes=500 << 20) for number in range(2)]
    found = planned(devices)
    assert found.fits_alone is False
    assert any("the split makes it run" in line for line in words(found))


def test_seed_refuses_more_micro_batches_than_stages():
    with pytest.raises(ConfigError, match="micro_batches = 5"):
        planned(mode="seed", micro_batches=5)


@settings(deadline=None)
@given(st.sampled_from(["ring", "flush", "naive"]), st.integers(1, 8), st.integers(1, 40))
def test_nothing_beats_as_many_devices_as_there_are(mode, micro_batches, requests):
    found = planned(mode=mode, micro_batches=micro_batches, requests=requests)
    assert 0 <= found.bubble < 1
    assert 0.99 <= found.times_one_device <= len(found.stages)
    assert words(found)


def test_a_plan_survives_json():
    found = planned(micro_batch=2)
    assert msgspec.json.decode(msgspec.json.encode(found), type=LayerPlan) == found
