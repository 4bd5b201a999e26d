"""Whether the dispatcher works: what the service manager's watchdog asks."""

from __future__ import annotations

from edged.dispatch.arenas import Arenas
from edged.dispatch.ledger import Ledger

PATIENCE_S = 2.0
"""Beyond the longest `timeout_s`, until whoever was silent so long is killed and buried."""


def self_test(ledger: Ledger, arenas: Arenas, silence_s: float) -> bool:
    """Whether an entry slot can be turned over: lease, write, check, give back.

    A full entry is no fault as long as workers are heard: whoever is silent beyond its `timeout_s` is
    killed, and that frees slots. `silence_s`: since anyone was heard.
    """
    ref = ledger.entry.lease()
    if ref is None:
        return silence_s < max(stage.timeout_s for stage in ledger.stages.values()) + PATIENCE_S
    intact = arenas.intact(ref)
    ledger.release(ref)
    return intact
