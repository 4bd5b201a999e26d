"""The retriever: finds passages for questions, and embeds texts for whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np

from edged.backend import TensorSession, Variant
from edged.documents.index import Manifest, check_family
from edged.documents.library import Library
from edged.errors import BadRequest, EdgedError
from edged.messages import (
    CacheCounters,
    ChatTask,
    EmbedAnswer,
    EmbedTask,
    Judgement,
    Passage,
    decoder,
    encode,
)
from edged.stages.caches import (
    Cache,
    Row,
    Rows,
    clear,
    counters_of,
    identity_of,
    key,
    limit_option,
    remembered,
)
from edged.stages.contract import Item, Judged, Payload
from edged.stages.encoder import Encoder, Kind, Vectors
from edged.stages.margin import margin_of
from edged.stages.options import at_most, count_option, each

_decode_chat: Callable[[bytes | memoryview], ChatTask] = decoder(ChatTask)
_decode_embed: Callable[[bytes | memoryview], EmbedTask] = decoder(EmbedTask)
_decode_passages: Callable[[bytes | memoryview], tuple[Passage, ...]] = decoder(tuple[Passage, ...])

FLOAT_BYTES = 4
ARRAY_BYTES = 160
"""Of a small array object beside its numbers."""


class Retriever:
    """Operations `chat` (fills `passages` of a grounded task) and `embed`."""

    OPTIONS = frozenset({"candidates", "embeddings_cache_mib", "passages_cache_mib"})

    def __init__(
        self, session: TensorSession, variant: Variant, library: Path, options: Mapping[str, Any]
    ) -> None:
        self._candidates = count_option(options, "candidates", default=20, most=200)
        self._session = session
        self._encoder = Encoder(session, variant)
        self._identity = identity_of(variant, self._encoder.fingerprint)
        limit = limit_option(options, "embeddings_cache_mib", default_mib=8)
        self._embeddings: Rows[Vectors] = Cache(limit)
        self._found: Cache[bytes] = Cache(limit_option(options, "passages_cache_mib", default_mib=16))
        self._found_in: Manifest | None = None
        """The generation that `_found` is about; passages of an earlier one are never looked at again."""
        self._caches: dict[str, Cache[Any]] = {"embeddings": self._embeddings, "passages": self._found}
        # One thread searches: the cores belong to whoever the dispatcher gave them to.
        faiss.omp_set_num_threads(1)
        self._library = Library.open(library)
        if self._library.manifest:
            check_family(self._library.manifest, self._encoder.fingerprint)

    @property
    def encoder(self) -> Encoder:
        """What its vectors come from."""
        return self._encoder

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
        """Answer a micro-batch, each item as soon as it is done."""
        for item in items:
            yield each(self._answer, item)

    def _read(self, item: Item) -> ChatTask | EmbedTask:
        if item.operation == "embed":
            return _decode_embed(item.payload)
        if item.operation != "chat":
            raise BadRequest(f"the retriever does not do {item.operation!r}; it does chat and embed")
        task = _decode_chat(item.payload)
        if task.grounded:
            question(task)
        return task

    def _answer(self, item: Item) -> Payload:
        task = self._read(item)
        if isinstance(task, EmbedTask):
            return self._embed(task)
        return self._grounded(task) if task.grounded else bytes(item.payload)

    def _grounded(self, task: ChatTask) -> Payload:
        passages = self._passages(question(task), self._count(task))
        judgement = Judgement(margin_of(passages), self._found_in.generation if self._found_in else 0)
        return Judged.of(encode(msgspec.structs.replace(task, passages=passages)), judgement)

    def _count(self, task: ChatTask) -> int:
        return at_most(task.candidates or self._candidates, task.ceiling.candidates)

    def _passages(self, text: str, count: int) -> tuple[Passage, ...]:
        """Search for one question at a time: neither its vector nor its search may depend on its company."""
        self._library.refresh()
        self._keep_up()
        if self._found_in is None:
            return ()
        kept = self._found.get(self._found_key(self._found_in, text, count))
        if kept is not None:
            return _decode_passages(kept)
        vectors = self._vectors([text], "query")[0].value[np.newaxis]
        (found,) = self._library.search([text], vectors, self._encoder.fingerprint, count)
        self._keep_up()  # the search itself may have moved on; what is in force by now, it has not seen
        if self._found_in is not None:
            data = msgspec.msgpack.encode(found)
            self._found.put(self._found_key(self._found_in, text, count), data, len(data))
        return tuple(found)

    def _keep_up(self) -> None:
        """Move on to the generation that is open, and forget what was found in another."""
        if self._library.manifest != self._found_in:
            self._found.clear()
            self._found_in = self._library.manifest

    def _found_key(self, manifest: Manifest, text: str, count: int) -> bytes:
        return key(self._identity, msgspec.msgpack.encode(manifest), text, str(count))

    def _vectors(self, texts: Sequence[str], kind: Kind) -> list[Row[Vectors]]:
        def embed(rows: list[int]) -> list[Row[Vectors]]:
            vectors, counts = self._encoder.embed_each([texts[row] for row in rows], kind)
            return [Row(vector.copy(), count) for vector, count in zip(vectors, counts, strict=True)]

        return remembered(
            self._embeddings,
            key(self._identity, kind),
            [(text,) for text in texts],
            embed,
            row_bytes=self._encoder.dimension * FLOAT_BYTES + ARRAY_BYTES,
            alone=self._session.lone_rows,
        )

    def _embed(self, task: EmbedTask) -> Payload:
        rows = self._vectors(task.texts, task.kind)
        data = b"".join(row.value.astype("<f4", copy=False).tobytes() for row in rows)
        tokens = sum(row.tokens for row in rows)
        dimension = self._encoder.dimension
        return encode(EmbedAnswer(count=len(rows), dimension=dimension, vectors=data, tokens=tokens))

    @property
    def lanes(self) -> int:
        """See `BatchStage.lanes`: a question is one run."""
        return 1

    def attend(self, look: Callable[[], None]) -> None:
        """See `BatchStage.attend`."""
        self._session.attend(look)

    def set_cores(self, count: int) -> None:
        """See `Housekeeping.set_cores`."""
        self._session.set_threads(count)

    def cache_counters(self) -> dict[str, CacheCounters]:
        """See `Housekeeping.cache_counters`."""
        return counters_of(self._caches)

    def clear_caches(self, names: Collection[str]) -> None:
        """See `Housekeeping.clear_caches`."""
        clear(self._caches, names)

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
