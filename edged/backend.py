"""The seam between edged and the runtimes: the nouns and nothing else.

An adapter in `backends/edged_backends/` conforms to these protocols and imports, of edged, only this
module, `edged.errors` and, to read prompts, `edged.prefill`. It translates every exception of its runtime at
the call: nothing foreign crosses the seam. Capabilities are data on `Device`, asked before use, never
discovered by exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

if TYPE_CHECKING:
    import numpy.typing as npt

    from edged.layers.report import LayerReport

# A forward reference: clients that only need the messages start without paying for numpy.
Array: TypeAlias = "npt.NDArray[Any]"
Kind = Literal["cpu", "igpu", "gpu", "npu", "cuda", "webgpu", "simulated", "remote"]
Finish = Literal["stop", "length", "cancelled", "error"]


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a device can do, as data.

    An NPU has `static_shapes`: every input is padded to one of a few fixed shapes before it is run.
    """

    dtypes: tuple[str, ...] = ("f32",)
    static_shapes: bool = False
    max_batch: int = 0
    """Largest batch of one run; 0 means that the runtime sets no limit."""
    max_sequences: int = 0
    """Most sequences decoded together; 0 means no limit, 1 that there is no continuous batching."""
    streams: int = 1


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of silicon as one runtime sees it."""

    id: str
    """`cpu`, `cpu:0-1` (a core set), `igpu`, `gpu:1`, `npu`, `cuda:0`, `webgpu:0`."""
    kind: Kind
    name: str
    backend: str
    memory_bytes: int = 0
    cores: tuple[int, ...] = ()
    """CPU cores that work may run on; empty for accelerators and for the whole CPU."""
    capabilities: Capabilities = Capabilities()
    unusable: str = ""
    """Why the device cannot be used and what to do about it; empty when it can."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One set of weights of a model, present and verified on this machine."""

    model: str
    name: str
    """`fp32`, `int8`, `q4_1`, ..."""
    task: Literal["embed", "rerank", "generate", "tensor"]
    format: Literal["onnx", "gguf", "openvino", "safetensors", "none"]
    path: Path
    """The file with the weights; of `safetensors`, `config.json` lies beside it."""
    digest: str = ""
    """sha256 of the weights, 64 hexadecimal digits."""
    tokenizer: Path | None = None
    """`tokenizer.json`, for encoders; generators carry their own."""
    context_tokens: int = 512
    details: dict[str, Any] = {}
    """Task facts from the manifest: pooling, query_prefix, dimension, ..."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. The defaults are greedy decoding."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0
    """0 is greedy: the most probable token, always."""
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    logit_bias: dict[int, Annotated[float, msgspec.Meta(ge=-100, le=100)]] = {}
    """Added to the logits of these token ids before anything else."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a sequence as an engine counts them whose tokenizer is not the session's vocabulary."""

    prompt_tokens: int
    completion_tokens: int


class TokenEvent(msgspec.Struct, frozen=True):
    """What one step did for one sequence: new token ids, and, at the end, why it ended."""

    sequence: int
    tokens: tuple[int, ...] = ()
    finish: Finish | None = None
    error: str = ""
    code: str = "backend"
    """With `error`: the code of the `edged.errors` class that the request ends in."""
    usage: Usage | None = None
    """With the end, where the session's own count of tokens is not the engine's."""


class TensorSession(Protocol):
    """A loaded model that maps arrays to arrays. Close it to give its memory back."""

    inputs: tuple[str, ...]
    """Names of the inputs that `run` takes."""
    outputs: tuple[str, ...]
    lone_rows: bool
    """Whether a row costs no more in a run of its own than in a batch, so that nothing is padded and the
    result depends on the row alone: true of CPUs, whose caches a batch outgrows."""
    lanes: int
    """Runs of `run_each` that go on side by side at most, each on a core of its own; 1 off the CPU."""

    def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]:
        """Run one batch: the first axis of every array is the batch.

        The arrays of the result belong to the caller. Raises `BackendError` when the runtime refuses
        or fails, `DeviceLost` when the device is gone.
        """
        ...

    def run_each(self, runs: Sequence[Mapping[str, Array]], /) -> list[dict[str, Array]]:
        """Do independent runs, side by side where runtime and cores allow; results in order.

        Raises what `run` raises, for the first run that fails.
        """
        ...

    def attend(self, look: Callable[[], None], /) -> None:
        """Call `look` between the runs of `run_each`, in the caller's thread: it may call `set_threads`."""
        ...

    def set_threads(self, count: int, /) -> bool:
        """Keep at most `count` cores busy from the next run on; False when the runtime cannot do that."""
        ...

    def close(self) -> None:
        """Give the memory back; idempotent."""
        ...


