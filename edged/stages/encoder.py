"""Text to numbers: vectors from an embedder, relevance scores from a cross-encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from edged.backend import TensorSession, Variant
from edged.errors import BackendError, ModelError

Vectors = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]
Kind = Literal["query", "passage"]

BATCH_TEXTS = 32
BATCH_TOKENS = 4096
"""Bounds of one run, padding included: they bound the memory of activations, not the speed."""
LONE_RUNS = 32
"""Runs of one text each whose outputs are held at once: they bound memory too."""
RUN_TOKENS = 256
"""What a run costs an accelerator before its first token, in tokens: shorter rows are padded rather than
given a run of their own. Where rows cost nothing extra alone (CPUs), no row is padded at all."""


def open_tokenizer(variant: Variant) -> Tokenizer:
    """Read `tokenizer.json` and drop the padding and truncation baked into it (often 128 tokens)."""
    path = variant.tokenizer
    if path is None or not Path(path).is_file():
        raise ModelError(f"model {variant.model!r} has no tokenizer.json at {path}; pull the model again")
    try:
        tokenizer = Tokenizer.from_buffer(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a tokenizer: {error}; pull {variant.model!r} again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Encoder:
    """An embedder: texts to vectors of unit length."""

    def __init__(self, session: TensorSession, variant: Variant) -> None:
        self._session = session
        self.variant = variant
        self._counter = open_tokenizer(variant)
        self._tokenizer = open_tokenizer(variant)
        self._tokenizer.enable_truncation(variant.context_tokens)
        self.pooling: str = variant.details.get("pooling", "mean")
        self.dimension = int(variant.details["dimension"])
        self._prefix: str = variant.details.get("query_prefix", "")
        if self.pooling not in {"cls", "mean"}:
            raise ModelError(f"model {variant.model!r}: pooling {self.pooling!r} is neither cls nor mean")

    @property
    def fingerprint(self) -> str:
        """What two sets of vectors must share to be comparable; quantisation is not part of it."""
        return (
            f"{self.variant.model} pooling={self.pooling} norm=l2 dim={self.dimension} query={self._prefix!r}"
        )

    @property
    def digest(self) -> str:
        """sha256 of the weights; empty when the variant states none."""
        return self.variant.digest

    @property
    def capacity_tokens(self) -> int:
        """Tokens of text that one vector can take in, special tokens left out."""
        return self.variant.context_tokens - self._counter.num_special_tokens_to_add(is_pair=False)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens left out and nothing truncated."""
        return [len(e.ids) for e in self._counter.encode_batch_fast(list(texts), add_special_tokens=False)]

    def embed(self, texts: Sequence[str], kind: Kind = "passage") -> tuple[Vectors, int]:
        """Return float32 [len(texts), dimension] of unit length, and the number of tokens read.

        A text beyond the context is truncated. Raises `BackendError`, `DeviceLost`.
        """
        vectors, counts = self.embed_each(texts, kind)
        return vectors, sum(counts)

    def embed_each(self, texts: Sequence[str], kind: Kind = "passage") -> tuple[Vectors, list[int]]:
        """As `embed`, with the tokens of each text."""
        prefix = self._prefix if kind == "query" else ""
        encodings = self._tokenizer.encode_batch_fast([prefix + text for text in texts])
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for rows, feeds, outputs in run_rows(self._session, encodings):
            vectors[rows] = self._pool(outputs, feeds["attention_mask"])
        return vectors, [len(encoding.ids) for encoding in encodings]

    def _pool(self, outputs: Arrays, mask: npt.NDArray[np.int64]) -> Vectors:
        hidden = _first(outputs, "last_hidden_state").astype(np.float32, copy=False)
        if hidden.shape[2:] != (self.dimension,):
            expected = f"[batch, sequence, {self.dimension}]"
            raise BackendError(f"model {self.variant.model!r} gave shape {hidden.shape}, not {expected}")
        return unit(hidden[:, 0] if self.pooling == "cls" else mean_pool(hidden, mask))


