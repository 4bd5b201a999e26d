"""What the admin socket says about caches."""

from __future__ import annotations

from urllib.parse import parse_qs

import msgspec

from edged.errors import BadRequest, NotFound
from edged.report import CacheReport, Status

_MOST_NAMES = 32


def cache_reports(status: Status) -> list[CacheReport]:
    """Every cache of every stage, in the order of the stages."""
    return [
        CacheReport(stage=stage.name, name=name, **msgspec.structs.asdict(counters))
        for stage in status.stages
        for name, counters in sorted(stage.caches.items())
    ]


def chosen_caches(status: Status, names: tuple[str, ...]) -> list[CacheReport]:
    """The caches of these names, or all; `NotFound` for a name that no stage has."""
    reports = cache_reports(status)
    known = sorted({report.name for report in reports})
    if strange := [name for name in names if name not in known]:
        there = ", ".join(known) or "none yet"
        raise NotFound(f"no cache {strange[0][:80]!r}; there is: {there}", param="name")
    return [report for report in reports if not names or report.name in names]


def cache_names(query: bytes) -> tuple[str, ...]:
    """The names in a query string; `BadRequest` for a parameter that is not `name`."""
    given = parse_qs(query.decode("ascii", "replace"), keep_blank_values=True)
    if strange := sorted(given.keys() - {"name"}):
        raise BadRequest(f"unknown parameter {strange[0][:80]!r}; the only one is name", param="name")
    names = tuple(dict.fromkeys(given.get("name", [])))
    if len(names) > _MOST_NAMES:
        raise BadRequest(f"at most {_MOST_NAMES} names", param="name")
    return names
