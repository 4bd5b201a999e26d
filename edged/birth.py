"""What a process that loads a model does first, whoever started it and for what."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from edged.backend import cores_of
from edged.errors import ConfigError

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38
OOM_SCORE = 500
"""A worker is a better victim than the daemon, which will replace it."""
SPINS = "1000"
"""`GOMP_SPINCOUNT`: how often a thread of OpenMP looks for work before it sleeps; some tens of microseconds.

The runtime's own choice, milliseconds, burns the time of busy neighbours: 4 times the CPU and 2 times the
wall time of decoding beside two busy threads. None at all sleeps and wakes at every layer: 3.5 times the wall
time on idle cores (row W1).
"""


def settle(name: str, parent: int) -> None:
    """Die with the parent, be known by name, be first to go when memory ends; exit if it is dead."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    prctl(PR_SET_NAME, name[:15].encode(), 0, 0, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    score = Path("/proc/self/oom_score_adj")
    if int(score.read_text()) < OOM_SCORE:  # only root may lower what root has set
        score.write_text(str(OOM_SCORE))
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def pin(device: str) -> None:
    """Stay on the cores that `cpu:0-1` names; `ConfigError` when this process may not use them."""
    wanted, allowed = cores_of(device), os.sched_getaffinity(0)
    if wanted is None:
        return
    if not wanted or not allowed.issuperset(wanted):
        named = "cores that this process may not use" if wanted else "no core"
        raise ConfigError(f"device {device!r} names {named}; allowed: {sorted(allowed)}", param="device")
    for thread in Path("/proc/self/task").iterdir():  # the link's and the libraries' threads run already
        os.sched_setaffinity(int(thread.name), wanted)