class CrossEncoder:
    """A reranker: reads query and document together and gives one logit per pair."""

    def __init__(self, session: TensorSession, variant: Variant) -> None:
        self._session = session
        self.variant = variant
        self._query_tokenizer = open_tokenizer(variant)
        self._query_tokenizer.enable_truncation(variant.context_tokens // 2)
        self._tokenizer = open_tokenizer(variant)
        self._tokenizer.enable_truncation(variant.context_tokens, strategy="only_second")

    def score(self, query: str, documents: Sequence[str]) -> tuple[Vectors, int]:
        """Return float32 [len(documents)], higher is more relevant, and the number of tokens read."""
        scores, counts = self.score_pairs([(query, document) for document in documents])
        return scores, sum(counts)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> tuple[Vectors, list[int]]:
        """Score pairs of query and document, and count each pair's tokens.

        A query beyond half of the context and a document beyond the rest are truncated.
        """
        fitting = {query: self._fit(query) for query in {query for query, _ in pairs}}
        encodings = self._tokenizer.encode_batch_fast([(fitting[query], text) for query, text in pairs])
        scores = np.empty(len(pairs), np.float32)
        for rows, _, outputs in run_rows(self._session, encodings):
            scores[rows] = _first(outputs, "logits").reshape(len(rows), -1)[:, 0]
        return scores, [len(encoding.ids) for encoding in encodings]

    def _fit(self, query: str) -> str:
        """Cut a query to half of the context, so that every document has room beside it."""
        encoding = self._query_tokenizer.encode(query)
        return query[: encoding.offsets[-2][1]] if encoding.overflowing else query


def run_rows(
    session: TensorSession, encodings: Sequence[Encoding]
) -> Iterator[tuple[list[int], Arrays, Arrays]]:
    """Run all rows in the cheapest way for the session's device: row numbers, inputs and outputs of each run.

    Where rows may go alone, what a row gives depends on nothing but the row.
    """
    lengths = [len(encoding.ids) for encoding in encodings]
    runs = lone_rows(lengths) if session.lone_rows else micro_batches(lengths)
    together = LONE_RUNS if session.lone_rows else 1
    for first in range(0, len(runs), together):
        some = runs[first : first + together]
        feeds = [feed([encodings[row] for row in rows], session.inputs) for rows in some]
        yield from zip(some, feeds, session.run_each(feeds), strict=True)


def lone_rows(lengths: Sequence[int]) -> list[list[int]]:
    """A run for each row, the longest first, so that runs side by side end together.

    >>> lone_rows([5, 4000, 6])
    [[1], [2], [0]]
    """
    return [[row] for row in sorted(range(len(lengths)), key=lambda row: -lengths[row])]


def micro_batches(lengths: Sequence[int], run_tokens: int = RUN_TOKENS) -> list[list[int]]:
    """Cut rows, sorted by length, into runs so that padded tokens and `run_tokens` a run are the fewest.

    The least sum of `run_tokens + rows * longest` over all cuts of the sorted rows, found exactly.

    >>> micro_batches([5, 4000, 6])
    [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    best: list[tuple[int, int]] = [(0, 0)]
    """For the first n rows: the least cost, and where the last run of that cut begins."""
    for end in range(1, len(order) + 1):
        most = max(0, end - BATCH_TEXTS)
        starts = (
            n for n in range(most, end) if n == end - 1 or _padded(lengths, order, n, end) <= BATCH_TOKENS
        )
        best.append(min((best[n][0] + run_tokens + _padded(lengths, order, n, end), n) for n in starts))
    return _cut(order, best)


def _padded(lengths: Sequence[int], order: Sequence[int], start: int, end: int) -> int:
    return lengths[order[start]] * (end - start)


def _cut(order: list[int], best: Sequence[tuple[int, int]]) -> list[list[int]]:
    runs: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        runs.append(order[start:end])
        end = start
    return runs[::-1]


def feed(encodings: Sequence[Encoding], names: Sequence[str]) -> Arrays:
    """Arrays int64 [batch, longest] under the names that the model takes."""
    shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
    feeds = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for row, encoding in enumerate(encodings):
        length = len(encoding.ids)
        feeds["input_ids"][row, :length] = encoding.ids
        feeds["attention_mask"][row, :length] = 1
        feeds["token_type_ids"][row, :length] = encoding.type_ids
    return {name: array for name, array in feeds.items() if name in names}


def mean_pool(hidden: Vectors, mask: npt.NDArray[np.int64]) -> Vectors:
    """Average [batch, sequence, dimension] over the tokens that `mask` [batch, sequence] counts."""
    weights = mask.astype(np.float32)[:, :, None]
    pooled: Vectors = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0)
    return pooled


def unit(vectors: Vectors) -> Vectors:
    """Scale rows to length 1; a vector that is not finite is the runtime's failure, not an answer."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise BackendError(
            "the embedder gave a vector that is zero or not finite; try another variant or device"
        )
    return np.asarray(vectors / norms, np.float32)


def _first(outputs: Arrays, preferred: str) -> npt.NDArray[Any]:
    return outputs[preferred] if preferred in outputs else next(iter(outputs.values()))
