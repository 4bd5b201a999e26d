"""The strongest program that one engine alone allows: what rows P4 and P4L compare the daemon with.

    python -m benchmarks._engines < orders > results

The first line of standard input says what to load; each further line is a load: prompts, of which so many
are answered side by side. Nobody is served: no socket, no text, tokens are only counted and timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from edged_backends.llama_cpp_batch import TokenBatch
from edged_backends.llama_cpp_runtime import load_model, runtime
from edged_backends.llama_cpp_vocabulary import LlamaVocabulary
from edged_backends.openvino_runtime import genai, ov
from edged_backends.openvino_vocabulary import OpenvinoVocabulary

from edged.backend import Vocabulary
from edged.layers.planning.llama_split import LlamaSplit
from edged.messages import ChatTask, Message
from edged.stages.prompt import PromptBuilder

CONTEXT_TOKENS = 2048
"""Prompt and answer of one sequence, on both sides."""
BF16 = 30
Ids = Sequence[int]


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and how."""

    backend: str
    path: str
    threads: int
    sequences: int
    exact: bool
    step_tokens: int = 256
    """Most tokens of a step."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts to answer, so many at a time."""

    prompts: tuple[str, ...]
    streams: int
    max_tokens: int
    late: str = ""
    """A prompt that comes on top, for one token, once all streams have settled: row G1."""


SETTLED = 12
"""Pieces of an answer until it counts as settled: some answers end after 40 tokens, which come in twos and
threes."""


class Heard(msgspec.Struct, kw_only=True):
    """One answer: seconds since the load began at which it was asked for and its tokens came.

    Where there is a late prompt, its answer is the last.
    """

    asked_s: float
    marks_s: list[float] = []
    tokens: int = 0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a load gave; CPU seconds are of whoever generated the tokens."""

    wall_s: float
    cpu_s: float
    heard: list[Heard]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(heard.tokens for heard in self.heard)


class Bare(Protocol):
    """An engine with its own batching."""

    vocabulary: Vocabulary

    def add(self, number: int, prompt: Ids, max_tokens: int) -> None:
        """Start an answer."""
        ...

    def step(self) -> Iterator[tuple[int, list[int], bool]]:
        """Answer's number, new tokens but no stop, and whether that was all."""
        ...


class BareOpenvino:
    """`ContinuousBatchingPipeline`, driven directly."""

    def __init__(self, engine: Engine) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = engine.sequences
        scheduler.max_num_batched_tokens = engine.step_tokens
        scheduler.cache_size = 1
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        exact = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "KV_CACHE_PRECISION": "f32"} if engine.exact else {}
        properties = {"INFERENCE_NUM_THREADS": engine.threads, "INFERENCE_PRECISION_HINT": "f32", **exact}
        self._pipeline: Any = genai.ContinuousBatchingPipeline(engine.path, scheduler, "CPU", properties)
        vocabulary = OpenvinoVocabulary(self._pipeline.get_tokenizer())
        self.vocabulary: Vocabulary = vocabulary
        self._stops = set(vocabulary.stops)
        self._handles: dict[int, Any] = {}
        self._requests = 0

    def add(self, number: int, prompt: Ids, max_tokens: int) -> None:
        """See `Bare.add`."""
        self._requests += 1
        config = genai.GenerationConfig(max_new_tokens=max_tokens, stop_token_ids=self._stops)
        self._handles[number] = self._pipeline.add_request(
            self._requests, ov.Tensor(np.array([prompt], np.int64)), config
        )

    def step(self) -> Iterator[tuple[int, list[int], bool]]:
        """See `Bare.step`."""
        self._pipeline.step()
        for number, handle in list(self._handles.items()):
            if not handle.can_read():
                continue
            (output,) = handle.read().values()
            over = output.finish_reason != genai.GenerationFinishReason.NONE
            if over:
                del self._handles[number]
            yield number, [token for token in output.generated_ids if token not in self._stops], over


