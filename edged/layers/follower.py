"""The loop of every stage but the first: take what comes, in order, compute, pass it on."""

from __future__ import annotations

import time

from msgspec.structs import replace

from edged.errors import BackendError, DeviceLost
from edged.layers.links.hops import Incoming, Outgoing
from edged.layers.spec import StageSpec
from edged.layers.stage import Runner
from edged.layers.wire import Broken, End, Job, Timing


def follow(spec: StageSpec, runner: Runner, incoming: Incoming, outgoing: Outgoing) -> None:
    """Serve until told that no more jobs come; a job that fails goes round as `Broken`, named.

    In mode `seed` each send waits until it is taken.
    """
    stage, blocking = spec.stage, spec.mode == "seed"
    # Behind its own `End` the first stage listens no more, and these sends would wait to be taken.
    unheard = stage == spec.stages - 1 and spec.transport in {"gloo", "nccl"}
    sending_s = 0.0
    copied_s = 0.0
    while True:
        waited_from_s = time.monotonic()
        header, tensor = incoming.receive(None)
        began_s = time.monotonic()
        if not isinstance(header, Job) or tensor is None:
            if isinstance(header, End) and unheard:
                return
            outgoing.send(header)
            if isinstance(header, End):
                return
            continue
        try:
            computed = runner.run(header, tensor)
        except BackendError as error:
            lost = isinstance(error, DeviceLost)
            outgoing.send(Broken(stage, "device_lost" if lost else "backend", error.message))
            continue
        copy_s = incoming.copy_s + runner.copy_s + outgoing.copy_s
        timing = Timing(
            stage, waited_from_s, began_s, time.monotonic(), copy_s - copied_s, sending_s, tensor.nbytes
        )
        copied_s = copy_s
        outgoing.send(replace(header, timings=(*header.timings, timing)), computed, wait=blocking)
        sending_s = time.monotonic() - timing.ended_s
