"""`edgectl layers overlap`: what it gains to load layers while others compute, on the device at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from edged.cli.layers_model import source_of
from edged.cli.output import print_json, progress_bar
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.layers.share import DType
from edged.layers.spec import OverlapFrom


@click.command(
    epilog=example(
        "edgectl layers overlap --device cuda:0 --dtype bfloat16 "
        "--model random:llama:layers=32,hidden=4096,heads=32,kv=8,intermediate=14336,vocabulary=32000,seed=1"
    )
)
@click.option(
    "--model", type=TEXT, metavar="MODEL", help="As for `edgectl layers run`  [a small seeded one]."
)
@click.option("--device", type=TEXT, default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(get_args(DType)), default="float32", show_default=True)
@click.option("--overlap-from", type=click.Choice(get_args(OverlapFrom)), default="memory", show_default=True)
@click.option(
    "--overlap-folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Of the disk file.",
)
@click.option("--rows", type=click.IntRange(1), default=4, show_default=True, help="Sequences of one part.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@json_option
@with_session
def overlap(session: Session, /, model: str | None, as_json: bool, **options: Any) -> None:
    """Measure none, single and multi in turns: weights in host memory or on disk, one stage, decode steps.

    On a CPU the copies are plain calls, so that nothing overlaps: the figures then say nothing about speed.
    """
    if options["overlap_folder"] is not None and options["overlap_from"] != "disk":
        raise click.UsageError("--overlap-folder is for --overlap-from disk")
    from edged.plugins import load

    load("torch_pipeline")  # it says what to install where torch is missing
    from edged.layers.offload.bench import OverlapBench, measure_overlap
    from edged.layers.offload.report import overlap_lines

    asked = {name: value for name, value in options.items() if value is not None}
    if "overlap_folder" in asked:
        asked["overlap_folder"] = str(asked["overlap_folder"])
    if model:
        asked["source"] = source_of(session, model)
    with progress_bar() as bar:
        task = bar.add_task("rounds")
        report = measure_overlap(
            OverlapBench(**asked), lambda done, most: bar.update(task, completed=done, total=most)
        )
    if as_json:
        print_json(report)
        return
    for line in overlap_lines(report):
        click.echo(line)
