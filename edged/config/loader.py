"""Reading a configuration: every layer once, merged, checked, all paths absolute."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edged.config.layers import check, from_environment, from_file, from_flags, merge, require
from edged.config.places import locate, resolve
from edged.config.rules import cross_check
from edged.config.tables import BUILT_IN, Config


def load(
    path: Path | None = None, environment: Mapping[str, str] | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Read every layer once and return the configuration in force, all paths absolute.

    `path` is the file that `--config` names; None looks in the documented places. `overrides` are
    `queue.slots=8` as `--set` takes them. Raises `ConfigError` that names the field, its value and the limit.
    """
    environment = os.environ if environment is None else environment
    file = locate(path, environment)
    layers = [BUILT_IN]
    for source, layer in (
        (str(file), from_file(file) if file else {}),
        ("environment", from_environment(environment, Config)),
        ("--set", from_flags(overrides, Config)),
    ):
        check(Config, layer, source)
        layers.append(layer)
    merged = merge(*layers)
    require(Config, merged)
    config = msgspec.convert(merged, Config, dec_hook=lambda _, value: Path(value))
    config = resolve(config, environment, file)
    cross_check(config)
    return config


def schema() -> dict[str, Any]:
    """Return the JSON Schema of `edged.toml`, for editors and linters."""
    described = msgspec.json.decode(
        msgspec.json.encode(msgspec.json.schema(Config, schema_hook=_path_schema))
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edged.toml", **described}


def _path_schema(kind: type) -> dict[str, Any]:
    if issubclass(kind, Path):
        return {"type": "string"}
    raise TypeError(f"{kind} has no JSON schema")
