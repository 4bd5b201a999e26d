"""What a new worker shows before the stage is switched to it: it can work, and its vectors fit the index."""

from __future__ import annotations

import time
from typing import Any, cast

import msgspec

from edged.errors import EdgedError
from edged.messages import ChatTask, EmbedTask, Message, RerankTask, encode
from edged.stages.contract import BatchStage, Broken, Finished, Item, Progress, TokenStage, as_streaming
from edged.workers.spec import StageSpec

TEXT = "What does the first question show?"
TOKENS = 4
REMAINING_MS = 60_000


def prove(stage: BatchStage | TokenStage, spec: StageSpec, *, guarded: bool) -> dict[str, Any]:
    """Do one piece of work, and measure a guarded retriever against its library: facts for `details`.

    What was loaded but cannot work raises here, while the former workers serve: what the runtime raises, or
    `IndexMismatch` with the figures. Kinds of stage whose input is not known do nothing.
    """
    began = time.perf_counter()
    if (streaming := as_streaming(stage)) is not None:
        _generate(streaming)
    elif spec.kind in _TASKS:
        _answer(cast("BatchStage", stage), spec.kind)
    stage.clear_caches(())
    shown: dict[str, Any] = {"warm_up_s": round(time.perf_counter() - began, 3)}
    if guarded and spec.kind == "retriever":
        shown |= _agree(stage, spec)
    return shown


_TASKS: dict[str, tuple[str, msgspec.Struct]] = {
    "retriever": ("embed", EmbedTask(texts=(TEXT,), kind="query")),
    "reranker": ("rerank", RerankTask(query=TEXT, documents=(TEXT,))),
}


def _agree(stage: BatchStage | TokenStage, spec: StageSpec) -> dict[str, Any]:
    from edged.documents.agreement import check_agreement, measure  # costs every other worker its start
    from edged.documents.library import Library
    from edged.stages.retriever import Retriever

    with Library.open(spec.library) as library:
        agreement = measure(library, cast("Retriever", stage).encoder)
    if agreement is None:
        return {}
    check_agreement(agreement, spec.variant)
    return {"agreement": msgspec.to_builtins(agreement)}


def _item(operation: str, task: msgspec.Struct) -> Item:
    return Item(0, operation, memoryview(encode(task)), REMAINING_MS)


def _answer(stage: BatchStage, kind: str) -> None:
    for result in stage.run([_item(*_TASKS[kind])]):
        if isinstance(result, EdgedError):
            raise result


def _generate(stage: TokenStage) -> None:
    task = ChatTask(messages=(Message("user", TEXT),), max_tokens=TOKENS)
    stage.admit(_item("chat", task))
    event: Progress | Finished | Broken | None = None
    while not isinstance(event, Finished):
        for event in stage.step():
            if isinstance(event, Broken):
                raise event.error
