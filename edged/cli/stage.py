"""`edgectl stage`: one stage of the running daemon."""

from __future__ import annotations

import click

from edged.cli.session import Session, example, with_session


@click.group(epilog=example("edgectl stage restart generator"))
def stage() -> None:
    """Act on one stage of the running daemon."""


@stage.command(epilog=example("edgectl stage restart generator"))
@click.argument("name")
@with_session
def restart(session: Session, name: str) -> None:
    """Replace the workers of stage NAME; requests in flight are carried on by the new ones."""
    session.admin.restart_stage(name)
    click.echo(f"{name}: workers replaced")
