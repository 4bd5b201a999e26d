"""`edgectl stage`: one stage of the running daemon."""

from __future__ import annotations

import click

from edged.cli.output import visible
from edged.cli.session import TEXT, Session, example, with_session


@click.group(epilog=example("edgectl stage restart generator"))
def stage() -> None:
    """Act on one stage of the running daemon."""


@stage.command(epilog=example("edgectl stage restart generator"))
@click.argument("name", type=TEXT)
@with_session
def restart(session: Session, name: str) -> None:
    """Begin to replace the workers of stage NAME; requests in flight are carried on by the new ones."""
    session.admin.restart_stage(name)
    click.echo(f"stage {visible(name)} is being replaced; `edgectl status --wait 120` waits for it")
