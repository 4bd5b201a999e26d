"""`edgectl ingest`: documents into the library; works without a daemon, and beside one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edged.cli.output import print_json, progress_bar, readable_seconds, visible
from edged.cli.session import Session, example, json_option, with_session

if TYPE_CHECKING:
    from edged.documents.ingest import IngestProgress, IngestReport

NICENESS = 10
"""Ingesting gives way to the daemon, which may be answering on the same cores."""
STOPPED = "stopped; what was embedded is kept: run the same command again to continue"


@click.command(epilog=example("edgectl ingest ~/manuals --prune"))
@click.argument("paths", nargs=-1, type=click.Path(exists=True, resolve_path=True, path_type=Path))
@click.option("--prune", is_flag=True, help="Remove documents below PATHS whose files are gone.")
@click.option("--re-embed", is_flag=True, help="Embed the whole library again, as after a change of model.")
@json_option
@with_session
def ingest(session: Session, paths: tuple[Path, ...], prune: bool, re_embed: bool, as_json: bool) -> None:
    """Read, cut and embed the documents below PATHS.

    Files that did not change cost next to nothing. Ctrl-C stops cleanly; a rerun continues.
    With --re-embed alone, what the library holds is embedded again and nothing is read.
    A running daemon answers from the new documents as soon as they are published.
    """
    if not paths and not re_embed:
        raise click.UsageError("name the files or folders to read: edgectl ingest PATH...")
    os.nice(NICENESS)
    try:
        report = _run(session, paths, prune=prune, re_embed=re_embed)
    except KeyboardInterrupt:
        click.echo(STOPPED, err=True)
        raise
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    if report.failed:
        raise click.exceptions.Exit(1)


def _run(session: Session, paths: tuple[Path, ...], *, prune: bool, re_embed: bool) -> IngestReport:
    from edged.cli.embedder import open_encoder
    from edged.documents.ingest import ingest as run

    library = session.config.library
    with open_encoder(session.config) as encoder, _bar() as bar:
        task = bar.add_task("reading", total=None, passages=0, rate=0.0)

        def show(progress: IngestProgress) -> None:
            elapsed_s = max(bar.tasks[task].elapsed or 0.0, 1e-3)
            bar.update(
                task,
                description=f"{progress.phase} {visible(Path(progress.source).name)}"[:40],
                completed=progress.files_done,
                total=progress.files_total or None,
                passages=progress.passages_embedded,
                rate=progress.passages_embedded / elapsed_s,
            )

        return run(
            library.dir,
            paths,
            encoder,
            library,
            prune=prune,
            progress=show,
            re_embed=re_embed,
        )


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    passages = TextColumn("files  {task.fields[passages]} passages  {task.fields[rate]:.1f}/s")
    return progress_bar(
        TextColumn("{task.description:40}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        passages,
        TimeRemainingColumn(),
    )


def _print_report(report: IngestReport) -> None:
    for left_out in report.skipped:
        click.echo(f"skipped {visible(left_out.source)}: {visible(left_out.reason)}", err=True)
    for trouble in report.failed:
        click.echo(f"error [{trouble.code}]: {visible(trouble.source)}: {visible(trouble.message)}", err=True)
    for note in report.notes:
        click.echo(f"note: {visible(note)}", err=True)
    rate = report.passages_embedded / max(report.elapsed_s, 1e-3)
    took = readable_seconds(report.elapsed_s) + (f" ({rate:.1f}/s)" if rate else "")
    click.echo(
        f"{len(report.added)} added, {len(report.updated)} updated, {report.unchanged} unchanged, "
        f"{len(report.removed)} removed, {len(report.skipped)} skipped, {len(report.failed)} failed"
    )
    click.echo(
        f"{report.passages_embedded} passages embedded in {took}; "
        f"the library holds {report.documents} documents, {report.passages} passages"
    )