class Vocabulary(Protocol):
    """The tokenizer that belongs to a generator's weights."""

    chat_template: str
    """Jinja source as the model file carries it; empty when it carries none."""
    beginning: str
    """Text of the beginning-of-sequence token, for the chat template; may be empty."""
    end: str
    """Text of the end-of-sequence token, for the chat template; may be empty."""

    def encode(self, text: str, /, *, special: bool) -> list[int]:
        """Tokenise; `special` says whether control tokens written in the text are recognised.

        Adds no beginning or end token of its own.
        """
        ...

    def decode(self, tokens: Sequence[int], /) -> str:
        """Turn ids to text, control tokens left out; an incomplete UTF-8 tail becomes U+FFFD."""
        ...


class TokenSession(Protocol):
    """A continuous-batching engine: sequences join and leave at token boundaries."""

    vocabulary: Vocabulary
    context_tokens: int
    """Prompt and new tokens of one sequence together."""
    max_sequences: int
    exact_resume: bool
    """Whether `admit` with tokens of an earlier answer behind the prompt leaves, to the bit, the state
    that decoding them left. Where it does not, an interrupted answer is replayed from its prompt.
    """

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        ...

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """Start a sequence under a number of the caller's choosing, which no live sequence has.

        To resume an answer, give prompt and the tokens already produced as `prompt`: under greedy
        decoding exactly the remaining tokens follow, if the session has `exact_resume`. Stops at an
        end-of-generation token (which is not reported in `tokens`) or after `max_tokens`. Raises
        `BackendError` when it cannot.
        """
        ...

    def step(self) -> list[TokenEvent]:
        """Advance every live sequence by at most one token each (prefill may need several steps)."""
        ...

    def cancel(self, sequence: int, /) -> None:
        """Forget a sequence at once; no event follows. Unknown numbers are ignored."""
        ...

    def prefix_counters(self) -> tuple[int, int, int]:
        """Prompt tokens that were found in the prefix cache, all prompt tokens, bytes that it holds now."""
        ...

    def clear_prefixes(self) -> None:
        """Forget the prefixes that no live sequence uses."""
        ...

    def set_threads(self, count: int, /) -> bool:
        """Keep at most `count` cores busy from the next step on; False when the runtime cannot do that."""
        ...

    def close(self) -> None:
        """Give the memory back; idempotent."""
        ...


@runtime_checkable
class Reaching(Protocol):
    """A session whose engine is elsewhere and may be out of reach while the session lives."""

    @property
    def trouble(self) -> str:
        """What keeps the engine from being asked, as a sentence; empty when nothing does."""
        ...


@runtime_checkable
class Detailed(Protocol):
    """A session that has more to tell about how it was opened than its stage knows."""

    @property
    def details(self) -> Mapping[str, Any]:
        """Short facts for people, under names of their own: they join the stage's details."""
        ...


@runtime_checkable
class Layered(Protocol):
    """A session whose model is laid over several stages, each with some of the layers."""

    def layer_report(self) -> LayerReport:
        """What the stages did so far; `BackendError` names one that has died."""
        ...


class Backend(Protocol):
    """A runtime: onnxruntime, openvino, llama.cpp, ... Construction is cheap and starts nothing."""

    name: str
    formats: tuple[str, ...]
    """Weight formats that it opens."""

    def devices(self) -> list[Device]:
        """List what this machine offers; an unusable device is listed with the reason."""
        ...

    def open(
        self, variant: Variant, device: Device, options: Mapping[str, Any], /
    ) -> TensorSession | TokenSession:
        """Load `variant` on `device`: a `TokenSession` for task `generate`, else a `TensorSession`.

        `options` are the adapter's own, from the stage's table in the config (`threads`,
        `context_tokens`, `max_sequences`, `cache_dir`, ...); an unknown one is a `ConfigError`.
        Raises `BackendError` when the runtime cannot load the weights.
        """
        ...


def parse_cores(text: str) -> tuple[int, ...]:
    """Parse a core list as the kernel writes it.

    >>> parse_cores("0-2,5")
    (0, 1, 2, 5)
    """
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cores))


def is_cpu(device: str) -> bool:
    """Whether a device id is that of the CPU or of some of its cores.

    >>> [is_cpu(device) for device in ("cpu", "cpu:0-1", "cuda:0", "sim:cpu")]
    [True, True, False, False]
    """
    return device.partition(":")[0] == "cpu"


def cores_of(device: str) -> tuple[int, ...] | None:
    """The core set that a device id names; None for the whole CPU and for other silicon.

    >>> cores_of("cpu:0-2,5"), cores_of("cpu:5-1"), cores_of("cpu"), cores_of("cuda:0")
    ((0, 1, 2, 5), (), None, None)
    """
    kind, _, cores = device.partition(":")
    return parse_cores(cores) if kind == "cpu" and cores else None


def names_no_core(device: str) -> bool:
    """Whether a device id is a core set without a core.

    >>> names_no_core("cpu:5-1"), names_no_core("cpu:1"), names_no_core("cpu")
    (True, False, False)
    """
    return cores_of(device) == ()
