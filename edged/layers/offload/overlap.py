"""Which settings of weights and cache outside the device go together. Pure."""

from __future__ import annotations

from typing import Protocol

from edged.errors import ConfigError
from edged.layers.spec import Overlap, OverlapFrom


class HasOverlap(Protocol):
    """The settings of an operator, or of a stage."""

    @property
    def overlap(self) -> Overlap | None:
        """Strategy; None keeps everything on the device."""
        ...

    @property
    def overlap_from(self) -> OverlapFrom:
        """Where weights live."""
        ...

    @property
    def block(self) -> int:
        """Parts of a job that share a load."""
        ...

    @property
    def offload_cache(self) -> bool:
        """Whether the KV cache is in host memory."""
        ...


def check_overlap(settings: HasOverlap) -> None:
    """Refuse what makes no sense together; `ConfigError` names the setting."""
    overlap = settings.overlap
    if settings.block > 1 and overlap != "multi":
        raise ConfigError(
            f"block = {settings.block} cuts a micro-batch into parts that share a load of weights, which "
            "only overlap = 'multi' does; choose it, or leave block out",
            param="block",
        )
    if settings.offload_cache and overlap is None:
        raise ConfigError(
            "offload_cache = true moves keys and values layer by layer with the weights; choose an overlap "
            "('none', 'single' or 'multi') for it",
            param="offload_cache",
        )
    if settings.overlap_from == "disk" and overlap is None:
        raise ConfigError(
            "overlap_from = 'disk' says where weights live that overlap brings to the device; choose an "
            "overlap ('none', 'single' or 'multi') for it",
            param="overlap_from",
        )
