"""`python -m benchmarks [ID...] [--quick] [--json]`: measure rows and print one JSON object a line."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
import traceback

import click
import msgspec

import benchmarks
from benchmarks.measurement import Measurement, Row, say


def rows() -> dict[str, Row]:
    """Every row that a module of this package lists in its `ROWS`, by id."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    modules = [importlib.import_module(f"benchmarks.{name}") for name in names if not name.startswith("_")]
    found = (row for module in modules for row in getattr(module, "ROWS", ()))
    return {row.id: row for row in found if isinstance(row, Row)}


def select(ids: tuple[str, ...], known: dict[str, Row]) -> list[Row]:
    """The rows asked for: `P3@16` is one point, `P3` all points of that row; nothing asked means all."""
    chosen = [
        row for name in ids for row in known.values() if row.id == name or row.id.partition("@")[0] == name
    ]
    missing = [name for name in ids if not any(name in {row.id, row.id.partition("@")[0]} for row in chosen)]
    if missing:
        raise click.UsageError(f"no row {', '.join(missing)}; there are: {', '.join(known)}")
    return chosen or list(known.values())


@click.command()
@click.argument("ids", nargs=-1)
@click.option("--quick", is_flag=True, help="Less than a minute a row; the full run is what counts.")
@click.option("--json", "quiet", is_flag=True, help="Only the JSON lines: no progress on standard error.")
def main(ids: tuple[str, ...], *, quick: bool, quiet: bool) -> None:
    """Measure the rows of the benchmark table (`P6`, `P3@16`); exit 1 when a gate is missed."""
    chosen = select(ids, rows())
    if quiet:
        sys.stderr = open("/dev/null", "w")  # noqa: PTH123, SIM115 (for the life of the process)
    results = [_measure(row, quick=quick) for row in chosen]
    sys.exit(0 if all(result.ok for result in results) else 1)


def _measure(row: Row, *, quick: bool) -> Measurement:
    say(f"{row.id}: {row.what}")
    began = time.monotonic()
    try:
        result = row.run(quick=quick)
    except Exception as error:
        traceback.print_exc()
        result = row.failed(error)
    click.echo(msgspec.json.encode(result))
    sys.stdout.flush()
    say(f"{row.id}: {result.value} {row.unit}, gate {row.gate}, {time.monotonic() - began:.0f} s")
    return result


if __name__ == "__main__":
    main()
