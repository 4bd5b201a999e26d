"""What a stage remembers: bounded in bytes, least recently used first out, keyed by all it depends on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import msgspec
from cachetools import LRUCache

from edged.backend import Variant
from edged.errors import ConfigError
from edged.messages import CacheCounters

Value = TypeVar("Value")

ENTRY_BYTES = 448
"""What an entry takes beside its value (key, links, objects), rounded up: a test measures it."""
KEY_BYTES = 20
_MIB = 1 << 20
MOST_MIB = 1 << 16


class Cache(Generic[Value]):
    """Values by key, at most `limit_bytes` of them with what keeping them takes; 0 keeps nothing."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: LRUCache[bytes, tuple[Value, int]] = LRUCache(limit_bytes, getsizeof=_size)
        self._hits = self._misses = self._evictions = 0

    def get(self, key: bytes) -> Value | None:
        """The value kept under a key, or None."""
        if not self._limit_bytes:
            return None
        found = self._kept.get(key)
        self._hits, self._misses = self._hits + (found is not None), self._misses + (found is None)
        return found[0] if found else None

    def put(self, key: bytes, value: Value, size_bytes: int) -> None:
        """Keep a value that takes `size_bytes`; one that is larger than the cache is not kept."""
        size_bytes += ENTRY_BYTES
        if size_bytes > self._limit_bytes:
            return
        before = len(self._kept) + (key not in self._kept)
        self._kept[key] = (value, size_bytes)
        self._evictions += before - len(self._kept)

    def clear(self) -> None:
        """Forget everything; the counts of hits, misses and evictions go on."""
        self._kept.clear()

    @property
    def counters(self) -> CacheCounters:
        """How it does."""
        return CacheCounters(
            entries=len(self._kept),
            bytes=int(self._kept.currsize),
            limit_bytes=self._limit_bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )


def _size(entry: tuple[Any, int]) -> int:
    return entry[1]


class Row(msgspec.Struct, Generic[Value], frozen=True):
    """What a model gave for one row: the value, and how many tokens it read for it."""

    value: Value
    tokens: int


Rows = Cache[tuple[Row[Value], ...]]


def remembered(
    cache: Rows[Value],
    identity: bytes,
    rows: Sequence[tuple[str, ...]],
    compute: Callable[[list[int]], list[Row[Value]]],
    *,
    row_bytes: int,
    alone: bool,
) -> list[Row[Value]]:
    """What a model gives for rows of text: remembered where possible, computed in one call where not.

    With `alone` what a row gives depends on the row only, and each is kept by itself. Otherwise it depends
    on its company too (one scale of a dynamically quantised model serves a run): then rows are kept, and
    found, as the whole that they were computed in. Either way a warm cache gives what a cold one gives.
    """
    units = [[row] for row in range(len(rows))] if alone else [list(range(len(rows)))] if rows else []
    keys = [key(identity, *(text for row in unit for text in rows[row])) for unit in units]
    found = {each: cache.get(each) for each in dict.fromkeys(keys)}
    missing = {each: unit for each, unit in zip(keys, units, strict=True) if found[each] is None}
    fresh = iter(compute([row for unit in missing.values() for row in unit]) if missing else ())
    for each, unit in missing.items():
        found[each] = entry = tuple(next(fresh) for _ in unit)
        cache.put(each, entry, row_bytes * len(unit))
    return [row for each in keys for row in found[each] or ()]


def key(*parts: str | bytes) -> bytes:
    """A key that differs when any part, or where one part ends and the next begins, differs.

    >>> key("ab", "c") == key("a", "bc"), len(key())
    (False, 20)
    """
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def identity_of(variant: Variant, *more: str) -> bytes:
    """What a model's answers depend on beside the text: its weights, its tokenizer's limits, its manifest.

    A worker holds one session for life, so backend, device and options need no place in a key.
    """
    facts = sorted(f"{name}={value!r}" for name, value in variant.details.items())
    tokenizer = str(variant.tokenizer or "")
    named = (variant.model, variant.name, variant.digest, str(variant.path), tokenizer)
    return key(*named, str(variant.context_tokens), *facts, *more)


def limit_option(options: Mapping[str, Any], name: str, *, default_mib: int) -> int:
    """An option in MiB, 0 for off, as bytes; `ConfigError` for anything that is not such a number.

    >>> limit_option({"scores_cache_mib": 2}, "scores_cache_mib", default_mib=8)
    2097152
    """
    value = options.get(name, default_mib)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_MIB:
        raise ConfigError(
            f"option {name!r} is {value!r}; give whole MiB from 0 (off) to {MOST_MIB}", param=name
        )
    return value * _MIB


def counters_of(caches: Mapping[str, Cache[Any]]) -> dict[str, CacheCounters]:
    """The counters of the caches that are on."""
    counters = {name: cache.counters for name, cache in caches.items()}
    return {name: each for name, each in counters.items() if each.limit_bytes}


def clear(caches: Mapping[str, Cache[Any]], names: Collection[Hashable]) -> None:
    """Empty the caches of these names, or all when there is none."""
    for name, cache in caches.items():
        if not names or name in names:
            cache.clear()
