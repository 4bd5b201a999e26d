"""The worker process: `python -m edged.workers INCARNATION`, its `WorkerSpec` on standard input."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import cast

from edged import log
from edged.backend import parse_cores
from edged.errors import ConfigError, EdgedError
from edged.messages import Fault, Ready
from edged.stages.contract import BatchStage, as_streaming
from edged.stages.factory import build
from edged.transport.links import Dealer
from edged.transport.slots import Arena
from edged.workers.loop import TokenLoop, serve_batches
from edged.workers.spec import WorkerSpec, from_json

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38
OOM_SCORE = 500
"""A worker is a better victim than the daemon, which will replace it."""

logger = logging.getLogger("edged.worker")


def main() -> int:
    """Load the stage, announce it, serve until told to stop; the exit status says how it went."""
    spec = from_json(sys.stdin.buffer.read())
    _settle(spec)
    log.configure(spec.log_level, spec.log_format)
    link = Dealer(spec.endpoint, spec.incarnation)
    try:
        _serve(spec, link)
    except EdgedError as error:
        logger.error(
            "stage failed", extra={"stage": spec.stage.name, "code": error.code, "why": error.message}
        )
        link.send(Fault(error.code, error.message))
        return 1
    finally:
        link.close()
    return 0


def _serve(spec: WorkerSpec, link: Dealer) -> None:
    started = time.perf_counter()
    _pin(spec.stage.device)
    arenas = {a.arena: Arena(a.descriptor, a.geometry, writable=a.writable) for a in spec.arenas}
    stage = build(spec.stage)
    load_s = time.perf_counter() - started
    if (streaming := as_streaming(stage)) is not None:
        credit = min(streaming.room, spec.stage.max_batch)
        link.send(Ready(credit, os.getpid(), load_s, dict(stage.details)))
        TokenLoop(streaming, link, arenas).run()
    else:
        link.send(Ready(spec.stage.max_batch, os.getpid(), load_s, dict(stage.details)))
        serve_batches(cast("BatchStage", stage), link, arenas)
    stage.close()


def _settle(spec: WorkerSpec) -> None:
    """Die with the daemon, be known by name, stay on the device's cores, be first to go when memory ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != spec.parent:  # it died before the line above
        sys.exit(1)
    prctl(PR_SET_NAME, f"edged:{spec.stage.name}"[:15].encode(), 0, 0, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    score = Path("/proc/self/oom_score_adj")
    if int(score.read_text()) < OOM_SCORE:  # only root may lower what root has set
        score.write_text(str(OOM_SCORE))


def _pin(device: str) -> None:
    kind, _, cores = device.partition(":")
    if kind != "cpu" or not cores:
        return
    wanted, allowed = set(parse_cores(cores)), os.sched_getaffinity(0)
    if not wanted <= allowed:
        raise ConfigError(
            f"device {device!r} names cores that this process may not use; allowed: {sorted(allowed)}",
            param="device",
        )
    for thread in Path("/proc/self/task").iterdir():  # the link's and the libraries' threads run already
        os.sched_setaffinity(int(thread.name), wanted)


if __name__ == "__main__":
    sys.exit(main())
