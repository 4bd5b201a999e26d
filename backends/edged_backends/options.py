"""Options of an adapter: a struct per adapter, so that a wrong name or type is refused at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edged.backend import Device
from edged.errors import ConfigError

Options = TypeVar("Options", bound=msgspec.Struct)


def read_options(kind: type[Options], options: Mapping[str, Any], backend: str) -> Options:
    """Turn a stage's options to the adapter's struct; `ConfigError` names what is wrong and what is known."""
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise ConfigError(
            f"options of backend {backend!r}: {error}; known: {known}", param="options"
        ) from error


def thread_count(threads: int, device: Device) -> int:
    """Return the threads asked for, else one per core of the device, else one per core of this process."""
    return threads or len(device.cores) or len(os.sched_getaffinity(0))
