"""Core sets of devices as bits: pure."""

from __future__ import annotations

from edged.backend import parse_cores


def mask(device: str, cores: int) -> int:
    """The cores of a device id as bits; 0 for silicon that is not the CPU.

    >>> mask("cpu", 2), mask("cpu:1", 2), mask("npu", 2)
    (3, 2, 0)
    """
    kind, _, given = device.partition(":")
    if kind != "cpu":
        return 0
    everything = (1 << cores) - 1
    return everything & sum(1 << core for core in parse_cores(given)) if given else everything
