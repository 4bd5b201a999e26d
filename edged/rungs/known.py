"""What is known of a configuration's ladder: measured where it was, else configured or estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from edged.config import Config
from edged.config.tables import Governor
from edged.errors import EdgedError
from edged.governor.effects import Effect, effects
from edged.placement.survey import open_store
from edged.rungs import storage
from edged.rungs.figures import Figures, figures, in_force, measured
from edged.rungs.order import Point, complaints, doubts
from edged.rungs.record import Record, key_of
from edged.rungs.standing import fingerprint, stale


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement beside the configuration."""

    record: Record | None
    figures: tuple[Figures, ...]
    """By rung; without values where nothing was measured."""
    stale: tuple[str, ...] = ()
    """Why the figures do not hold any more; empty when they do."""


def known(config: Config, environment: Mapping[str, str]) -> Known:
    """Read what was measured, and say whether it still holds; `StorageError` for a damaged file."""
    ladder = config.governor.ladder
    record = storage.load(storage.path_in(config.daemon.state_dir))
    if record is None:
        return Known(record=None, figures=tuple(Figures(name=rung.name) for rung in ladder))
    return Known(record=record, figures=figures(ladder, record), stale=_stale(config, environment, record))


def _stale(config: Config, environment: Mapping[str, str], record: Record) -> tuple[str, ...]:
    pipeline = record.fingerprint.pipeline
    if pipeline not in config.pipelines:
        return (f"pipeline {pipeline}: not configured any more",)
    try:
        now = fingerprint(config, open_store(config, environment), pipeline)
    except EdgedError as error:
        return (error.message,)
    return tuple(stale(record.fingerprint, now))


def governor_with(config: Config, found: Known) -> Governor:
    """The governor's tables, with measured cost and quality where they hold and nothing is configured."""
    if found.stale:
        return config.governor
    return replace(config.governor, ladder=measured(config.governor.ladder, found.figures))


def known_effects(config: Config, found: Known) -> tuple[Effect, ...]:
    """What each rung costs and is worth by all that is known; see `Effect.estimated`."""
    record = found.record
    names = [rung.name for rung in config.governor.ladder]
    without = [names.index(name) for name in (record.unavailable if record else {}) if name in names]
    return effects(governor_with(config, found).ladder, without, generators_of(config))


def generators_of(config: Config) -> tuple[str, ...]:
    """Stages that write answers."""
    return tuple(name for name, stage in config.stages.items() if stage.kind == "generator")


class Order(msgspec.Struct, frozen=True):
    """What is known of the order of the rungs that were measured and change answers."""

    problems: tuple[str, ...] = ()
    """What is wrong, a sentence each."""
    unsure: tuple[str, ...] = ()
    """Rungs of which too little was measured to say whether they save work."""


def order_of(config: Config, found: Known) -> Order:
    """Check the order by figures that hold."""
    if found.stale:
        return Order()
    whole = in_force(config.governor.ladder, found.record.unavailable if found.record else ())
    points = _points([key_of(rung) for rung in whole], found.figures)
    return Order(complaints(points), doubts(points))


def _points(keys: Sequence[str], found: Sequence[Figures]) -> list[Point]:
    points: list[Point] = []
    seen: set[str] = set()
    for key, each in zip(keys, found, strict=True):
        if each.cost is None or each.quality is None or each.unavailable or key in seen:
            continue
        seen.add(key)
        points.append(
            Point(
                name=each.name,
                cost=each.cost.value,
                quality=each.quality.value,
                cost_margin=each.cost.margin,
                quality_margin=each.quality.margin,
            )
        )
    return points
