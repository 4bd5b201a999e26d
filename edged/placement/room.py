"""Whether there is memory for the old and the new workers of a stage at once: pure."""

from __future__ import annotations

from typing import Literal

import msgspec

MARGIN = 0.05
"""Of the machine's memory, that is to stay free: answers in progress and the page cache grow into it."""


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of workers takes, and what there is for it."""

    needed_bytes: int
    """All new workers together; 0: not known."""
    freed_bytes: int
    """What the old ones give back once they are gone."""
    available_bytes: int
    total_bytes: int

    @property
    def verdict(self) -> Literal["beside", "alone", "none"]:
        """How the new workers fit: beside the old ones, only without them, or not at all.

        >>> Room(needed_bytes=3, freed_bytes=2, available_bytes=4, total_bytes=10).verdict
        'beside'
        >>> Room(needed_bytes=5, freed_bytes=2, available_bytes=4, total_bytes=10).verdict
        'alone'
        >>> Room(needed_bytes=7, freed_bytes=2, available_bytes=4, total_bytes=10).verdict
        'none'
        """
        usable = self.available_bytes - MARGIN * self.total_bytes
        if self.needed_bytes <= max(usable, 0):
            return "beside"
        return "alone" if self.needed_bytes <= usable + self.freed_bytes else "none"

    @property
    def sentence(self) -> str:
        """The figures in words."""
        return (
            f"the new workers are expected to take {_mib(self.needed_bytes)}; "
            f"{_mib(self.available_bytes)} are available, {_mib(MARGIN * self.total_bytes)} of which are to "
            f"stay free, and the old workers hold {_mib(self.freed_bytes)}"
        )


def _mib(count: float) -> str:
    return f"{count / 2**20:.0f} MiB"
