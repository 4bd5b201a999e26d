"""What `edgectl layers run` and `bench` say about a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edged.cli.output import print_json, print_table, readable_bytes, visible, visible_text
from edged.plurals import counted

if TYPE_CHECKING:
    from edged.layers.assembly import Assembly
    from edged.layers.meter import Meter
    from edged.layers.spec import Loaded
    from edged.layers.trial import Ran

HEADINGS = ("STAGE", "DEVICE", "LAYERS", "WEIGHTS", "KV CACHE", "BUSY S", "WAIT IN S", "WAIT OUT S", "COPY S")


def title_of(ran: Ran) -> str:
    """Name a run above its picture."""
    return f"{counted(ran.stages, 'stage')}, {micro_batches(ran)}, {ran.mode}: bubble {ran.bubble:.2f}"


def micro_batches(ran: Ran) -> str:
    """Say how many had work, and how many could have had some."""
    said = counted(ran.micro_batches, "micro-batch")
    return f"{said} of {ran.room}" if ran.room > ran.micro_batches else said


def plotted(ran: Ran, meter: Meter, path: Path) -> list[Path]:
    """Draw what the stages did; `StorageError` when the files cannot be written."""
    from edged.layers import timeline

    return timeline.save(meter.timeline or (), title_of(ran), path)


def print_plotted(
    draw: Callable[[], Sequence[Path]], told: Callable[[Sequence[Path]], dict[str, Any]] | None
) -> None:
    """Draw, then name the files, or print as JSON what is `told` with them.

    A plot that fails is no reason to keep the answers back.
    """
    files: Sequence[Path] = ()
    try:
        files = draw()
    finally:
        if told is not None:
            print_json(told(files))
    if told is None:
        for file in files:
            click.echo(f"wrote {visible(str(file))}")


def held_by(assembly: Assembly, loaded: Sequence[Loaded]) -> list[dict[str, Any]]:
    """Put together what every stage has."""
    found = []
    for spec, told in zip(assembly.specs, loaded, strict=True):
        kept = {
            key: value for key, value in msgspec.to_builtins(told).items() if key not in {"failed", "code"}
        }
        found.append(kept | {"device": spec.device, "first": spec.share.first, "end": spec.share.end})
    return found


def print_answers(prompts: Sequence[str], answers: Sequence[str]) -> None:
    """Print prompts and answers, so that a reader without colours can tell them apart."""
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        click.echo(f"prompt {number}: {visible_text(prompt.strip())}")
        click.echo(f"answer {number}: {click.style(visible_text(answer.strip()), bold=True)}\n")


def print_ran(ran: Ran, held: Sequence[dict[str, Any]], assembly: Assembly) -> None:
    """Print what every stage did, the devices without one, and the bubble beside its formula."""
    rows = [
        (
            str(stage["stage"]),
            visible(stage["device"]),
            str(stage["layers"]),
            readable_bytes(stage["weight_bytes"]),
            readable_bytes(stage["cache_bytes"]),
            f"{times.busy_s:.2f}",
            f"{times.wait_receive_s:.2f}",
            f"{times.wait_send_s:.2f}",
            f"{times.copy_s:.2f}",
        )
        for stage, times in zip(held, ran.times, strict=True)
    ]
    print_table(HEADINGS, rows)
    for each in assembly.left_out:
        click.echo(f"left out: {visible(each.device)}: {each.why}")
    click.echo(
        f"{ran.tokens} tokens in {ran.seconds:.1f} s, {ran.tokens_per_s:.1f} tokens/s, bubble "
        f"{ran.bubble:.2f} (equal stages, decode only, {micro_batches(ran)}: {ran.formula:.2f})"
    )
