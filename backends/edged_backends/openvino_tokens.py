"""Tokens through OpenVINO GenAI: continuous batching over a GGUF file.

Sequences are given as token ids and read back as token ids, one per step. The engine keeps the KV cache of
earlier prompts (prefix caching), so a shared beginning is computed once.

Only the CPU has been run. On an NPU, GenAI has no continuous batching: such a device is opened with one
sequence at a time by this same code, which could not be tried for want of the hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from edged.backend import Device, Finish, Sampling, TokenEvent, Variant, Vocabulary
from edged.errors import BackendError, ContextOverflow
from edged_backends.openvino_cache import load_engine
from edged_backends.openvino_devices import ERRORS, translated
from edged_backends.openvino_runtime import genai, ov
from edged_backends.openvino_vocabulary import OpenvinoVocabulary
from edged_backends.options import thread_count

_MIB_PER_GIB = 1024
_EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "KV_CACHE_PRECISION": "f32"}


class TokenOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the adapter `openvino` for generators."""

    threads: int = 0
    """Threads of one step (CPU); 0 means one per core that the stage may use."""
    cache_dir: str = ""
    """Folder for the converted model, which halves the time of later starts; empty converts every time."""
    context_tokens: int = 0
    """Prompt and answer together; 0 means what the variant says."""
    max_sequences: int = 8
    max_num_batched_tokens: int = 256
    """Tokens of one step: longer prompts are read in parts, so that running answers go on meanwhile."""
    cache_size_mib: int = 1024
    """Memory for the KV cache; the engine takes whole GiB, so this is rounded up."""
    prefix_caching: bool = True
    exact: bool = True
    """Give the same greedy tokens whether a token was read in a prompt or produced by a step (CPU).

    Activations are not quantised then, and the KV cache is float32: about 1.5 times the CPU time
    (`python -m benchmarks I1`). Without it a greedy answer may take another word in other company, where
    two are about equally probable, and an interrupted one is repeated from its prompt before it goes on.
    """


class OpenvinoTokens:
    """A `TokenSession` over one continuous-batching pipeline."""

    def __init__(
        self, engine: Any, variant: Variant, context_tokens: int, max_sequences: int, *, exact: bool
    ) -> None:
        vocabulary = OpenvinoVocabulary(engine.get_tokenizer())
        self.vocabulary: Vocabulary = vocabulary
        self._stops = vocabulary.stops
        self.context_tokens = context_tokens
        self.max_sequences = max_sequences
        self.exact_resume = exact
        self._engine: Any = engine
        self._model = f"{variant.model} {variant.name}"
        self._live: dict[int, Any] = {}
        self._requests = 0

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        return self.max_sequences - len(self._live)

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """Start a sequence; see `TokenSession.admit`."""
        self._check(sequence, prompt, max_tokens)
        self._requests += 1
        tokens = ov.Tensor(np.array([prompt], dtype=np.int64))
        config = generation_config(sampling, max_tokens, self._stops)
        try:
            self._live[sequence] = self._engine.add_request(self._requests, tokens, config)
        except ERRORS as error:
            raise translated(error, f"openvino does not take the sequence for {self._model}") from error

    def step(self) -> list[TokenEvent]:
        """Advance every live sequence by at most one token; see `TokenSession.step`."""
        engine = self._open_engine()
        try:
            if engine.has_non_finished_requests():
                engine.step()
            events = [self._read(sequence, handle) for sequence, handle in self._live.items()]
        except ERRORS as error:
            raise translated(error, f"openvino failed in a step of {self._model}") from error
        for event in events:
            if event.finish:
                del self._live[event.sequence]
        return [event for event in events if event.tokens or event.finish]

    def cancel(self, sequence: int, /) -> None:
        """Forget a sequence at once; no event follows. Unknown numbers are ignored."""
        handle = self._live.pop(sequence, None)
        if handle is not None:
            handle.cancel()

    def set_threads(self, _count: int, /) -> bool:
        """See `TokenSession.set_threads`: this engine keeps the threads that it was opened with."""
        return False

    def close(self) -> None:
        """Give the memory back; idempotent."""
        for sequence in list(self._live):
            self.cancel(sequence)
        self._engine = None

    def _open_engine(self) -> Any:
        if self._engine is None:
            raise BackendError(f"the session of {self._model} is closed")
        return self._engine

    def _check(self, sequence: int, prompt: Sequence[int], max_tokens: int) -> None:
        self._open_engine()
        if not prompt or max_tokens < 1:
            raise BackendError("a sequence needs a prompt and room for at least one token")
        if sequence in self._live:
            raise BackendError(f"sequence {sequence} is alive already")
        if not self.free_sequences:
            raise BackendError(f"all {self.max_sequences} sequences of {self._model} are taken")
        if len(prompt) + max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"{len(prompt)} prompt + {max_tokens} new tokens exceed the context of {self.context_tokens}"
            )

    def _read(self, sequence: int, handle: Any) -> TokenEvent:
        tokens: list[int] = []
        reason = genai.GenerationFinishReason.NONE
        while handle.can_read():
            for output in handle.read().values():
                tokens.extend(output.generated_ids)
                reason = output.finish_reason
        if handle.get_status() == genai.GenerationStatus.IGNORED:
            return TokenEvent(sequence, (), "error", "the KV cache is full: raise cache_size_mib")
        if reason == genai.GenerationFinishReason.STOP:
            return TokenEvent(sequence, tuple(t for t in tokens if t not in self._stops), "stop")
        finish: Finish | None = "length" if reason == genai.GenerationFinishReason.LENGTH else None
        return TokenEvent(sequence, tuple(tokens), finish)


def generation_config(sampling: Sampling, max_tokens: int, stops: frozenset[int]) -> Any:
    """Say the sampling in GenAI's words; temperature 0 is greedy."""
    config = genai.GenerationConfig(
        max_new_tokens=max_tokens,
        stop_token_ids=set(stops),
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
    )
    if sampling.temperature > 0:
        config.update_generation_config(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            rng_seed=sampling.seed,
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
        )
    return config


def open_tokens(variant: Variant, device: Device, target: str, chosen: TokenOptions) -> OpenvinoTokens:
    """Load a GGUF file into a continuous-batching pipeline; `BackendError` when it cannot be read."""
    if not variant.path.is_file():
        raise BackendError(f"{variant.path} is missing; fetch the model again")
    max_sequences = min(chosen.max_sequences, device.capabilities.max_sequences or chosen.max_sequences)
    try:
        engine = load_engine(
            variant, _scheduler(chosen, max_sequences), target, _properties(device, chosen), chosen.cache_dir
        )
    except ERRORS as error:
        raise translated(error, f"openvino cannot load {variant.path} on {device.id}") from error
    shape = (chosen.context_tokens or variant.context_tokens, max_sequences)
    return OpenvinoTokens(engine, variant, *shape, exact=chosen.exact)


def _scheduler(chosen: TokenOptions, max_sequences: int) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs = max_sequences
    scheduler.max_num_batched_tokens = max(chosen.max_num_batched_tokens, max_sequences)
    scheduler.cache_size = -(-chosen.cache_size_mib // _MIB_PER_GIB)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = chosen.prefix_caching
    return scheduler


def _properties(device: Device, chosen: TokenOptions) -> dict[str, Any]:
    if device.kind != "cpu":
        return {}
    properties = {
        "INFERENCE_NUM_THREADS": thread_count(chosen.threads, device),
        "ENABLE_CPU_PINNING": False,
        # bfloat16, the default where the CPU has it, was no faster and changed more answers.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return properties | _EXACT if chosen.exact else properties