class BareLlamaCpp:
    """llama.cpp's batch API: all running answers and as much of the prompts as fits, in every step."""

    def __init__(self, engine: Engine) -> None:
        model = load_model(engine.path.encode(), (), LlamaSplit(n_gpu_layers=0))
        parameters = runtime.llama_context_default_params()
        parameters.n_ctx = CONTEXT_TOKENS * engine.sequences
        parameters.n_seq_max = engine.sequences
        parameters.kv_unified = False
        parameters.n_batch = parameters.n_ubatch = engine.step_tokens
        parameters.n_threads = parameters.n_threads_batch = engine.threads
        parameters.flash_attn_type = 1
        if engine.exact:
            parameters.type_v = BF16
        self._context: Any = runtime.llama_init_from_model(model, parameters)
        self._memory: Any = runtime.llama_get_memory(self._context)
        vocabulary = LlamaVocabulary(model)
        self.vocabulary: Vocabulary = vocabulary
        self._ends = vocabulary.ends
        self._width = vocabulary.size
        self._batch = TokenBatch(engine.step_tokens)
        self._budget = engine.step_tokens
        self._free = list(range(engine.sequences))
        self._live: dict[int, list[Any]] = {}
        """By answer: slot, tokens to compute, their position, new tokens that are left."""

    def add(self, number: int, prompt: Ids, max_tokens: int) -> None:
        """See `Bare.add`."""
        self._live[number] = [self._free.pop(), list(prompt), 0, max_tokens]

    def step(self) -> Iterator[tuple[int, list[int], bool]]:
        """See `Bare.step`."""
        rows = self._decode()
        for number, row in rows.items():
            slot, _, _, left = live = self._live[number]
            token = int(np.argmax(np.ctypeslib.as_array(self._logits(row), (self._width,))))
            ended = self._ends(token)
            live[1], live[3] = [token], left - 1
            if ended or left == 1:
                runtime.llama_memory_seq_rm(self._memory, slot, -1, -1)
                self._free.append(slot)
                del self._live[number]
            yield number, [] if ended else [token], ended or left == 1

    def _logits(self, row: int) -> Any:
        return runtime.llama_get_logits_ith(self._context, row)

    def _decode(self) -> dict[int, int]:
        """Compute one batch; the row of the last token of every sequence that is computed whole."""
        self._batch.clear()
        room, rows = self._budget, {}
        for number, live in sorted(self._live.items(), key=lambda entry: len(entry[1][1])):
            slot, tokens, position, _ = live
            take = min(len(tokens), room)
            if take:
                self._batch.add(slot, tokens[:take], position)
                room -= take
                live[1], live[2] = tokens[take:], position + take
                if take == len(tokens):
                    rows[number] = self._budget - room - 1
        status = runtime.llama_decode(self._context, self._batch.native)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return rows


ENGINES: dict[str, Callable[[Engine], Bare]] = {"openvino": BareOpenvino, "llama_cpp": BareLlamaCpp}


def tokenised(vocabulary: Vocabulary, prompts: Sequence[str]) -> list[Ids]:
    """The ids that the daemon makes of the same questions."""
    builder = PromptBuilder(vocabulary, CONTEXT_TOKENS)
    return [builder.build(ChatTask(messages=(Message("user", text),))).tokens for text in prompts]


class _Answering:
    """One load on one engine, in progress."""

    def __init__(self, engine: Bare, load: Load) -> None:
        self._engine = engine
        self._load = load
        self._waiting = list(enumerate(tokenised(engine.vocabulary, load.prompts)))[::-1]
        self._late = tokenised(engine.vocabulary, [load.late]) if load.late else []
        self._heard: dict[int, Heard] = {}
        self._live = 0
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def run(self) -> Result:
        """Answer everything."""
        while self._waiting or self._late or self._live:
            self._fill()
            for number, tokens, over in self._engine.step():
                self._heard[number].tokens += len(tokens)
                self._heard[number].marks_s.append(time.perf_counter() - self._began)
                self._live -= over
        return Result(
            wall_s=time.perf_counter() - self._began,
            cpu_s=time.process_time() - self._cpu,
            heard=[self._heard[number] for number in sorted(self._heard)],
        )

    def _fill(self) -> None:
        while self._waiting and self._live < self._load.streams:
            number, prompt = self._waiting.pop()
            self._add(number, prompt, self._load.max_tokens)
        settled = min(len(heard.marks_s) for heard in self._heard.values()) >= SETTLED
        if self._late and (settled or not self._live):
            self._add(len(self._load.prompts), self._late.pop(), 1)

    def _add(self, number: int, prompt: Ids, max_tokens: int) -> None:
        self._heard[number] = Heard(asked_s=time.perf_counter() - self._began)
        self._engine.add(number, prompt, max_tokens)
        self._live += 1


def main() -> None:
    """Load, then answer load after load until the end of standard input."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Engine)
    engine = ENGINES[order.backend](order)
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        result = _Answering(engine, msgspec.json.decode(line, type=Load)).run()
        sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
