"""Core sets of devices as bits: pure."""

from __future__ import annotations

from edged.backend import cores_of, is_cpu


def mask(device: str, cores: int) -> int:
    """The cores of a device id as bits; 0 for silicon that is not the CPU.

    >>> mask("cpu", 2), mask("cpu:1", 2), mask("npu", 2)
    (3, 2, 0)
    """
    if not is_cpu(device):
        return 0
    everything, named = (1 << cores) - 1, cores_of(device)
    return everything if named is None else everything & sum(1 << core for core in named)
