"""A stage's process: `python -m edged.layers`, its `StageSpec` on standard input."""

from __future__ import annotations

import os
import signal
import sys
from io import FileIO
from typing import Literal

import msgspec

from edged.birth import settle
from edged.errors import ConfigError, DeviceLost, EdgedError
from edged.layers.spec import Loaded, StageSpec, is_elsewhere


def main() -> int:
    """Load the stage, say so, serve until told to leave; the first stage tells of errors."""
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=StageSpec)
    settle(f"edged:layers-{spec.stage}", spec.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first stage, which ends the others
    if spec.device.startswith("cpu:"):  # whoever started it may be pinned to other cores
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    told = FileIO(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        _serve(spec, told)
    except EdgedError as error:
        told.write(_line(Loaded(stage=spec.stage, failed=error.message, code=_code(error))))
        return 1
    return 0


def _serve(spec: StageSpec, told: FileIO) -> None:
    if is_elsewhere(spec.device):
        from edged.layers.remote.relay import run

        run(spec, lambda loaded: _tell(told, loaded), os.environ)
        return
    from edged.layers.faults import Explained
    from edged.layers.follower import follow
    from edged.layers.links.opening import process_links
    from edged.layers.runners import build

    runner, loaded = build(spec)
    told.write(_line(loaded))
    if not sys.stdin.buffer.readline():  # all have loaded; nothing comes when the pipeline was given up
        return
    links = process_links(spec)
    try:
        follow(spec, Explained(runner, spec.stage), links.incoming, links.outgoing)
    finally:
        links.close()
        runner.close()


def _tell(told: FileIO, loaded: Loaded) -> None:
    told.write(_line(loaded))


def _line(loaded: Loaded) -> bytes:
    return msgspec.json.encode(loaded) + b"\n"


def _code(error: EdgedError) -> Literal["backend", "device_lost", "config"]:
    if isinstance(error, DeviceLost):
        return "device_lost"
    return "config" if isinstance(error, ConfigError) else "backend"


if __name__ == "__main__":
    sys.exit(main())
