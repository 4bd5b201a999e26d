"""What `edgectl layers plan` takes for devices: `cuda:0=4@24GiB,cuda:1`."""

from __future__ import annotations

import re

import click

from edged.layers.devices import of_llama, of_torch
from edged.layers.planning.partition import MAX_CANDIDATES, Candidate

MIB = 1 << 20
UNITS = {"MiB": MIB, "GiB": MIB << 10}
_WRITTEN = re.compile(
    r"(?P<id>[^=@]+)(?:=(?P<speed>\d+(?:\.\d+)?))?(?:@(?P<memory>\d+(?:\.\d+)?)(?P<unit>MiB|GiB))?"
)


class _Devices(click.ParamType[tuple[Candidate, ...]]):
    """`NAME[=SPEED][@SIZE],...`; sets of cores are ranges here, since commas part the devices."""

    name = "devices"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Candidate, ...]:
        """Return the devices, or say how one is written."""
        if isinstance(value, tuple):
            return value
        found = tuple(self._one(part.strip(), param, ctx) for part in str(value).split(","))
        if len(found) > MAX_CANDIDATES:
            self.fail(f"{len(found)} devices cannot be planned; name 1 to {MAX_CANDIDATES}", param, ctx)
        return found

    def _one(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Candidate:
        found = _WRITTEN.fullmatch(text)
        if found is None or float(found["speed"] or 1) <= 0 or float(found["memory"] or 1) <= 0:
            self.fail(
                f"{text!r} is no device: write NAME, NAME=SPEED, NAME@SIZE or NAME=SPEED@SIZE, as in "
                "cuda:0=4@24GiB",
                param,
                ctx,
            )
        name = found["id"]
        if not of_torch(name) and not of_llama(name):
            self.fail(
                f"{name!r} is the name of no device; write cpu, cpu:0-1, cuda:0, gpu:0, igpu or "
                "tcp://HOST:PORT",
                param,
                ctx,
            )
        memory_bytes = int(float(found["memory"] or 0) * UNITS[found["unit"] or "MiB"])
        return Candidate(id=name, speed=float(found["speed"] or 1), memory_bytes=memory_bytes)


DEVICES = _Devices()
