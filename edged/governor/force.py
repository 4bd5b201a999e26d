"""The rung in force: what the governor has decided, as all who carry a part of it out read it."""

from __future__ import annotations

import msgspec

from edged.config.tables import Rung


class InForce(msgspec.Struct, frozen=True):
    """A rung, and all that is done on it."""

    rung: int = 0
    name: str = "full"
    settings: Rung = Rung(name="full")
    """See `effects.settings`: what the rungs before do is in it."""

    @property
    def lowered(self) -> bool:
        """Whether quality is given up for anything."""
        return self.rung > 0
