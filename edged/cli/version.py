"""`edgectl version`."""

from __future__ import annotations

import platform

import click

from edged import __version__
from edged.cli.output import print_json
from edged.cli.session import example, json_option


@click.command(epilog=example("edgectl version --json"))
@json_option
def version(as_json: bool) -> None:
    """Print the version of edged, and of what runs it."""
    facts = {"edged": __version__, "python": platform.python_version(), "machine": platform.machine()}
    if as_json:
        print_json(facts)
    else:
        click.echo(f"edged {facts['edged']} (Python {facts['python']}, {facts['machine']})")
