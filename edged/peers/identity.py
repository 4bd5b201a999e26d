"""Which models of two nodes are the same, or of one kind, so that one answers for the other: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from edged.workers.spec import StageSpec

WEIGHTLESS = {"simulated": "simulated"}
"""Backends without weights whose tokens mean the same everywhere. Not `openai`: its servers are others'."""


class Kin(msgspec.Struct, frozen=True):
    """What a peer may serve to make answers of a stage."""

    own: str
    """Identity of what the stage serves itself: with it an answer that has begun goes on. Empty: nothing."""
    better: frozenset[str] = frozenset()
    """Of better variants of its model: for answers that begin there."""
    answer_tokens: int = 0
    """Of an answer for which nobody named a limit; the same for all of them. 0: not known."""


def identity_of(spec: StageSpec, details: Mapping[str, Any]) -> str:
    """Of what a generator stage serves; empty when that cannot be served for others.

    The same weights, and the same limits: a prompt is cut, and an answer ended, by them.
    """
    weights = spec.variant.digest or WEIGHTLESS.get(spec.backend, "")
    if spec.kind != "generator" or not weights:
        return ""
    return _identity(spec.variant.model, weights, details)


def kin_of(spec: StageSpec, details: Mapping[str, Any], better: Iterable[str]) -> Kin:
    """What a stage and its peers have in common; `better`: digests of better variants of its model."""
    own = identity_of(spec, details)
    if not own:
        return Kin("")
    identities = frozenset(_identity(spec.variant.model, digest, details) for digest in better if digest)
    return Kin(own, identities, int(details.get("max_tokens", 0)))


def _identity(model: str, weights: str, details: Mapping[str, Any]) -> str:
    limits = tuple(str(details.get(name, "")) for name in ("context_tokens", "max_tokens"))
    return blake2b("\0".join((model, weights, *limits)).encode(), digest_size=16).hexdigest()
