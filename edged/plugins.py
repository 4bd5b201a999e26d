"""Adapters by entry point: the group `edged.backends`, loaded when a stage asks for one by name."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from edged.backend import Backend
from edged.errors import ConfigError

GROUP = "edged.backends"
_EXTRAS = {"llama_cpp": "llama", "openai": "openai", "torch_pipeline": "pipeline"}


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> list[str]:
    """Names of the installed adapters, whether or not their runtime is there."""
    return sorted(_entries())


@cache
def load(name: str) -> Backend:
    """Return the adapter called `name`; `ConfigError` when unknown or its runtime is missing."""
    entry = _entries().get(name)
    if entry is None:
        raise ConfigError(f"unknown backend {name!r}; installed: {', '.join(names())}", param="backend")
    try:
        backend = cast("type[Backend]", entry.load())
    except ImportError as error:
        if (error.name or "").split(".")[0] == entry.module.split(".")[0]:
            raise ConfigError(
                f"backend {name!r} is not installed properly ({error}); reinstall edged"
            ) from error
        extra = f"edged[{_EXTRAS[name]}]" if name in _EXTRAS else "edged"
        raise ConfigError(
            f"backend {name!r} lacks its runtime ({error}); run: pip install '{extra}'", param="backend"
        ) from error
    return backend()
