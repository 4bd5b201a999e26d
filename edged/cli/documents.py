"""`edgectl documents`: what the library holds; works without a daemon."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from edged.cli.ingest import NICENESS
from edged.cli.output import (
    print_json,
    print_table,
    progress_bar,
    readable_bytes,
    styled,
    visible,
    visible_text,
)
from edged.cli.session import TEXT, Session, example, json_option, with_session

if TYPE_CHECKING:
    from edged.documents.library import Library, Statistics
    from edged.messages import Passage

HEADINGS = ("SOURCE", "TITLE", "SIZE", "PASSAGES", "INGESTED")


@click.group(epilog=example("edgectl documents list"))
def documents() -> None:
    """Look into the library of documents."""


def _library(session: Session) -> Library:
    from edged.documents.library import Library

    return Library.open(session.config.library.dir)


def _named(library: Library, source: str) -> str:
    """Spell a path as `edgectl ingest` does if the library holds it; else leave the end of one as it is."""
    path = os.path.realpath(source)
    return path if any(document.source == path for document in library.documents()) else source


@documents.command("list", epilog=example("edgectl documents list --json | jq '.[].source'"))
@json_option
@with_session
def list_documents(session: Session, as_json: bool) -> None:
    """List all documents."""
    with _library(session) as library:
        found = library.documents()
    if as_json:
        print_json(found)
        return
    rows = [
        (each.source, each.title, readable_bytes(each.bytes), str(each.chunks), _date(each.ingested_at))
        for each in found
    ]
    print_table(HEADINGS, rows)


@documents.command(epilog=example("edgectl documents show manual.md"))
@click.argument("source", type=TEXT)
@json_option
@with_session
def show(session: Session, source: str, as_json: bool) -> None:
    """Show a document's passages as they are searched; SOURCE is its path or the end of it."""
    with _library(session) as library:
        document, passages = library.show(_named(library, source))
    if as_json:
        print_json({"document": document, "passages": passages})
        return
    click.echo(styled(visible(f"{document.source}  {document.title}"), bold=True))
    for passage in passages:
        heading = styled(visible(_heading(passage)), dim=True)
        click.echo("\n" + (f"{heading}\n" if heading else "") + visible_text(passage.text))


def _heading(passage: Passage) -> str:
    """Say where a passage is, as far as its format has pages or lines, and below which headings."""
    lines = f"lines {passage.first_line}-{passage.last_line}" if passage.first_line else ""
    where = f"page {passage.page}" if passage.page else lines
    return "  ".join(filter(None, (where, passage.heading)))


@documents.command(epilog=example("edgectl documents remove old/manual.md"))
@click.argument("sources", nargs=-1, required=True, type=TEXT)
@json_option
@with_session
def remove(session: Session, sources: tuple[str, ...], as_json: bool) -> None:
    """Take documents out of the library; the files themselves stay."""
    with _library(session) as library:
        gone = library.remove(list(dict.fromkeys(_named(library, source) for source in sources)))
    if as_json:
        print_json({"removed": gone})
        return
    for source in gone:
        click.echo(f"{visible(source)}: removed")


@documents.command(epilog=example("edgectl documents stats --json"))
@json_option
@with_session
def stats(session: Session, as_json: bool) -> None:
    """Show the library in numbers: documents, passages, sizes, and which model embedded it."""
    with _library(session) as library:
        numbers = library.statistics()
    if as_json:
        print_json(numbers)
        return
    rows = [
        ("library", numbers.path),
        ("documents", str(numbers.documents)),
        ("passages", str(numbers.passages)),
        ("text", readable_bytes(numbers.bytes)),
        ("on disk", readable_bytes(numbers.disk_bytes)),
        ("index", _index(numbers)),
        ("embedded by", numbers.family or "-"),
        ("generation", str(numbers.generation)),
        ("published", _date(numbers.published_at)),
    ]
    print_table(("WHAT", "VALUE"), rows)


def _index(numbers: Statistics) -> str:
    """Say of what kind it is, how much of the library it covers, and how well it finds."""
    beside = numbers.passages - numbers.base_passages
    parts = [f"{numbers.index}, {readable_bytes(numbers.index_bytes)}"]
    if numbers.base_passages:
        parts += [f"recall {numbers.recall:.3f}", f"{beside} passages beside it"]
    if numbers.removed_rows:
        parts.append(f"{numbers.removed_rows} rows passed over")
    return "; ".join(parts)


@documents.command(epilog=example("edgectl documents reindex"))
@json_option
@with_session
def reindex(session: Session, as_json: bool) -> None:
    """Build the vector index anew, of the kind that `library.index` names; nothing is embedded again.

    Mends a damaged index, drops what was removed, and follows a change of `library.index`.
    Answers go on meanwhile. A million passages take a few minutes.
    """
    from edged.documents.library import reindex as run

    library = session.config.library
    os.nice(NICENESS)
    with progress_bar() as bar:
        task = bar.add_task("building the index", total=None)
        manifest = run(
            library.dir,
            library.index,
            lambda read, passages: bar.update(task, completed=read, total=passages),
        )
    if as_json:
        print_json(manifest)
        return
    kind = manifest.base.kind if manifest.base else "flat"
    click.echo(f"generation {manifest.generation}: {manifest.passages} passages, index {kind}")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"
