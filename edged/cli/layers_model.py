"""What `edgectl layers run` and `bench` take for a model and for devices."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import click

from edged.backend import Variant
from edged.cli.session import Session
from edged.layers.spec import Overlap, OverlapFrom

SEEDED = "random:"
FILES = {".gguf", ".safetensors"}
Split = Literal["even", "weighted"]
Command = TypeVar("Command", bound=Callable[..., Any])


def overlap_options(command: Command) -> Command:
    """Add the options that keep weights and cache off the device."""
    for option in (
        click.option(
            "--offload-cache", is_flag=True, default=None, help="Keys and values in host memory too."
        ),
        click.option("--block", type=click.IntRange(1, 256), help="With multi: parts that share a load."),
        click.option("--overlap-from", type=click.Choice(get_args(OverlapFrom)), help="[memory]"),
        click.option(
            "--overlap",
            type=click.Choice(get_args(Overlap)),
            help="Weights come from the host layer by layer.",
        ),
    ):
        command = option(command)
    return command


class Devices(NamedTuple):
    """One stage each."""

    names: tuple[str, ...]
    layers: tuple[int, ...]
    split: Split

    @classmethod
    def of(
        cls,
        stages: int | None,
        devices: str | None,
        layers: str | None,
        even: bool,
        weighted: bool,
    ) -> Devices:
        """Read the options; `--stages N` is N stages on the CPU, evenly unless asked otherwise."""
        if (stages is None) == (devices is None):
            raise click.UsageError("give either --stages NUMBER or --devices NAME,...")
        if even + weighted + (layers is not None) > 1:
            raise click.UsageError("give one of --even, --weighted and --layers COUNT,...")
        names = ("cpu",) * (stages or 1) if devices is None else tuple(devices.split(","))
        if not all(map(str.strip, names)):
            raise click.UsageError(f"--devices {devices!r} lacks a name; write cpu,cuda:0")
        split: Split = "even" if even or (stages and not weighted) else "weighted"
        return cls(names, _counts(layers), split)

    def options(self) -> dict[str, Any]:
        """As options of the adapter."""
        return {"devices": list(self.names), "layers": list(self.layers), "split": self.split}


def _counts(text: str | None) -> tuple[int, ...]:
    counts = [] if text is None else text.split(",")
    if not all(re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", count) for count in counts):
        raise click.UsageError(f"--layers {text!r} is no list of counts of at least 1; write 8,8,7,7")
    return tuple(map(int, counts))


def source_of(session: Session, model: str) -> str:
    """Find a model: `random:...` as it is, a file or folder, or a name of the catalogue."""
    path = Path(model)
    if model.startswith(SEEDED) or path.exists() or path.suffix in FILES or "/" in model:
        return model
    from edged.placement.survey import open_store

    name, _, variant = model.partition(":")
    return str(open_store(session.config, session.environment).resolve(name, variant, ("gguf",)).path)


def variant_of(source: str) -> Variant:
    """Return what the adapter opens."""
    gguf = source.endswith(".gguf")
    return Variant(
        model=source,
        name="given",
        task="generate",
        format="gguf" if gguf else "safetensors",
        path=Path(source),
    )
