"""Measure every row in full and print the table.

    python -m benchmarks.report [ID...] [--quick]

Each row's line appears as soon as it is measured, and `.edged/bench/results.json` holds all of them: a later
run of some rows replaces those and keeps the rest.
"""

from __future__ import annotations

import os
import sys
import time

import click
import msgspec

from benchmarks.__main__ import rows, select
from benchmarks.measurement import Measurement, Row, say
from benchmarks.setting import STATE

RESULTS = STATE / "bench" / "results.json"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A row as it was measured last."""

    result: Measurement
    what: str
    seconds: float
    at: str
    quick: bool


@click.command()
@click.argument("ids", nargs=-1)
@click.option("--quick", is_flag=True, help="Less than a minute a row; the full run is what counts.")
def main(ids: tuple[str, ...], *, quick: bool) -> None:
    """Measure rows (all when none is named), keep the results, print the table; exit 1 for a miss."""
    chosen = select(ids, rows())
    known = msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Measured]) if RESULTS.exists() else {}
    measured: dict[str, Measured] = {}
    try:
        for number, row in enumerate(chosen, 1):
            say(
                f"==> {number} of {len(chosen)}: {row.id}, {row.what} (load average {os.getloadavg()[0]:.2f})"
            )
            measured[row.id] = _measure(row, quick=quick)
            say(line(measured[row.id]))
            _keep(known | measured)
    finally:
        print(table(measured))
    sys.exit(0 if all(one.result.ok for one in measured.values()) else 1)


def _measure(row: Row, *, quick: bool) -> Measured:
    began = time.monotonic()
    try:
        result = row.run(quick=quick)
    except Exception as error:
        result = row.failed(error)
    return Measured(
        result=result,
        what=row.what,
        seconds=round(time.monotonic() - began, 1),
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        quick=quick,
    )


def _keep(measured: dict[str, Measured]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    beside = RESULTS.with_suffix(".new")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=1))
    beside.replace(RESULTS)


def table(measured: dict[str, Measured]) -> str:
    """The rows as text, in the order in which they were measured."""
    head = f"{'id':8}{'value':>10}{'gate':>9}{'goal':>9}  {'':4}{'spread':>16}{'load':>6}{'s':>6}  what"
    return "\n".join([head, *map(line, measured.values())])


def line(one: Measured) -> str:
    """One row as text: figure, gate, goal, how far its rounds lay apart, how loaded the machine was."""
    result = one.result
    value = "-" if result.value is None else f"{result.value:g}"
    ratio = result.detail.get("ratio")
    apart = f"{ratio['min']:g} to {ratio['max']:g}" if isinstance(ratio, dict) else ""
    load = f"{result.detail.get('load_average', 0.0):.1f}"
    verdict = "ok" if result.ok else "MISS"
    head = f"{result.id:8}{value:>10}{result.gate:>9g}{result.goal:>9g}  {verdict:4}{apart:>16}{load:>6}"
    return f"{head}{one.seconds:6.0f}  {one.what}" + "".join(
        f"\n{'':12}{violation}" for violation in result.detail.get("violations", [])[:5]
    )


if __name__ == "__main__":
    main()
