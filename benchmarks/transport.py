"""P8, P9 and T1 to T13: one hop over edged's own link and arenas, beside what else could carry it.

T numbers are those of the design's transport table. The hop is the product's: a producer that was leased a
slot writes it, sends `Done` over DEALER, the daemon's ROUTER takes it, checks the checksum, reads in place,
and leases the slot again with a `Work` message: a descriptor one way and a credit the other, each time.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks import near
from benchmarks.measurement import Row, say, spread
from benchmarks.near import Cost
from benchmarks.overhead import EMPTY_STAGES
from benchmarks.storm import storm
from edged.governor.sensors import resident_bytes

KIB, MIB = 1 << 10, 1 << 20
SAME, SPLIT = (0, 0), (0, 1)
PINS = {"same": SAME, "split": SPLIT}
Run = Callable[[], Cost]
Detail = dict[str, Any]


def compared(ours: Run, theirs: Run, rounds: int) -> Detail:
    """Messages per second and CPU per message, ours against theirs, order reversed every round."""
    speed, cpu, mine = [], [], []
    for number in range(rounds):
        if number % 2:
            other, own = theirs(), ours()
        else:
            own, other = ours(), theirs()
        speed.append(other.wall_s / own.wall_s)
        cpu.append(own.cpu_s / other.cpu_s)
        mine.append(own)
    return {
        "messages_ratio": spread(speed),
        "cpu_ratio": spread(cpu),
        "our_us": round(statistics.median(cost.wall_s for cost in mine) * 1e6, 1),
        "our_cpu_us": round(statistics.median(cost.cpu_s for cost in mine) * 1e6, 1),
    }


def _rounds(quick: bool) -> int:
    return 3 if quick else 9


@cache
def _stream(mode: str, size: int, pin: str, quick: bool) -> Detail:
    """Against pyzmq copying."""
    messages = max(40, min(8000, (400 if quick else 1600) * MIB // size))
    say(f"  hop of {size >> 10} KiB, {mode}, {pin}: {messages} messages a run")
    pins = PINS[pin]
    return compared(
        partial(near.edged, mode, size, messages, pins),
        partial(near.pyzmq, size, messages, pins),
        _rounds(quick),
    )


def _worst(mode: str, size: int, quick: bool, cpu_gate: float | None) -> tuple[float, Detail]:
    """The lower of both pinnings counts; CPU per message is gated beside it."""
    found = {pin: _stream(mode, size, pin, quick) for pin in PINS}
    value = min(detail["messages_ratio"]["median"] for detail in found.values())
    cpu = max(detail["cpu_ratio"]["median"] for detail in found.values())
    over = [f"CPU per message {cpu:.2f} of pyzmq's, gate {cpu_gate}"] if cpu_gate and cpu > cpu_gate else []
    return value, {**found, "cpu_ratio": cpu, "cpu_gate": cpu_gate, "violations": over}


def _stream_row(mode: str, size: int, cpu_gate: float | None) -> Callable[[bool], tuple[float, Detail]]:
    return lambda quick: _worst(mode, size, quick, cpu_gate)


def _cpu(quick: bool) -> tuple[float, Detail]:
    value = max(_stream("copy", MIB, pin, quick)["cpu_ratio"]["median"] for pin in PINS)
    return value, {"see": "T1"}


def _against_memcpy(size: int, quick: bool) -> tuple[float, Detail]:
    messages = max(30, (200 if quick else 800) * MIB // size)
    ratios = []
    for _ in range(_rounds(quick)):
        own = near.edged("copy", size, messages, SPLIT)
        ratios.append(near.memcpy(size, messages) / own.wall_s)
    return statistics.median(ratios), {"bandwidth_ratio": spread(ratios)}


def _large(quick: bool) -> tuple[float, Detail]:
    """16 MiB: against memcpy, and against pyzmq."""
    value, detail = _against_memcpy(16 * MIB, quick)
    beside = _stream("copy", 16 * MIB, "split", quick)
    ratio = beside["messages_ratio"]["median"]
    short = [f"{ratio:.1f} times pyzmq, gate 4"] if ratio < 4 else []
    return value, {**detail, "against_pyzmq": beside, "violations": short}


def _round_trip(quick: bool) -> tuple[float, Detail]:
    """4 KiB there and back over both sockets, in eventfd ping-pongs."""
    trips = 1000 if quick else 4000
    found: dict[str, list[float]] = {pin: [] for pin in PINS}
    times: dict[str, list[float]] = {pin: [] for pin in PINS}
    bare: dict[str, list[float]] = {pin: [] for pin in PINS}
    for _ in range(_rounds(quick)):
        for pin, pins in PINS.items():
            own = near.edged("echo", 4 * KIB, trips, pins, trips=True).wall_s
            floor = near.eventfd_trip(trips, pins)
            found[pin].append(own / floor)
            bare[pin].append(near.bare_trip(trips, pins) / floor)
            times[pin].append(own * 1e6)
    split = statistics.median(found["split"])
    over = [f"across cores {split:.1f}, gate 3"] if split > 3 else []
    detail: Detail = {pin: spread(values) for pin, values in found.items()}
    detail |= {f"{pin}_us": spread(values) for pin, values in times.items()}
    detail |= {f"bare_zeromq_{pin}": spread(values) for pin, values in bare.items()}
    return statistics.median(found["same"]), detail | {"violations": over}


def _in_place(quick: bool) -> tuple[float, Detail]:
    """A round trip does not grow with the payload when nobody copies it."""
    trips, ratios = 300 if quick else 1500, []
    for _ in range(_rounds(quick)):
        large = near.edged("echo_place", MIB, trips, SAME, trips=True)
        ratios.append(large.wall_s / near.edged("echo_place", 4 * KIB, trips, SAME, trips=True).wall_s)
    return statistics.median(ratios), {"ratio": spread(ratios)}


def _python_queue(quick: bool) -> tuple[float, Detail]:
    messages = 100 if quick else 400
    unpinned = (-1, -1)
    detail = compared(
        partial(near.edged, "copy", MIB, messages, unpinned),
        partial(near.python_queue, MIB, messages),
        _rounds(quick),
    )
    less = 1 / detail["cpu_ratio"]["median"]
    short = [f"{less:.1f} times less CPU, gate 10"] if less < 10 else []
    return detail["messages_ratio"]["median"], detail | {"violations": short}


def _bounded(quick: bool) -> tuple[float, Detail]:
    """Slots out on lease never exceed their number, and memory does not grow with messages."""
    messages = 10_000 if quick else 100_000
    near.edged("copy", 4 * KIB, 2000, SPLIT)
    before = resident_bytes(os.getpid())
    cost = near.edged("copy", 4 * KIB, messages, SPLIT)
    grown_mib = (resident_bytes(os.getpid()) - before) / MIB
    slots = near.slots_for(4 * KIB)
    over = [f"{cost.peak} of {slots} slots out"] if cost.peak > slots else []
    return grown_mib, {"peak_slots": cost.peak, "slots": slots, "messages": messages, "violations": over}


def _kills(quick: bool) -> tuple[float, Detail]:
    """SIGKILLs of random stages of a pipeline that passes bytes on: every answer whole and once."""
    kills = 10 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        outcome = storm(Path(folder), EMPTY_STAGES, "empty", kills, random.Random(7))
    return float(outcome.lost + outcome.wrong), outcome.detail()


ROWS = (
    Row(
        id="P8",
        what="one hop, 1 MiB, messages/s / pyzmq copying; CPU per message gated at 0.30",
        unit="ratio",
        gate=3.5,
        goal=10.0,
        better="higher",
        measure=_stream_row("copy", MIB, 0.30),
    ),
    Row(
        id="P9",
        what="4 KiB round trip / raw eventfd ping-pong, same core",
        unit="ratio",
        gate=8.0,
        goal=6.0,
        better="lower",
        measure=cache(_round_trip),
    ),
    Row(
        id="T1",
        what="1 MiB, copied in, messages/s / pyzmq copying",
        unit="ratio",
        gate=3.5,
        goal=5.0,
        better="higher",
        measure=_stream_row("copy", MIB, None),
    ),
    Row(
        id="T2",
        what="the same, CPU per message / pyzmq's",
        unit="ratio",
        gate=0.30,
        goal=0.12,
        better="lower",
        measure=_cpu,
    ),
    Row(
        id="T3",
        what="1 MiB made in its slot, messages/s / pyzmq copying what is made; CPU gated at 0.10",
        unit="ratio",
        gate=7.0,
        goal=20.0,
        better="higher",
        measure=_stream_row("place", MIB, 0.10),
    ),
    Row(
        id="T4",
        what="1 MiB copied in / memcpy",
        unit="ratio",
        gate=0.35,
        goal=0.60,
        better="higher",
        measure=lambda quick: _against_memcpy(MIB, quick),
    ),
    Row(
        id="T5",
        what="16 MiB copied in / memcpy; at least 4 times pyzmq",
        unit="ratio",
        gate=0.60,
        goal=0.85,
        better="higher",
        measure=_large,
    ),
    Row(
        id="T6",
        what="64 KiB, messages/s / pyzmq copying; CPU gated at 0.5",
        unit="ratio",
        gate=1.5,
        goal=4.0,
        better="higher",
        measure=_stream_row("copy", 64 * KIB, 0.5),
    ),
    Row(
        id="T7",
        what="4 KiB, messages/s / pyzmq copying",
        unit="ratio",
        gate=0.5,
        goal=1.0,
        better="higher",
        measure=_stream_row("copy", 4 * KIB, None),
    ),
    Row(
        id="T8",
        what="4 KiB round trip / raw eventfd: same core; across cores gated at 3",
        unit="ratio",
        gate=8.0,
        goal=6.0,
        better="lower",
        measure=cache(_round_trip),
    ),
    Row(
        id="T10",
        what="round trip of 1 MiB / of 4 KiB, nothing copied",
        unit="ratio",
        gate=2.0,
        goal=1.15,
        better="lower",
        measure=_in_place,
    ),
    Row(
        id="T11",
        what="1 MiB, messages/s / multiprocessing.Queue; at least 10 times less CPU",
        unit="ratio",
        gate=10.0,
        goal=20.0,
        better="higher",
        measure=_python_queue,
    ),
    Row(
        id="T12",
        what="memory grown over 100,000 messages; slots out never exceed their number",
        unit="MiB",
        gate=4.0,
        goal=1.0,
        better="lower",
        measure=_bounded,
    ),
    Row(
        id="T13",
        what="answers lost or wrong under 100 SIGKILLs of stages",
        unit="answers",
        gate=0.0,
        goal=0.0,
        better="lower",
        measure=_kills,
    ),
)
