"""`python -m benchmarks [ID...] [--quick] [--json]`: measure rows and print one JSON object a line."""

from __future__ import annotations

import sys
import time

import click
import msgspec

from benchmarks import identity, overhead, reliability, retrieval
from benchmarks.measurement import Measurement, Row, say

ROWS: dict[str, Row] = {
    row.id: row for row in (*overhead.ROWS, *retrieval.ROWS, *reliability.ROWS, *identity.ROWS)
}


@click.command()
@click.argument("ids", nargs=-1)
@click.option("--quick", is_flag=True, help="Less than a minute a row; the full run is what counts.")
@click.option("--json", "quiet", is_flag=True, help="Only the JSON lines: no progress on standard error.")
def main(ids: tuple[str, ...], *, quick: bool, quiet: bool) -> None:
    """Measure the rows of the benchmark table; exit 1 when a gate is missed."""
    unknown = [name for name in ids if name not in ROWS]
    if unknown:
        raise click.UsageError(f"no row {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    if quiet:
        sys.stderr = open("/dev/null", "w")  # noqa: PTH123, SIM115 (for the life of the process)
    results = [_measure(ROWS[name], quick=quick) for name in ids or ROWS]
    sys.exit(0 if all(result.ok for result in results) else 1)


def _measure(row: Row, *, quick: bool) -> Measurement:
    say(f"{row.id}: {row.what}")
    began = time.monotonic()
    result = row.run(quick=quick)
    click.echo(msgspec.json.encode(result))
    sys.stdout.flush()
    say(f"{row.id}: {result.value} {row.unit}, gate {row.gate}, {time.monotonic() - began:.0f} s")
    return result


if __name__ == "__main__":
    main()
