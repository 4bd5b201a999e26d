"""The worker process: `python -m edged.workers INCARNATION`, its `WorkerSpec` on standard input."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import cast

from edged import log
from edged.birth import pin, settle
from edged.errors import EdgedError
from edged.messages import Fault, Ready
from edged.stages.contract import BatchStage, as_streaming
from edged.stages.factory import build
from edged.transport.links import Dealer
from edged.transport.slots import Arena
from edged.workers.loop import BatchLoop, TokenLoop
from edged.workers.proof import prove
from edged.workers.spec import WorkerSpec, from_json

logger = logging.getLogger("edged.worker")


def main() -> int:
    """Load the stage, announce it, serve until told to stop; the exit status says how it went."""
    spec = from_json(sys.stdin.buffer.read())
    settle(f"edged:{spec.stage.name}", spec.parent)
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
    pin(spec.stage.device)
    arenas = {a.arena: Arena(a.descriptor, a.geometry, writable=a.writable) for a in spec.arenas}
    stage = build(spec.stage)
    shown = prove(stage, spec.stage, guarded=spec.trial == "guarded") if spec.trial else {}
    load_s = time.perf_counter() - started
    if (streaming := as_streaming(stage)) is not None:
        credit = min(streaming.room, spec.stage.max_batch)
        link.send(Ready(credit, os.getpid(), load_s, dict(stage.details) | shown))
        TokenLoop(streaming, link, arenas, spec.stage.stream_interval_ms / 1000).run()
    else:
        batches = cast("BatchStage", stage)
        details = dict(stage.details) | shown
        link.send(Ready(spec.stage.max_batch, os.getpid(), load_s, details, batches.lanes))
        BatchLoop(batches, link, arenas).run()
    stage.close()


if __name__ == "__main__":
    sys.exit(main())
