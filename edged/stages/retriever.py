"""The retriever: finds passages for questions, and embeds texts for whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np

from edged.backend import TensorSession, Variant
from edged.documents.index import check_family
from edged.documents.library import Library
from edged.errors import BadRequest, EdgedError
from edged.messages import CacheCounters, ChatTask, EmbedAnswer, EmbedTask, Passage, decoder, encode
from edged.stages.contract import Item, Payload
from edged.stages.encoder import Encoder
from edged.stages.options import count_option, each

_decode_chat: Callable[[bytes | memoryview], ChatTask] = decoder(ChatTask)
_decode_embed: Callable[[bytes | memoryview], EmbedTask] = decoder(EmbedTask)


class Retriever:
    """Operations `chat` (fills `passages` of a grounded task) and `embed`."""

    OPTIONS = frozenset({"candidates"})

    def __init__(
        self, session: TensorSession, variant: Variant, library: Path, options: Mapping[str, Any]
    ) -> None:
        self._candidates = count_option(options, "candidates", default=20, most=200)
        self._session = session
        self._encoder = Encoder(session, variant)
        # One thread searches: the cores belong to whoever the dispatcher gave them to.
        faiss.omp_set_num_threads(1)
        self._library = Library.open(library)
        if self._library.manifest:
            check_family(self._library.manifest, self._encoder.fingerprint)

    @property
    def details(self) -> Mapping[str, Any]:
        """Model, fingerprint and limits; what the library holds changes, and is asked of the library."""
        return {
            "model": self._encoder.variant.model,
            "variant": self._encoder.variant.name,
            "fingerprint": self._encoder.fingerprint,
            "dimension": self._encoder.dimension,
            "context_tokens": self._encoder.variant.context_tokens,
            "candidates": self._candidates,
        }

    def run(self, items: Sequence[Item]) -> Iterator[Payload | EdgedError]:
        """Answer a micro-batch, each item as soon as it is done; its questions are searched in one run."""
        tasks = [each(self._read, item) for item in items]
        grounded = [task for task in tasks if isinstance(task, ChatTask) and task.grounded]
        found = iter(self._search(grounded))
        for item, task in zip(items, tasks, strict=True):
            yield self._answer(item, task, found)

    def _read(self, item: Item) -> ChatTask | EmbedTask:
        if item.operation == "embed":
            return _decode_embed(item.payload)
        if item.operation != "chat":
            raise BadRequest(f"the retriever does not do {item.operation!r}; it does chat and embed")
        task = _decode_chat(item.payload)
        if task.grounded:
            question(task)
        return task

    def _answer(
        self, item: Item, task: ChatTask | EmbedTask | EdgedError, found: Any
    ) -> Payload | EdgedError:
        if isinstance(task, EdgedError):
            return task
        if isinstance(task, EmbedTask):
            return each(self._embed, task)
        if not task.grounded:
            return bytes(item.payload)
        passages = next(found)
        if isinstance(passages, EdgedError):
            return passages
        return encode(msgspec.structs.replace(task, passages=tuple(passages)))

    def _search(self, tasks: Sequence[ChatTask]) -> list[list[Passage] | EdgedError]:
        """Passages for each task; a library that cannot be used fails these tasks, and no others."""
        if not tasks:
            return []
        try:
            return [*self._passages(tasks)]
        except EdgedError as error:
            if error.code == "device_lost":
                raise
            return [error for _ in tasks]

    def _passages(self, tasks: Sequence[ChatTask]) -> list[list[Passage]]:
        self._library.refresh()
        if self._library.manifest is None:
            return [[] for _ in tasks]
        questions = [question(task) for task in tasks]
        wanted = [task.candidates or self._candidates for task in tasks]
        # One at a time: a model quantised dynamically to int8 gives other vectors in other company.
        vectors = np.concatenate([self._encoder.embed([text], "query")[0] for text in questions])
        found = self._library.search(questions, vectors, self._encoder.fingerprint, max(wanted))
        return [passages[:count] for passages, count in zip(found, wanted, strict=True)]

    def _embed(self, task: EmbedTask) -> Payload:
        vectors, tokens = self._encoder.embed(task.texts, task.kind)
        count, dimension = vectors.shape
        data = vectors.astype("<f4").tobytes()
        return encode(EmbedAnswer(count=count, dimension=dimension, vectors=data, tokens=tokens))

    def set_cores(self, count: int) -> None:
        """See `Housekeeping.set_cores`."""
        self._session.set_threads(count)

    def cache_counters(self) -> dict[str, CacheCounters]:
        """See `Housekeeping.cache_counters`."""
        return {}

    def clear_caches(self, names: Collection[str]) -> None:
        """See `Housekeeping.clear_caches`."""

    def close(self) -> None:
        """Give memory and files back; idempotent."""
        self._library.close()
        self._session.close()


def question(task: ChatTask) -> str:
    """The last user message: what is searched for and reranked against. `BadRequest` without one."""
    for message in reversed(task.messages):
        if message.role == "user" and message.content.strip():
            return message.content
    raise BadRequest("a grounded chat needs a user message with some text", param="messages")
