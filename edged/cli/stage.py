"""`edgectl stage`: one stage of the running daemon."""

from __future__ import annotations

import click

from edged.cli.output import visible
from edged.cli.session import TEXT, Session, example, json_option, with_session


@click.group(epilog=example("edgectl stage swap generator --variant q4_0"))
def stage() -> None:
    """Act on one stage of the running daemon."""


@stage.command(epilog=example("edgectl stage restart generator"))
@click.argument("name", type=TEXT)
@with_session
def restart(session: Session, name: str) -> None:
    """Begin to replace the workers of stage NAME; requests in flight are carried on by the new ones."""
    session.admin.restart_stage(name)
    click.echo(f"stage {visible(name)} is being replaced; `edgectl status --wait 120` waits for it")


@stage.command(
    epilog=example(
        "edgectl stage swap generator --variant q4_0",
        "edgectl stage swap reranker --backend openvino --device cpu:0",
        "edgectl stage swap generator --revert",
    )
)
@click.argument("name", type=TEXT)
@click.option("--variant", type=TEXT, default="", help="Another variant of its model: see `models list`.")
@click.option("--backend", type=TEXT, default="", help="Another runtime.")
@click.option("--device", type=TEXT, default="", help="Another device or core set: see `devices`.")
@click.option("--one-copy", is_flag=True, help="Stop the old workers first; requests wait meanwhile.")
@click.option("--revert", is_flag=True, help="Back to what the configuration and the plan say.")
@json_option
@with_session
def swap(
    session: Session,
    name: str,
    *,
    variant: str,
    backend: str,
    device: str,
    one_copy: bool,
    revert: bool,
    as_json: bool,
) -> None:
    """Run stage NAME in another way while it serves, until the next start, reload or plan.

    The new workers load beside the old ones, work one item each, and take over; the old ones finish what
    they hold. Where memory does not suffice for both, the old ones finish first and requests wait within
    their deadlines. What cannot be loaded leaves the old ones serving. A retriever's new vectors are
    compared with the stored ones first.
    """
    from edged.cli.stage_change import follow

    if revert == bool(variant or backend or device):
        raise click.UsageError("give --variant, --backend or --device, or else --revert")
    if revert:
        changes = session.admin.revert_stage(name, one_copy=one_copy)
    else:
        changes = session.admin.swap_stage(
            name, variant=variant, backend=backend, device=device, one_copy=one_copy
        )
    follow(session.admin, name, changes, as_json=as_json)


@stage.command(epilog=example("edgectl stage scale generator 2"))
@click.argument("name", type=TEXT)
@click.argument("workers", type=click.IntRange(1, 64))
@json_option
@with_session
def scale(session: Session, name: str, workers: int, as_json: bool) -> None:
    """Run stage NAME with so many WORKERS until the next start, reload or plan."""
    from edged.cli.stage_change import follow, runs_with

    at_rest = not session.admin.swap_report().under_way
    same = at_rest and runs_with(session.client.status(), name, workers)
    changes = [] if same else session.admin.scale_stage(name, workers)
    follow(session.admin, name, changes, as_json=as_json)


@stage.command(
    epilog=example(
        "edgectl stage bypass reranker on",
        "edgectl stage bypass reranker auto",
        "edgectl stage bypass reranker --json",
    )
)
@click.argument("name", type=TEXT)
@click.argument("mode", type=click.Choice(["on", "off", "auto", "benefit", "configured"]), required=False)
@json_option
@with_session
def bypass(session: Session, name: str, mode: str | None, *, as_json: bool) -> None:
    """Say who passes the reranker NAME by, until the next start; without MODE, show it.

    on: everybody. off: nobody. auto: as the rung of the quality ladder in force says. benefit: always those
    questions for which reranking is expected to change little, and as the rung says. configured: as in the
    configuration. Answers are then written from the first passages as they were found.
    """
    from edged.cli.stage_bypass import chosen, show

    show(name, chosen(session, name, mode), as_json=as_json)
