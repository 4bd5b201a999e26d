"""`edgectl models`: weights on this machine; works without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edged.cli.output import print_json, print_table, progress_bar, readable_bytes
from edged.cli.session import TEXT, Session, example, json_option, with_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from edged.models.store import ModelStore

HEADINGS = ("MODEL", "VARIANT", "TASK", "FORMAT", "SIZE", "MEMORY", "HERE", "LICENCE")


@click.group(epilog=example("edgectl models pull"))
def models() -> None:
    """Fetch, check and remove model weights."""


def _store(session: Session) -> ModelStore:
    from edged.catalogue import Catalogue
    from edged.models.store import ModelStore

    return ModelStore(session.config.daemon.state_dir / "models", Catalogue.discover(), session.environment)


@models.command("list", epilog=example("edgectl models list --json"))
@click.option("--here", is_flag=True, help="Only what is on this machine.")
@json_option
@with_session
def list_models(session: Session, here: bool, as_json: bool) -> None:
    """List every model that edged knows, best variant first; `*` marks what `pull` takes."""
    rows = [row for row in _store(session).list() if row.present or not here]
    if as_json:
        print_json(rows)
        return
    cells = [
        (
            row.model,
            row.variant + ("*" if row.default else ""),
            row.task,
            row.format,
            readable_bytes(row.bytes) + (" (derived)" if row.derived else ""),
            readable_bytes(row.memory_bytes),
            "yes" if row.present else "no",
            row.licence,
        )
        for row in rows
    ]
    print_table(HEADINGS, cells)


@models.command(epilog=example("edgectl models pull", "edgectl models pull bge-small-en-v1.5 int8"))
@click.argument("name", type=TEXT, required=False)
@click.argument("variant", type=TEXT, default="")
@json_option
@with_session
def pull(session: Session, name: str | None, variant: str, as_json: bool) -> None:
    """Fetch model NAME, or derive it, and check its digest.

    Without NAME: everything that the stages of the configuration need.
    """
    store = _store(session)
    wanted = [(name, variant)] if name else _needed(session)
    pulled = [_pull(store, model, which, err=as_json) for model, which in wanted]
    if as_json:
        print_json(pulled)


def _needed(session: Session) -> list[tuple[str, str]]:
    stages = session.config.stages.values()
    pairs = [(stage.model, stage.variant) for stage in stages if stage.model and not stage.weightless]
    return list(dict.fromkeys(pairs))


def _pull(store: ModelStore, model: str, variant: str, *, err: bool) -> object:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with progress_bar(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(model, total=None)

        def advance(done_bytes: int, total_bytes: int | None, what: str) -> None:
            bar.update(task, completed=done_bytes, total=total_bytes, description=what)

        got = store.pull(model, variant, advance)
    click.echo(f"{got.model} {got.name}: {got.path}", err=err)
    return got


@models.command(epilog=example("edgectl models verify"))
@click.argument("name", type=TEXT, required=False)
@click.argument("variant", type=TEXT, default="")
@with_session
def verify(session: Session, name: str | None, variant: str) -> None:
    """Hash model NAME again and compare with its manifest; without NAME, all that is here."""
    store = _store(session)
    _each(store, name, variant, store.verify, "right")


@models.command(epilog=example("edgectl models remove smollm2-135m-instruct q4_0"))
@click.argument("name", type=TEXT)
@click.argument("variant", type=TEXT, default="")
@with_session
def remove(session: Session, name: str, variant: str) -> None:
    """Delete a variant of model NAME; without VARIANT, all its variants that are here."""
    store = _store(session)
    if variant or not any(row.present for row in store.list() if row.model == name):
        store.remove(name, variant)
        click.echo(f"{name} {variant}: removed")
    else:
        _each(store, name, "", store.remove, "removed")


def _each(
    store: ModelStore, name: str | None, variant: str, act: Callable[[str, str], None], done: str
) -> None:
    """Act on one variant, or on all that are here; without a variant, of one model or of every one."""
    here = [(row.model, row.variant) for row in store.list() if row.present and name in {None, row.model}]
    for model, which in [(name, variant)] if name and (variant or not here) else here:
        act(model, which)
        click.echo(f"{model} {which}: {done}")
