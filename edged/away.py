"""The books of a stage that has lost a device: where it can run, and what is known of each place."""

from __future__ import annotations

import msgspec

from edged.dispatch import losses
from edged.dispatch.ledger import Trial
from edged.placement.fallback import silicon
from edged.workers.spec import StageSpec


class Away(msgspec.Struct):
    """A stage that has lost a device, and what is known of its devices."""

    name: str
    specs: list[StageSpec]
    """What it runs on each place, the one that it belongs on first; replaced, never changed in place."""
    state: losses.State = losses.State()
    trial: Trial | None = None
    """Of the place that is being tried."""
    until: float = 0.0
    """When a try has taken too long."""

    @property
    def wanted(self) -> StageSpec:
        """What the stage is to run."""
        return self.specs[self.state.at]

    @property
    def lost(self) -> frozenset[str]:
        """The silicon of the places that are lost."""
        places = (place for place in self.state.losses if self.state.lost(place))
        return frozenset(silicon(self.specs[place].device) for place in places)

    def rebase(self, found: list[StageSpec], wanted: StageSpec) -> None:
        """Have the stage run what `found` says, and `wanted` where it is now.

        Where its places are others by now, only the first one, on which it belongs, is taken from `found`:
        an operator may have another variant run on each place.
        """
        same = [_where(spec) for spec in found] == [_where(spec) for spec in self.specs]
        specs = [*found] if same else [found[0], *self.specs[1:]]
        specs[self.state.at] = wanted
        self.specs = specs


def _where(spec: StageSpec) -> tuple[str, str]:
    return spec.device, spec.backend
