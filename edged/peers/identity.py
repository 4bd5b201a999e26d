"""Which models are the same on two nodes, so that one goes on with the tokens of the other."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from edged.workers.spec import StageSpec

WEIGHTLESS = {"simulated": "simulated"}
"""Backends without weights whose tokens mean the same everywhere. Not `openai`: its servers are others'."""


def identity_of(spec: StageSpec, details: Mapping[str, Any]) -> str:
    """Of what a generator stage serves; empty when that cannot be served for others.

    The same weights, and the same limits: a prompt is cut, and an answer ended, by them.
    """
    weights = spec.variant.digest or WEIGHTLESS.get(spec.backend, "")
    if spec.kind != "generator" or not weights:
        return ""
    limits = tuple(str(details.get(name, "")) for name in ("context_tokens", "max_tokens"))
    parts = (spec.variant.model, weights, *limits)
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
