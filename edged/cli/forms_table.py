"""The calibration as a table: the best forms of each stage, and what does not run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import click
import msgspec

from edged.cli.output import print_table, readable_bytes, readable_seconds, visible
from edged.placement.staleness import DISTURBING
from edged.placement.table import Form, Point, Table
from edged.plurals import counted

HEADINGS = ("STAGE", "VARIANT", "BACKEND", "DEVICE", "THREADS", "OPTIONS", "ALONE", "FIRST", "BATCH")
PRICES = ("EACH", "CPU EACH", "MEMORY", "ROUNDS", "SPREAD")
BEST = 3
"""Forms of a stage that are shown: the cheapest at their best batch, and the quickest alone."""


class Row(msgspec.Struct, frozen=True):
    """A form with the two points that matter: a single request, and the best batch."""

    form: Form
    single: Point
    best: Point
    memory_bytes: int


def print_forms(table: Table, stages: Sequence[str] = ()) -> None:
    """Print the best forms of every stage, and a line for each form that does not run."""
    rows = _rows(table)
    names = [name for name in dict.fromkeys(row.form.stage for row in rows) if not stages or name in stages]
    shown = [row for name in names for row in best(rows, name)]
    print_table((*HEADINGS, *PRICES), [_cells(row) for row in shown])
    _warn_of_others([row.best.others for row in rows])
    for failure in table.failures:
        if not stages or failure.form.stage in stages:
            size = f" at batch {failure.batch} ({failure.work} work)" if failure.batch else ""
            what = f"{_short(failure.form)}{size}"
            click.echo(f"note: does not run: {what}: [{failure.code}] {visible(failure.message)}", err=True)


def _warn_of_others(others: Sequence[float]) -> None:
    disturbed = [cores for cores in others if cores > DISTURBING]
    if disturbed:
        click.echo(
            f"note: other processes kept {median(disturbed):.1f} cores busy beside {len(disturbed)} of "
            f"{len(others)} forms, whose times are too high; when it is quiet: edgectl calibrate --disturbed",
            err=True,
        )


def best(rows: Sequence[Row], stage: str) -> list[Row]:
    """The forms with the least time per request at their best batch, and the quickest for one request."""
    mine = [row for row in rows if row.form.stage == stage]
    cheapest = sorted(mine, key=lambda row: row.best.wall_s / row.best.batch)[:BEST]
    quickest = min(mine, key=lambda row: row.single.wall_s)
    return cheapest if quickest in cheapest else [*cheapest, quickest]


def _rows(table: Table) -> list[Row]:
    points: dict[Form, list[Point]] = {}
    for point in table.points:
        if point.work == "typical":
            points.setdefault(point.form, []).append(point)
    memory = {weight.form: weight.memory_bytes for weight in table.weights}
    return [
        Row(
            form,
            min(each, key=lambda point: point.batch),
            min(each, key=lambda point: point.wall_s / point.batch),
            memory.get(form, 0),
        )
        for form, each in points.items()
    ]


def _cells(row: Row) -> tuple[str, ...]:
    form, single, at_best = row.form, row.single, row.best
    return (
        form.stage,
        f"{form.model} {form.variant}",
        form.backend,
        form.device,
        str(form.threads or "-"),
        _options(form) or "-",
        readable_seconds(single.wall_s),
        readable_seconds(single.first_s),
        str(at_best.batch),
        readable_seconds(at_best.wall_s / at_best.batch),
        readable_seconds(at_best.cpu_s / at_best.batch),
        readable_bytes(row.memory_bytes),
        str(at_best.rounds),
        f"{at_best.spread:.0%}",
    )


def _options(form: Form) -> str:
    return " ".join(f"{name}={str(value).lower()}" for name, value in form.options)


def _short(form: Form) -> str:
    threads = counted(form.threads, "thread") if form.threads else ""
    parts = (form.stage, form.variant, form.backend, form.device, threads, _options(form))
    return " ".join(filter(None, parts))
