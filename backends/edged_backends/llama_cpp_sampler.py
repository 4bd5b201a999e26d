"""How the next token is chosen: llama.cpp's own sampler chain, one per sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from edged.backend import Sampling
from edged_backends.llama_cpp_runtime import runtime

PENALTY_WINDOW = 64
"""New tokens that penalties look back on, as in the class `Llama`; the prompt is not punished."""


class Sampler:
    """The chain of one sequence: bias, penalties, top_k, top_p, min_p, temperature, draw.

    Links and draws are those of `llama_cpp.Llama`: the same seed gives the same tokens. The draws are
    one sequence of random numbers, so a sampled answer repeats from its prompt, not from its middle.
    """

    def __init__(self, sampling: Sampling, vocabulary_size: int) -> None:
        self._chain: Any = runtime.llama_sampler_chain_init(runtime.llama_sampler_chain_default_params())
        for link in _links(sampling, vocabulary_size):
            runtime.llama_sampler_chain_add(self._chain, link)
        self._size = vocabulary_size
        self._plain = sampling == Sampling(seed=sampling.seed)

    def sample(self, context: Any, row: int) -> int:
        """Choose a token from the logits of batch row `row`, and remember it.

        Without bias and penalties greedy decoding is the first of the highest logits, which numpy finds in a
        sixth of the time that the chain takes.
        """
        if self._plain:
            logits = runtime.llama_get_logits_ith(context, row)
            return int(np.ctypeslib.as_array(logits, (self._size,)).argmax())
        return int(runtime.llama_sampler_sample(self._chain, context, row))

    def close(self) -> None:
        """Free the chain and its links."""
        runtime.llama_sampler_free(self._chain)


def _links(sampling: Sampling, vocabulary_size: int) -> list[Any]:
    links = [_bias(sampling.logit_bias, vocabulary_size)] if sampling.logit_bias else []
    penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    if penalties != (1.0, 0.0, 0.0):
        links.append(runtime.llama_sampler_init_penalties(vocabulary_size, PENALTY_WINDOW, *penalties))
    return links + (_draw(sampling) if sampling.temperature else [runtime.llama_sampler_init_greedy()])


def _draw(sampling: Sampling) -> list[Any]:
    return [
        *([runtime.llama_sampler_init_top_k(sampling.top_k)] if sampling.top_k else []),
        runtime.llama_sampler_init_top_p(sampling.top_p, 1),
        runtime.llama_sampler_init_min_p(sampling.min_p, 1),
        runtime.llama_sampler_init_temp(sampling.temperature),
        runtime.llama_sampler_init_dist(sampling.seed),
    ]


def _bias(biases: dict[int, float], vocabulary_size: int) -> Any:
    entries = (runtime.llama_logit_bias * len(biases))(*biases.items())
    return runtime.llama_sampler_init_logit_bias(vocabulary_size, len(biases), entries)
