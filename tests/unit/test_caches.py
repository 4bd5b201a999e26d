"""The caches of the stages: bounded, honest about their size, never another answer than a cold one's."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.dispatch.status import all_caches
from edged.errors import ConfigError
from edged.messages import CacheCounters
from edged.stages.caches import (
    ENTRY_BYTES,
    Cache,
    Row,
    clear,
    counters_of,
    key,
    limit_option,
    remembered,
)
from edged.stages.encoder import BATCH_TEXTS, BATCH_TOKENS, lone_rows, micro_batches

texts = st.text("ab\x00é", max_size=3)


def test_least_recently_used_goes_first_and_is_counted() -> None:
    cache: Cache[str] = Cache(2 * (ENTRY_BYTES + 10))
    cache.put(b"1", "one", 10)
    cache.put(b"2", "two", 10)
    assert cache.get(b"1") == "one"
    cache.put(b"3", "three", 10)
    assert [cache.get(name) for name in (b"1", b"2", b"3")] == ["one", None, "three"]
    counters = cache.counters
    assert (counters.entries, counters.hits, counters.misses, counters.evictions) == (2, 3, 1, 1)
    assert counters.bytes == counters.limit_bytes


def test_replacing_an_entry_is_no_eviction() -> None:
    cache: Cache[str] = Cache(1 << 12)
    cache.put(b"1", "one", 10)
    cache.put(b"1", "uno", 20)
    assert (cache.get(b"1"), cache.counters.evictions, cache.counters.bytes) == ("uno", 0, ENTRY_BYTES + 20)


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache: Cache[str] = Cache(1000)
    cache.put(b"1", "one", 1001)
    assert cache.get(b"1") is None
    assert cache.counters.entries == 0


def test_a_cache_of_no_bytes_is_off() -> None:
    cache: Cache[str] = Cache(0)
    cache.put(b"1", "one", 0)
    assert cache.get(b"1") is None
    assert counters_of({"x": cache}) == {}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 900)), max_size=60))
def test_the_bound_holds_whatever_is_kept(puts: list[tuple[int, int]]) -> None:
    cache: Cache[int] = Cache(3000)
    for name, size in puts:
        cache.put(bytes([name]), size, size)
        assert cache.counters.bytes <= 3000
    assert cache.counters.entries + cache.counters.evictions <= len(puts)


def test_the_bytes_that_are_told_are_bytes_that_are_taken() -> None:
    """Otherwise a bound in bytes would bound nothing."""
    cache: Cache[tuple[Row[np.ndarray], ...]] = Cache(64 << 20)
    tracemalloc.start()
    for number in range(5000):
        vector = np.full(96, number, np.float32)
        remembered(
            cache,
            b"model",
            [(str(number),)],
            lambda _, v=vector: [Row(v, 7)],
            row_bytes=4 * 96 + 160,
            alone=True,
        )
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 < cache.counters.bytes / taken < 1.3


def test_clearing_by_name_leaves_the_others() -> None:
    caches: dict[str, Cache[str]] = {"a": Cache(4096), "b": Cache(4096)}
    for cache in caches.values():
        cache.put(b"1", "one", 1)
    clear(caches, ["a", "stranger"])
    assert [cache.counters.entries for cache in caches.values()] == [0, 1]
    clear(caches, [])
    assert [cache.counters.entries for cache in caches.values()] == [0, 0]


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_keys_are_equal_only_for_equal_parts(left: list[str], right: list[str]) -> None:
    assert (key(*left) == key(*right)) == (left == right)


@pytest.mark.parametrize("value", [-1, 1.5, "8", True, 1 << 20])
def test_a_limit_is_a_whole_number_of_mebibytes(value: object) -> None:
    with pytest.raises(ConfigError, match="x_mib"):
        limit_option({"x_mib": value}, "x_mib", default_mib=8)


rows = st.lists(st.tuples(st.sampled_from("qr"), st.sampled_from("abcdef")), max_size=8)


@given(st.lists(rows, max_size=12), st.booleans(), st.integers(0, 4000))
def test_a_warm_cache_gives_what_a_cold_one_gives(
    questions: list[list[tuple[str, str]]], alone: bool, limit_bytes: int
) -> None:
    """Without `alone` the model answers by company too, as one that is quantised dynamically does."""
    cache: Cache[tuple[Row[str], ...]] = Cache(limit_bytes)
    for question in questions:

        def model(wanted: list[int], question: list[tuple[str, str]] = question) -> list[Row[str]]:
            company = "" if alone else str([question[row] for row in wanted])
            return [Row(f"{question[row]}{company}", row) for row in wanted]

        warm = remembered(cache, b"", question, model, row_bytes=64, alone=alone)
        assert [row.value for row in warm] == [row.value for row in model(list(range(len(question))))]


def test_rows_that_are_there_are_not_computed_again_nor_twice() -> None:
    asked: list[int] = []
    cache: Cache[tuple[Row[int], ...]] = Cache(1 << 20)

    def model(wanted: list[int]) -> list[Row[int]]:
        asked.extend(wanted)
        return [Row(row, 1) for row in wanted]

    remembered(cache, b"", [("q", "a"), ("q", "b")], model, row_bytes=8, alone=True)
    remembered(cache, b"", [("q", "b"), ("q", "c"), ("q", "c")], model, row_bytes=8, alone=True)
    assert asked == [0, 1, 2]
    remembered(cache, b"other", [("q", "a")], model, row_bytes=8, alone=True)
    assert asked == [0, 1, 2, 0]


def test_the_counters_of_workers_are_added_up() -> None:
    one = CacheCounters(entries=1, bytes=2, limit_bytes=3, hits=4, misses=5, evictions=6)
    total = all_caches([{"a": one}, {"a": one, "b": one}, {}])
    assert total["b"] == one
    assert total["a"] == CacheCounters(entries=2, bytes=4, limit_bytes=6, hits=8, misses=10, evictions=12)


# ------------------------------------------------------------------ how rows are cut into runs

lengths = st.lists(st.integers(1, 512), max_size=40)


def cost(runs: list[list[int]], sizes: list[int], run_tokens: int) -> int:
    return sum(run_tokens + len(run) * max(sizes[row] for row in run) for run in runs)


@given(lengths, st.integers(0, 1000))
def test_every_row_is_run_once_within_the_bounds(sizes: list[int], run_tokens: int) -> None:
    for runs in (micro_batches(sizes, run_tokens), lone_rows(sizes)):
        assert sorted(row for run in runs for row in run) == list(range(len(sizes)))
    for run in micro_batches(sizes, run_tokens):
        assert len(run) <= BATCH_TEXTS
        assert len(run) == 1 or len(run) * max(sizes[row] for row in run) <= BATCH_TOKENS


@given(st.lists(st.integers(1, 512), min_size=1, max_size=7), st.integers(0, 1000))
def test_no_other_cut_of_the_sorted_rows_is_cheaper(sizes: list[int], run_tokens: int) -> None:
    order = sorted(range(len(sizes)), key=lambda row: -sizes[row])
    cheapest = min(cost(split(order, marks), sizes, run_tokens) for marks in range(1 << (len(order) - 1)))
    assert cost(micro_batches(sizes, run_tokens), sizes, run_tokens) == cheapest


def split(order: list[int], marks: int) -> list[list[int]]:
    runs = [[order[0]]]
    for position, row in enumerate(order[1:]):
        if marks >> position & 1:
            runs.append([])
        runs[-1].append(row)
    return runs


def test_a_dear_run_takes_all_and_a_free_one_only_equals() -> None:
    assert micro_batches([7, 9, 9], 10_000) == [[1, 2, 0]]
    assert sorted(map(len, micro_batches([7, 9, 9], 0))) in ([1, 2], [1, 1, 1])
