"""Whether a stage on this host can have a device, before anything is loaded there."""

from __future__ import annotations

import os

from edged.backend import cores_of
from edged.errors import ConfigError
from edged.layers.devices import of_here


def check_here(device: str) -> None:
    """Raise `ConfigError` for what is no device, or none that a process of this host can use."""
    if not of_here(device):
        raise ConfigError(
            f"{device!r} is not a device for a stage on this host; write cpu, cpu:0-1 or cuda:0",
            param="device",
        )
    if device.startswith("cuda:"):
        from edged.layers.runners import device_of

        device_of(device)
    elif (wanted := cores_of(device)) and not (usable := usable_cores()).issuperset(wanted):
        raise ConfigError(
            f"device {device!r} names cores that no process may use here; usable: {sorted(usable)}",
            param="device",
        )


def usable_cores() -> set[int]:
    """Cores that a process of this one may be put on, wherever this one is pinned."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        return os.sched_getaffinity(0)
    finally:
        os.sched_setaffinity(0, before)
