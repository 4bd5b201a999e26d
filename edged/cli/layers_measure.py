"""`edgectl layers measure`: what layers, embedding and head cost on a device, for `edgectl layers plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import click
import msgspec

from edged.cli.layers_model import source_of
from edged.cli.output import print_json, print_table, progress_bar, visible
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import BadRequest, ConfigError
from edged.layers.limits import CONTEXT_TOKENS
from edged.layers.planning.costs import MeasuredCosts
from edged.layers.share import DType, auto_dtype
from edged.plurals import counted
from edged.writable import obstacle

PARTS = ("layer", "embedding", "head", "stage")
LOST = "less than the noise"


@click.command(
    epilog=example(
        "edgectl layers measure --model smollm2-135m-instruct:q4_1 --save costs.json",
        "edgectl layers measure --model ./folder --device cuda:0 --dtype bfloat16 --micro-batch 8",
    )
)
@click.option("--model", type=TEXT, required=True, metavar="MODEL", help="As for `edgectl layers plan`.")
@click.option("--device", type=TEXT, default="cpu", show_default=True, help="cpu or cuda:NUMBER.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", *get_args(DType)]),
    default="auto",
    show_default=True,
    help="Of weights and KV cache: bfloat16 on a GPU, else float32.",
)
@click.option("--micro-batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="Sequences.")
@click.option(
    "--context-tokens",
    type=click.IntRange(2),
    help=f"Of each in the KV cache  [the model's, at most {CONTEXT_TOKENS}].",
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
    dtype: DType | Literal["auto"],
    micro_batch: int,
    context_tokens: int | None,
    rounds: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure decode steps of a few layers, of the embedding and of the head, on one device.

    Only these are loaded, so that a model too large for the device can be measured on it. Speeds of other
    devices, for `layers plan --devices NAME=SPEED`, are the ratios of their layer times.
    """
    if save is not None and (why := obstacle(save)):
        raise BadRequest(f"cannot write {save}: {why}", param="save")
    from edged.plugins import load

    load("torch_pipeline")  # says which extra is missing
    from edged.layers.planning import measure as measuring
    from edged.layers.weights.checkpoint import describe

    source = source_of(session, model)
    most = describe(source).context_tokens
    context_tokens = context_tokens or min(most, CONTEXT_TOKENS)
    if context_tokens > most:
        raise ConfigError(
            f"context_tokens = {context_tokens} exceeds the model's {most}; take at most {most}",
            param="context_tokens",
        )
    chosen = auto_dtype([device]) if dtype == "auto" else dtype
    setting = measuring.Setting(source, device, chosen, micro_batch, context_tokens, model)
    with progress_bar() as bar:
        task = bar.add_task("rounds", total=rounds)
        found = measuring.measure(setting, rounds, lambda done, _of: bar.update(task, completed=done))
    if save is not None:
        _save(found, save)
    if as_json:
        print_json(found)
        return
    _print(found, rounds)
    if save is not None:
        click.echo(f"wrote {visible(str(save))}")


def _print(found: MeasuredCosts, rounds: int) -> None:
    if under := found.conditions:
        click.echo(
            f"{visible(under.model)} on {visible(under.device)} as {under.dtype}: decode steps of a "
            f"micro-batch of {counted(under.micro_batch, 'sequence')} behind "
            f"{counted(under.context_tokens - 1, 'token')}, {counted(rounds, 'round')}"
        )
        click.echo()
    rows = []
    for name in PARTS:
        low_s, high_s = getattr(found.spread, f"{name}_s", (0.0, 0.0))
        spread = f"{_milliseconds(low_s) or 0} to {_milliseconds(high_s) or 0}"
        rows.append((name, _milliseconds(getattr(found, f"{name}_s")) or LOST, spread))
    print_table(("PART", "MS A STEP", "MIDDLE HALF OF THE ROUNDS"), rows)


def _milliseconds(seconds: float) -> str:
    """Write three figures, however little it is.

    >>> _milliseconds(0.0123456), _milliseconds(4.2e-06), _milliseconds(-1e-05)
    ('12.3', '0.0042', '-0.01')
    """
    return f"{1000 * seconds:.3g}" if seconds else ""


def _save(costs: MeasuredCosts, path: Path) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(costs)) + b"\n")
    except OSError as error:
        raise BadRequest(f"cannot write {path}: {error.strerror}") from error
