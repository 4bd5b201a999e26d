"""The work of one question, for programs that are not edged: same models, same library, same prompts.

Search, prompt, stop rules and text come from edged used as a library, so that both sides read and write
the same tokens. Everything that costs time (encoders, engine) is called here directly, with whatever
settings suit the program best; nothing of edged's stages, dispatcher or adapters takes part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from edged_backends.onnx_runtime import ort  # both without the runtimes' telemetry
from edged_backends.openvino_runtime import genai, ov
from edged_backends.openvino_vocabulary import OpenvinoVocabulary
from tokenizers import Encoding, Tokenizer

from benchmarks.contenders.settings import Settings
from edged.backend import Variant
from edged.catalogue import Catalogue
from edged.documents.chunk import embedded_text
from edged.documents.library import Library
from edged.messages import ChatTask, Message, Passage
from edged.models.store import ModelStore
from edged.stages.detokenizer import StopStrings, TextStream
from edged.stages.prompt import GROUNDED_STOPS, Prompt, PromptBuilder
from edged.stages.repetition import circling
from edged.stages.reranker import best_passages

CANDIDATES = 20
KEEP = 4
CONTEXT_TOKENS = 8192


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Front:
    """Question in, prompt out: embed, search, rerank."""

    def __init__(self, given: Settings) -> None:
        store = ModelStore(Path(given.models), Catalogue.discover())
        self._embedder = _Model(store.resolve("bge-small-en-v1.5", "int8"), given)
        self._reranker = _Model(store.resolve("ms-marco-minilm-l12-v2", "int8"), given)
        self._rows = given.rerank_rows
        self._pool = ThreadPoolExecutor(given.threads) if given.threads > 1 else None
        self._path = Path(given.library)
        self._library: Library | None = None
        variant = self._embedder.variant
        self._prefix = variant.details["query_prefix"]
        self._family = (
            f"{variant.model} pooling=cls norm=l2 dim={variant.details['dimension']} query={self._prefix!r}"
        )

    def passages(self, question: str) -> tuple[Passage, ...]:
        """The best passages, best first."""
        found = self.search(question, self.embed(question))
        return best_passages(found, self.rerank(question, found), KEEP)

    def embed(self, question: str) -> npt.NDArray[np.float32]:
        """Float32 [1, dimension] of unit length."""
        hidden = self._embedder.run(self._embedder.tokenizer.encode_batch_fast([self._prefix + question]))
        vector = hidden[:, 0].astype(np.float32)
        return np.asarray(vector / np.linalg.norm(vector, axis=1, keepdims=True), np.float32)

    def search(self, question: str, vector: npt.NDArray[np.float32]) -> list[Passage]:
        """Candidates; the library is opened by the thread that uses it first."""
        if self._library is None:
            self._library = Library.open(self._path)
        return self._library.search([question], vector, self._family, CANDIDATES)[0]

    def rerank(self, question: str, found: Sequence[Passage]) -> list[float]:
        """One logit for each passage."""
        pairs = [(question, embedded_text(p.title, p.heading, p.text)) for p in found]
        encodings = self._reranker.tokenizer.encode_batch_fast(pairs)
        order = sorted(range(len(pairs)), key=lambda row: -len(encodings[row].ids))
        cuts = [order[first : first + self._rows] for first in range(0, len(order), self._rows)]
        batches = [[encodings[row] for row in rows] for rows in cuts]
        run = map if self._pool is None else self._pool.map
        logits = np.empty(len(pairs), np.float32)
        for rows, output in zip(cuts, run(self._reranker.run, batches), strict=True):
            logits[rows] = output.reshape(len(rows), -1)[:, 0]
        return [round(float(logit), 4) for logit in logits]


class _Model:
    def __init__(self, variant: Variant, given: Settings) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = given.intra_threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(given.spinning)))
        self._session: Any = ort.InferenceSession(
            os.fspath(variant.path),
            options,
            ["CPUExecutionProvider"],
            disabled_optimizers=list(given.unwanted_fusions),
        )
        self._inputs = [node.name for node in self._session.get_inputs()]
        self.variant = variant
        self.tokenizer = Tokenizer.from_file(os.fspath(variant.tokenizer or ""))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(variant.context_tokens, strategy="longest_first")

    def run(self, encodings: Sequence[Encoding]) -> npt.NDArray[Any]:
        shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
        feeds = {
            name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        for row, encoding in enumerate(encodings):
            feeds["input_ids"][row, : len(encoding.ids)] = encoding.ids
            feeds["attention_mask"][row, : len(encoding.ids)] = 1
            feeds["token_type_ids"][row, : len(encoding.ids)] = encoding.type_ids
        first: npt.NDArray[Any] = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        return first


class Piece(msgspec.Struct, frozen=True):
    """New text of an answer; `reply` at its end."""

    key: Any
    text: str
    reply: Reply | None = None


class _Live(msgspec.Struct):
    handle: Any
    stream: TextStream
    prompt_tokens: int
    count: int = 0


class Engine:
    """OpenVINO GenAI's continuous batching; used by one thread at a time."""

    def __init__(self, given: Settings) -> None:
        variant = ModelStore(Path(given.models), Catalogue.discover()).resolve(
            "smollm2-135m-instruct", given.variant
        )
        folder = converted(variant, Path(given.cache))
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = given.sequences
        scheduler.max_num_batched_tokens = given.step_tokens
        scheduler.cache_size = 1
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = given.prefix_caching
        properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": given.threads,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": given.precision,
        }
        tokenizer = genai.Tokenizer(os.fspath(folder))
        self._engine: Any = genai.ContinuousBatchingPipeline(
            os.fspath(folder), tokenizer, scheduler, "CPU", **properties
        )
        self._vocabulary = OpenvinoVocabulary(self._engine.get_tokenizer())
        self._builder = PromptBuilder(
            self._vocabulary, CONTEXT_TOKENS, most_passages=variant.details.get("passages", 0)
        )
        self._live: dict[Any, _Live] = {}
        self._number = 0

    @property
    def active(self) -> int:
        """Answers in the making."""
        return len(self._live)

    def prompt(self, question: str, passages: tuple[Passage, ...], max_tokens: int) -> Prompt:
        """The prompt that edged would give to the model."""
        task = ChatTask(
            messages=(Message("user", question),), grounded=True, passages=passages, max_tokens=max_tokens
        )
        return self._builder.build(task)

    def add(self, key: Any, prompt: Prompt) -> None:
        """Start an answer under a key of the caller's choosing."""
        self._number += 1
        config = genai.GenerationConfig(
            max_new_tokens=prompt.max_tokens, stop_token_ids=set(self._vocabulary.stops)
        )
        tokens = ov.Tensor(np.array([prompt.tokens], dtype=np.int64))
        handle = self._engine.add_request(self._number, tokens, config)
        stream = TextStream(self._vocabulary.decode, StopStrings((), GROUNDED_STOPS))
        self._live[key] = _Live(handle, stream, len(prompt.tokens))

    def step(self) -> Iterator[Piece]:
        """Advance every answer by one token at most."""
        self._engine.step()
        for key, live in list(self._live.items()):
            piece = self._read(key, live)
            if piece.reply:
                del self._live[key]
            if piece.text or piece.reply:
                yield piece

    def _read(self, key: Any, live: _Live) -> Piece:
        tokens: list[int] = []
        ended = False
        while live.handle.can_read():
            for output in live.handle.read().values():
                tokens += [token for token in output.generated_ids if token not in self._vocabulary.stops]
                ended = output.finish_reason != genai.GenerationFinishReason.NONE
        live.count += len(tokens)
        text = live.stream.push(tokens) if tokens else ""
        if not ended and (live.stream.stopped or (tokens and circling(live.stream.text))):
            live.handle.cancel()
            ended = True
        if not ended:
            return Piece(key, text)
        text += live.stream.finish()
        return Piece(key, text, Reply(
            text=live.stream.text, prompt_tokens=live.prompt_tokens, completion_tokens=live.count
        ))  # fmt: skip

    def finish(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Answer a static batch to its end."""
        for number, prompt in enumerate(prompts):
            self.add(number, prompt)
        replies: dict[int, Reply] = {}
        while self._live:
            replies |= {piece.key: piece.reply for piece in self.step() if piece.reply}
        return [replies[number] for number in range(len(prompts))]


def converted(variant: Variant, cache: Path) -> Path:
    """The folder with OpenVINO's own form of the weights, which loads faster than GGUF."""
    from edged_backends.openvino_cache import cache_key, load_engine

    folder = cache / cache_key(variant)
    if not (folder / "openvino_model.xml").exists():
        load_engine(variant, genai.SchedulerConfig(), "CPU", {"INFERENCE_NUM_THREADS": 1}, os.fspath(cache))
    return folder
