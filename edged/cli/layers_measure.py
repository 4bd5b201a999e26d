"""`edgectl layers measure`: what layers, embedding and head cost on a device, for `edgectl layers plan`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
import msgspec

from edged.cli.layers_model import source_of
from edged.cli.output import print_json, print_table, progress_bar, readable_seconds
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import BadRequest
from edged.layers.planning.costs import LayerCosts
from edged.layers.share import DType


@click.command(
    epilog=example(
        "edgectl layers measure --model smollm2-135m-instruct:q4_1 --save costs.json",
        "edgectl layers measure --model ./folder --device cuda:0 --dtype bfloat16 --micro-batch 8",
    )
)
@click.option("--model", type=TEXT, required=True, metavar="MODEL", help="As for `edgectl layers plan`.")
@click.option("--device", type=TEXT, default="cpu", show_default=True, help="cpu or cuda:NUMBER.")
@click.option(
    "--dtype", type=click.Choice(get_args(DType)), default="float32", show_default=True, help="Of weights."
)
@click.option("--micro-batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Sequences.")
@click.option(
    "--context-tokens",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Of each in the KV cache.",
)
@click.option("--rounds", type=click.IntRange(3, 100_000), default=100, show_default=True)
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), help="Write a file for `layers plan --costs`."
)
@json_option
@with_session
def measure(  # noqa: PLR0917 - one argument per option, passed by name
    session: Session,
    /,
    model: str,
    device: str,
    dtype: DType,
    micro_batch: int,
    context_tokens: int,
    rounds: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure decode steps of a few layers, of the embedding and of the head, on one device.

    Only these are loaded, so that a model too large for the device can be measured on it. Speeds of other
    devices, for `layers plan --devices NAME=SPEED`, are the ratios of their layer times.
    """
    from edged.plugins import load

    load("torch_pipeline")  # says which extra is missing
    from edged.layers.planning import measure as measuring

    setting = measuring.Setting(source_of(session, model), device, dtype, micro_batch, context_tokens)
    with progress_bar() as bar:
        task = bar.add_task("rounds", total=rounds)
        found = measuring.measure(setting, rounds, lambda done, _of: bar.update(task, completed=done))
    if save is not None:
        _save(found, save)
    if as_json:
        print_json(found)
        return
    names = ("layer", "embedding", "head", "stage")
    print_table(("PART", "STEP"), [(name, readable_seconds(getattr(found, f"{name}_s"))) for name in names])


def _save(costs: LayerCosts, path: Path) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")
    except OSError as error:
        raise BadRequest(f"cannot write {path}: {error.strerror}") from error
