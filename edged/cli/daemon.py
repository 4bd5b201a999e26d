"""`edgectl reload` and `edgectl drain`: the daemon as a whole."""

from __future__ import annotations

import click

from edged.cli.output import print_json
from edged.cli.session import Session, example, json_option, with_session


@click.command(epilog=example("edgectl config check && edgectl reload"))
@json_option
@with_session
def reload(session: Session, as_json: bool) -> None:
    """Make the daemon read its configuration again; one that fails validation changes nothing."""
    changes = session.admin.reload()
    if as_json:
        print_json({"changes": changes})
        return
    for change in changes or ["nothing changed"]:
        click.echo(change)


@click.command(epilog=example("edgectl drain"))
@with_session
def drain(session: Session) -> None:
    """Stop the daemon in order: refuse new requests, finish the accepted ones, exit."""
    session.admin.drain()
    click.echo("draining; accepted requests are being finished")
