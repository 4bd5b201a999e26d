"""How the next token is chosen: llama.cpp's own sampler chain, one per sequence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from edged.backend import Sampling
from edged_backends.llama_cpp_runtime import runtime

_SEED_BITS = 0x7FFF_FFFF
"""Seeds stay below `LLAMA_DEFAULT_SEED`, which means "random"."""


def seed_at(seed: int, position: int) -> int:
    """Seed of the draw for the token at `position` of prompt and answer together.

    A draw that depends on its place, not on how many came before, is the same in a resumed sequence.

    >>> seed_at(7, 100) == seed_at(7, 100) != seed_at(7, 101)
    True
    """
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & _SEED_BITS


class Sampler:
    """The chain of one sequence: penalties, top_k, top_p, min_p, temperature, draw.

    Penalties count prompt and answer alike, over the whole sequence: only so is a resumed sequence,
    whose prompt holds the answer's first tokens, punished as the one that it continues.
    """

    def __init__(self, sampling: Sampling, vocabulary_size: int, prompt: Sequence[int], window: int) -> None:
        self._seed = sampling.seed
        self._greedy = sampling.temperature == 0
        self._chain: Any = runtime.llama_sampler_chain_init(runtime.llama_sampler_chain_default_params())
        for link in _links(sampling, vocabulary_size, window):
            runtime.llama_sampler_chain_add(self._chain, link)
        if _penalises(sampling):
            for token in prompt:
                runtime.llama_sampler_accept(self._chain, token)

    def sample(self, context: Any, row: int, position: int) -> int:
        """Choose the token at `position` from the logits of batch row `row`, and remember it."""
        if self._greedy:
            return int(runtime.llama_sampler_sample(self._chain, context, row))
        draw = runtime.llama_sampler_init_dist(seed_at(self._seed, position))
        runtime.llama_sampler_chain_add(self._chain, draw)
        token = int(runtime.llama_sampler_sample(self._chain, context, row))
        last = runtime.llama_sampler_chain_n(self._chain) - 1
        runtime.llama_sampler_free(runtime.llama_sampler_chain_remove(self._chain, last))
        return token

    def close(self) -> None:
        """Free the chain and its links."""
        runtime.llama_sampler_free(self._chain)


def _penalises(sampling: Sampling) -> bool:
    penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    return penalties != (1.0, 0.0, 0.0)


def _links(sampling: Sampling, vocabulary_size: int, window: int) -> list[Any]:
    links = []
    if _penalises(sampling):
        links.append(
            runtime.llama_sampler_init_penalties(
                vocabulary_size,
                window,
                sampling.repetition_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.temperature == 0:
        return [*links, runtime.llama_sampler_init_greedy()]
    if sampling.top_k:
        links.append(runtime.llama_sampler_init_top_k(sampling.top_k))
    links.append(runtime.llama_sampler_init_top_p(sampling.top_p, 1))
    links.append(runtime.llama_sampler_init_min_p(sampling.min_p, 1))
    links.append(runtime.llama_sampler_init_temp(sampling.temperature))
    return links
