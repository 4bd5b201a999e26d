"""The sd_notify protocol by hand (sd_notify(3)): a line of text to the socket that systemd names."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

PINGS_PER_TIMEOUT = 3
"""Two pings may be late before systemd loses patience."""


def notify(*lines: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send assignments such as `READY=1` to systemd; False when it did not start us or does not listen."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(0)
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
    return True


def reloading() -> bool:
    """Say that the configuration is being read again; `READY=1` ends it."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return notify("RELOADING=1", f"MONOTONIC_USEC={microseconds}")


def watchdog_interval_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often to send `WATCHDOG=1`; None when nobody waits for it.

    `WATCHDOG_USEC` is the time after which systemd kills us; `WATCHDOG_PID` says whom it means.
    """
    timeout_us, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not timeout_us.isdecimal() or int(timeout_us) == 0 or pid not in {"", str(os.getpid())}:
        return None
    return int(timeout_us) / 1_000_000 / PINGS_PER_TIMEOUT
