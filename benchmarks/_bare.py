"""A process with one model open and as little else as possible: what row P12 compares workers with.

python -m benchmarks._bare < order.json     prints "ready", then waits for the end of its standard input
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from edged import plugins
from edged.backend import Variant


class Order(msgspec.Struct, frozen=True):
    """What to open."""

    backend: str
    device: str
    variant: Variant
    options: dict[str, Any]


def main() -> None:
    """Open a session as a worker does, and keep it."""
    order = msgspec.json.decode(
        sys.stdin.buffer.readline(), type=Order, dec_hook=lambda kind, value: kind(value)
    )
    backend = plugins.load(order.backend)
    device = next(device for device in backend.devices() if device.id == order.device)
    session = backend.open(order.variant, device, order.options)
    print("ready", flush=True)
    sys.stdin.buffer.read()
    session.close()


if __name__ == "__main__":
    main()
