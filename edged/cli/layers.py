"""`edgectl layers`: a generator that is too large for one device, over several."""

from __future__ import annotations

import click

from edged.cli.lazy import LazyGroup
from edged.cli.session import example

COMMANDS = {
    "plan": "edged.cli.layers_plan:plan",
    "measure": "edged.cli.layers_measure:measure",
    "run": "edged.cli.layers_run:run",
    "bench": "edged.cli.layers_bench:bench",
    "overlap": "edged.cli.layers_overlap:overlap",
    "serve": "edged.cli.layers_serve:serve",
}
"""Every command and where it lives; a module is imported when its command runs."""


@click.group(
    cls=LazyGroup,
    places=COMMANDS,
    epilog=example("edgectl layers plan --model smollm2-135m-instruct:q4_1 --devices cuda:0,cuda:1"),
)
def layers() -> None:
    """Split a generator by layers over several devices."""
