"""Traces of readings, as JSON lines or CSV, and their replay through the real decision: pure.

A JSON line with `event` is an event of `events.py` as it stands in a log. Any other line, and any line of a
CSV file, is one raw sample, which goes through trust, filter and prediction first:

    {"at_s": 12.0, "temperatures": {"cpu": 71.0}, "busy": 0.8, "load": 0.1}
    at_s,cpu,busy,load
    12.0,71.0,0.8,0.1

`busy` is the share of the time in which the cores worked; `load`, `memory` and `stall` are as in
`[governor]`. Every other column is a device; what is empty or null is not known.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from edged.errors import BadRequest
from edged.governor.bands import Policy, Reading
from edged.governor.events import (
    AnyEvent,
    Command,
    Confirmed,
    GoTo,
    Refused,
    Released,
    Sampled,
)
from edged.governor.heard import heard
from edged.governor.ladder import State, decide
from edged.governor.readings import Readings, Temperature
from edged.governor.senses import Sensing
from edged.governor.simulate import Second

SHARES = ("busy", "load", "memory", "stall")


class Raw(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sample as sensors gave it."""

    at_s: float
    temperatures: dict[str, float | None] = {}
    busy: float | None = None
    load: float | None = None
    memory: float | None = None
    stall: float | None = None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What the governor would have done."""

    samples: int
    duration_s: float
    commands: tuple[Command, ...]
    changes: int
    changes_per_hour: float
    on_rung_s: dict[str, float]


def read_lines(lines: Iterable[str], source: str) -> Iterator[Raw | AnyEvent]:
    """Read a trace; the first line tells whether it is CSV. Raises `BadRequest` that names the line."""
    numbered = enumerate(lines, 1)
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        raise BadRequest(f"{source} is empty; a trace has one reading a line, as JSON or CSV")
    if first[1].lstrip().startswith("{"):
        yield _json(first[1], f"{source}, line {first[0]}")
        yield from (_json(line, f"{source}, line {number}") for number, line in numbered if line.strip())
    else:
        yield from _csv(first[1], (line for _, line in numbered), source)


def _json(line: str, where: str) -> Raw | AnyEvent:
    try:
        found = msgspec.json.decode(line)
        if isinstance(found, dict) and "event" in found:
            event: AnyEvent = msgspec.convert(found, AnyEvent)
            return event
        return msgspec.convert(found, Raw)
    except msgspec.DecodeError as error:
        raise BadRequest(f"{where}: {error}") from error


def _csv(header: str, lines: Iterable[str], source: str) -> Iterator[Raw]:
    names = [name.strip() for name in next(csv.reader([header]))]
    if "at_s" not in names:
        raise BadRequest(f"{source}, line 1: no column at_s; columns: {', '.join(names)}")
    for number, cells in enumerate(csv.reader(lines), 2):
        if cells:
            yield _row(dict(zip(names, cells, strict=False)), f"{source}, line {number}")


def _row(cells: Mapping[str, str], where: str) -> Raw:
    values = {name: _number(name, cell, where) for name, cell in cells.items()}
    at_s = values.pop("at_s")
    if at_s is None:
        raise BadRequest(f"{where}: at_s is empty")
    shares: dict[str, Any] = {name: values.pop(name) for name in SHARES if name in values}
    return Raw(at_s=at_s, temperatures=values, **shares)


def _number(name: str, cell: str, where: str) -> float | None:
    try:
        return float(cell) if cell.strip() else None
    except ValueError as error:
        raise BadRequest(f"{where}: {name} = {cell!r} is not a number") from error


def write_lines(seconds: Iterable[Second]) -> Iterator[str]:
    """Write what a simulated box felt as CSV that reads back to the same decisions."""
    yield "at_s,cpu,busy,load"
    for second in seconds:
        readings = second.readings
        celsius = next((str(each.celsius) for each in readings.temperatures), "")
        yield f"{readings.at_s},{celsius},{readings.load['cpu']},{second.load}"


def judged(lines: Iterable[Raw | AnyEvent], horizon_s: float) -> Iterator[AnyEvent]:
    """Let raw samples go through trust, filter and prediction; events stay as they are."""
    sensing = Sensing()
    for line in lines:
        yield _heard(sensing, line, horizon_s) if isinstance(line, Raw) else line


def _heard(sensing: Sensing, raw: Raw, horizon_s: float) -> Sampled:
    felt = (Temperature(device, device, celsius) for device, celsius in raw.temperatures.items())
    readings = Readings(
        at_s=raw.at_s,
        temperatures=tuple(each for each in felt if each.celsius is not None),
        load={} if raw.busy is None else {"cpu": raw.busy},
    )
    senses, _ = sensing.take(readings)
    event = heard(sensing, senses, horizon_s=horizon_s, load=raw.load)
    return replace(event, memory=_reading(raw.memory), stall=_reading(raw.stall))


def _reading(value: float | None) -> Reading | None:
    return None if value is None else Reading(value)


def replay(policy: Policy, events: Sequence[AnyEvent]) -> Replay:
    """Decide about each event. Commands are confirmed at once where the trace itself answers none.

    Raises `BadRequest` for a rung that the ladder lacks.
    """
    answered = any(isinstance(event, Confirmed | Refused) for event in events)
    state, said, on_rung_s = State(), list[Command](), defaultdict[int, float](float)
    before_s: float | None = None
    for event in events:
        _check_rung(policy, event)
        if isinstance(event, Sampled) and state.at_s < event.at_s < math.inf:
            on_rung_s[state.rung] += 0.0 if before_s is None else event.at_s - before_s
            before_s = event.at_s
        state, commands = decide(policy, state, event)
        said += commands
        for command in commands:
            if isinstance(command, GoTo) and not answered:
                state, _ = decide(policy, state, Confirmed(at_s=event.at_s, rung=command.rung))
    return _summed(policy, events, said, on_rung_s)


def _check_rung(policy: Policy, event: AnyEvent) -> None:
    if not isinstance(event, Sampled | Released) and not 0 <= event.rung < len(policy.rungs):
        kind = type(event).__name__.lower()
        raise BadRequest(f"the trace has {kind} rung {event.rung}; the ladder has {len(policy.rungs)} rungs")


def _summed(
    policy: Policy, events: Sequence[AnyEvent], said: Sequence[Command], on_rung_s: Mapping[int, float]
) -> Replay:
    duration_s = sum(on_rung_s.values())
    steps = [command for command in said if isinstance(command, GoTo)]
    changes = sum(1 for number, step in enumerate(steps) if not number or step != steps[number - 1])
    return Replay(
        samples=sum(isinstance(event, Sampled) for event in events),
        duration_s=duration_s,
        commands=tuple(said),
        changes=changes,
        changes_per_hour=changes / duration_s * 3600 if duration_s else 0.0,
        on_rung_s={policy.rungs[rung]: spent_s for rung, spent_s in sorted(on_rung_s.items()) if spent_s},
    )
