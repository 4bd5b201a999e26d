"""What a plan is made from: the calibration as far as it holds here, the configuration, the machine."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edged.config import Config
from edged.errors import NotFound
from edged.models.store import ModelStore
from edged.placement import storage
from edged.placement.aim import Aim
from edged.placement.fingerprint import known_fingerprint
from edged.placement.limits import limits, wishes
from edged.placement.plan import Planner
from edged.placement.staleness import stale
from edged.placement.table import Plan, Table


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner may do beyond, or may not do within, what the configuration says."""

    exact: bool = False
    """No form that may give equal questions unlike answers."""
    quality_loss: bool = False
    """Variants below the default one, too."""
    excluded: frozenset[str] = frozenset()
    """Device ids that no stage may use."""
    stale: bool = False
    """Figures that no longer hold, too."""
    cores: int | None = None
    """Plan for a machine with so many; None: this one, as configured."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A planner with what it plans on."""

    planner: Planner
    table: Table
    stale: tuple[str, ...]
    """Why figures of the table do not hold here, where that was allowed; empty when all do."""

    def plan(self, aim: Aim) -> Plan:
        """The best placement, with what is wrong with its figures among its notes; see `Planner.plan`."""
        made = self.planner.plan(aim)
        if not self.stale:
            return made
        note = f"made from figures that no longer hold ({'; '.join(self.stale)})"
        return msgspec.structs.replace(made, notes=(note, *made.notes))


def draft(config: Config, store: ModelStore, leave: Leave) -> Draft:
    """Read the calibration of the configured state folder and prepare to plan with it.

    `NotFound` where nothing was calibrated, or where it no longer holds and `leave` does not allow that;
    `StorageError` when it cannot be read.
    """
    table = storage.load(storage.path_in(config.daemon.state_dir))
    if table is None:
        raise NotFound("nothing was calibrated here yet; run: edgectl calibrate", param="calibration")
    now = known_fingerprint(table, store)
    reasons = stale(table, now)
    if reasons and not leave.stale:
        raise NotFound(_outdated(reasons), param="calibration")
    allowed = limits(config, now, leave.excluded)
    if leave.cores is not None:
        allowed = msgspec.structs.replace(allowed, cores=leave.cores)
    wanted = wishes(config, store.catalogue, exact=leave.exact, quality_loss=leave.quality_loss)
    return Draft(planner=Planner(table, wanted, allowed), table=table, stale=tuple(reasons))


def _outdated(reasons: Sequence[str]) -> str:
    return (
        f"the calibration no longer holds here ({'; '.join(reasons)}); run: edgectl calibrate, "
        "or plan with it as it is: edgectl plan --stale"
    )
