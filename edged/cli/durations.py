"""Durations as people type them."""

from __future__ import annotations

import re

import click

_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")

_MILLISECONDS = re.compile(r"(\d+(?:\.\d+)?)ms")


class _Duration(click.ParamType[float]):
    """`90`, `30s`, `5m`, `1h30m`, `60ms`: seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds, or say how a duration is written."""
        if isinstance(value, int | float):
            return float(value)
        if milliseconds := _MILLISECONDS.fullmatch(str(value).strip()):
            return float(milliseconds[1]) / 1000
        found = _PARTS.fullmatch(str(value).strip())
        if found is None or not any(found.groups()):
            self.fail(f"{value!r} is not a duration; write 90, 30s, 5m, 1h30m or 60ms", param, ctx)
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        total_s = hours * 3600 + minutes * 60 + seconds
        if total_s <= 0:
            self.fail("a duration must be longer than nothing", param, ctx)
        return total_s


DURATION = _Duration()
