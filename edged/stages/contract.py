"""What a stage is to the loop that drives it (`edged/workers/loop.py`).

A stage knows no ZeroMQ, no slots and no processes: it takes items and gives payloads.
There are two shapes: a batch stage answers whole batches; a token stage streams.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, cast

import msgspec

from edged.errors import EdgedError
from edged.layers.report import LayerReport
from edged.messages import CacheCounters, Judgement

Payload = bytes | Sequence[bytes | memoryview]
"""A result: one buffer, or several that are written to the slot one behind the other."""


class Judged(bytes):
    """A result that also says what its stage thinks of it."""

    judgement: Judgement

    @classmethod
    def of(cls, payload: bytes, judgement: Judgement) -> Self:
        """The payload as it is, with a judgement."""
        judged = cls(payload)
        judged.judgement = judgement
        return judged


class Item(msgspec.Struct, frozen=True):
    """One piece of work; `payload` is a read-only view of the upstream slot, valid during the call."""

    request: int
    operation: str
    """`chat`, `embed`, `rerank` or `tensor`: which payload struct of `edged.messages` it carries."""
    payload: memoryview
    remaining_ms: int = 0
    resume_tokens: tuple[int, ...] = ()
    resume_characters: int = 0
    keep: int = 0
    """See `Work.keep`."""


class Progress(msgspec.Struct, frozen=True):
    """New tokens of one item; `first` is the index in the answer of the first of them."""

    request: int
    first: int
    tokens: tuple[int, ...]
    text: str


class Finished(msgspec.Struct, frozen=True):
    """The last event of an item that ended well."""

    request: int
    payload: Payload


class Broken(msgspec.Struct, frozen=True):
    """The last event of an item that failed alone."""

    request: int
    error: EdgedError


class Housekeeping(Protocol):
    """What every stage does beside answering."""

    def set_cores(self, count: int, /) -> None:
        """Keep at most `count` cores busy from now on, as far as the runtime can; `count` is at least 1."""
        ...

    def cache_counters(self) -> dict[str, CacheCounters]:
        """The stage's caches by name; empty when it has none."""
        ...

    def clear_caches(self, names: Collection[str], /) -> None:
        """Empty the caches of these names; no names means all. Unknown names are ignored."""
        ...


class BatchStage(Housekeeping, Protocol):
    """Answers a micro-batch: one result per item, in order; an `EdgedError` fails that item alone."""

    @property
    def details(self) -> Mapping[str, Any]:
        """Facts for `edgectl status`, msgpack-friendly: model, fingerprint, limits."""
        ...

    def run(self, items: Sequence[Item], /) -> Iterable[Payload | EdgedError]:
        """Run one micro-batch; a result that is given before the others is sent at once.

        A raised `DeviceLost` ends the worker; other errors fail the items that have no result yet.
        """
        ...

    @property
    def lanes(self) -> int:
        """Cores that a micro-batch spreads over, run by run: it heeds `set_cores` at once. 1: it does not."""
        ...

    def attend(self, look: Callable[[], None], /) -> None:
        """Call `look` between two runs of a micro-batch, in the thread of `run`: nowhere else."""
        ...

    def close(self) -> None:
        """Give memory back; idempotent."""
        ...


class TokenStage(Housekeeping, Protocol):
    """Answers items side by side, token by token."""

    @property
    def details(self) -> Mapping[str, Any]:
        """As in `BatchStage`."""
        ...

    @property
    def trouble(self) -> str:
        """What keeps the stage from its work although it lives; empty when nothing does."""
        ...

    def layer_report(self) -> LayerReport | None:
        """How the stages of a layer pipeline do; None where there is none. `BackendError`: one has died."""
        ...

    @property
    def room(self) -> int:
        """How many more items `admit` takes now."""
        ...

    @property
    def active(self) -> int:
        """How many items are being answered."""
        ...

    def admit(self, item: Item, /) -> None:
        """Start an item, or raise the `EdgedError` that is its answer. Copies what it needs."""
        ...

    def step(self) -> list[Progress | Finished | Broken]:
        """Advance by one token boundary."""
        ...

    def cancel(self, request: int, /) -> None:
        """Drop an item at once; no event follows."""
        ...

    def close(self) -> None:
        """Give memory back; idempotent."""
        ...


def as_streaming(stage: BatchStage | TokenStage) -> TokenStage | None:
    """The stage as a token stage, or None when it answers whole batches."""
    return cast("TokenStage", stage) if hasattr(stage, "admit") else None
