"""A box whose sensors the test writes, its governor in a hurry, and what it decided."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edged.report import Decision, GovernorStatus
from edged.testing.daemon import RunningDaemon
from edged.testing.sysfs import SensorTree

COOL_C = 68.0
"""Below all limits, and near the first: what the governor hears follows a step within seconds."""


def hurried(ladder: str = "", *, floor: str = "", more: str = "") -> str:
    """`[governor]` whose times are short, without predictions, and with bands for the processor only."""
    return f"""
[governor]
sample_s = 0.05
dwell_s = 0.15
climb_after_s = 0.3
retry_s = 0.5
horizon_s = 0
floor = "{floor}"
memory = []
stall = []
load = []
{ladder}
{more}
"""


def lighter(variants: str) -> str:
    """The built-in ladder, whose rung `lighter-models` asks for these variants."""
    return f"""ladder = [
  {{ name = "full" }},
  {{ name = "fewer-passages", candidates = 3, keep = 1 }},
  {{ name = "shorter-answers", answer_tokens = 7 }},
  {{ name = "lighter-models", variants = {variants} }},
  {{ name = "no-rerank", bypass_rerank = true }},
  {{ name = "peer", peer = true }},
  {{ name = "shed-batch", shed_batch = true }},
  {{ name = "shed-half", busy_share = 0.5 }},
  {{ name = "shed-most", busy_share = 0.15 }},
]"""


class Box:
    """A sensor of the processor."""

    def __init__(self, folder: Path) -> None:
        self.tree = SensorTree(folder, own_load=True)
        (self.package,) = self.tree.chip(0, "coretemp", ("Package id 0", COOL_C))

    def heat(self, celsius: float) -> None:
        """From now on the processor is so hot."""
        self.tree.write(self.package, celsius)


def governor(daemon: RunningDaemon) -> GovernorStatus:
    """What the governor says of itself."""
    return daemon.admin.governor()


def wait_rung(daemon: RunningDaemon, name: str) -> GovernorStatus:
    """Wait until a rung is in force as a whole."""

    def there(_: object) -> bool:
        found = governor(daemon)
        return found.name == name and not found.under_way

    daemon.wait_for(there, f"rung {name}, not {governor(daemon)}")
    return governor(daemon)


def changes(daemon: RunningDaemon, matches: Callable[[Decision], bool] = lambda _: True) -> list[Decision]:
    """Steps down and up, oldest first."""
    return [row for row in daemon.admin.decisions(1000) if row.what in {"down", "up"} and matches(row)]
