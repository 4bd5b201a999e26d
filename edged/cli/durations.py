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


class _NeedsUnit(_Duration):
    """`60ms`, `2s`: a bare number, which may be meant in milliseconds, is refused, and so is nothing."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds, or say what is missing."""
        if str(value).strip()[-1:].isdigit():
            self.fail(f"{value!r} has no unit; write 60ms or 2s", param, ctx)
        seconds = super().convert(value, param, ctx)
        if seconds <= 0:
            self.fail("a duration must be longer than nothing", param, ctx)
        return seconds


DURATION = _Duration()
NEEDS_UNIT = _NeedsUnit()
