"""How a stage computes with the fewest CPU seconds: what a rung of the quality ladder may ask for. Pure."""

from __future__ import annotations

from typing import Any

from edged.backend import cores_of, is_cpu
from edged.config import Stage
from edged.dispatch.losses import is_accelerator
from edged.placement.forms import PRICED
from edged.placement.prices import KEEPS_THREADS
from edged.workers.spec import StageSpec

CHANGES = ("threads", "exact")
"""The options that are changed."""


def frugal(spec: StageSpec, stage: Stage, cores: int, leased: int) -> dict[str, Any]:
    """What to change of the options of a placed stage; empty where nothing can be saved.

    Half of the threads: those that wait for each other at every layer, and for the same memory, burn time
    besides. And no `exact`, where that has a price and the operator has not asked for it. Measured for a
    generator on two cores in docs/decisions/0034-frugal-stages.md. `cores` are those of the machine, of which
    stages may keep `leased` busy: an engine that heeds that computes with no more threads already.
    """
    if is_accelerator(spec.device):
        return {}
    on_cpu = is_cpu(spec.device)
    asked = spec.options.get("threads")
    own = len(cores_of(spec.device) or ()) or cores
    threads = asked if isinstance(asked, int) and asked else (own if on_cpu else 0)
    if (spec.backend, spec.kind == "generator") not in KEEPS_THREADS:
        threads = min(threads, leased)
    found: dict[str, Any] = {}
    if threads > 1 and spec.backend != "torch_pipeline":  # that shares the cores out itself
        found["threads"] = (threads + 1) // 2
    priced = on_cpu and "exact" in PRICED.get((spec.backend, spec.kind), {})
    if priced and spec.options.get("exact", True) and stage.options.get("exact") is not True:
        found["exact"] = False
    return found
