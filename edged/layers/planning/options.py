"""A plan as the options of a generator, so that the daemon runs what was planned. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edged.errors import ConfigError
from edged.layers.devices import of_llama, of_torch
from edged.layers.planning.llama_split import MAX_SEQUENCES, from_stages
from edged.layers.planning.plan import LayerPlan


def pipeline_options(plan: LayerPlan) -> dict[str, Any]:
    """Return the options for the backend `torch_pipeline`; `ConfigError` says why there are none."""
    devices = [stage.device for stage in plan.stages]
    _check(devices, of_torch, "torch has no device of that name")
    if not devices[0].startswith(("cpu", "cuda")):
        raise ConfigError(f"the first stage is on the host of the daemon, not at {devices[0]}")
    kept = {"dtype": plan.dtype} if plan.dtype else {}
    return {
        "devices": devices,
        "layers": list(plan.sizes),
        "mode": plan.mode,
        "micro_batches": plan.micro_batches,
        "max_sequences": plan.max_sequences,
        "context_tokens": plan.context_tokens,
        **kept,
    }


def llama_options(plan: LayerPlan) -> dict[str, Any]:
    """Return the options for the backend `llama_cpp`, which knows no micro-batches; else `ConfigError`."""
    stages = [(stage.device, stage.share) for stage in plan.stages]
    _check([device for device, _ in stages], of_llama, "llama.cpp has no device of that name")
    if plan.max_sequences > MAX_SEQUENCES:
        raise ConfigError(f"{plan.max_sequences} sequences; llama_cpp takes at most {MAX_SEQUENCES}")
    devices, layers = from_stages(stages)
    return {
        "devices": list(devices),
        "layers": list(layers),
        "max_sequences": plan.max_sequences,
        "context_tokens": plan.context_tokens,
    }


ENGINES = {"torch_pipeline": pipeline_options, "llama_cpp": llama_options}


def options_of(plan: LayerPlan) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the options by backend, and of each backend that cannot run the plan, why."""
    found, refused = {}, {}
    for name, write in ENGINES.items():
        try:
            found[name] = write(plan)
        except ConfigError as error:
            refused[name] = error.message
    return found, refused


def as_toml(options: dict[str, Any]) -> str:
    """Write options as TOML's inline table; lists, numbers and names look there as in JSON.

    >>> as_toml({"devices": ["cpu"], "micro_batches": 2})
    '{ devices = ["cpu"], micro_batches = 2 }'
    """
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items()) + " }"


def _check(devices: list[str], known: Callable[[str], bool], why: str) -> None:
    for device in devices:
        if not known(device):
            raise ConfigError(f"{device}: {why}")
