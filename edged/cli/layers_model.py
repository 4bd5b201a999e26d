"""What `edgectl layers run` and `bench` take for a model and for devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import click

from edged.backend import Variant
from edged.cli.session import Session
from edged.errors import BadRequest
from edged.layers.spec import Overlap, OverlapFrom

SEEDED = "random:"
FILES = {".gguf", ".safetensors"}
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

    @classmethod
    def of(cls, stages: int | None, devices: str | None, layers: str | None) -> Devices:
        """Read the options; `--stages N` is N stages on the CPU."""
        if (stages is None) == (devices is None):
            raise click.UsageError("give either --stages NUMBER or --devices NAME,...")
        names = tuple(devices.split(",")) if devices else ("cpu",) * (stages or 1)
        counts = layers.split(",") if layers else []
        if not all(count.strip().isdigit() for count in counts):
            raise BadRequest(f"--layers {layers!r} is no list of counts; write 8,8,7,7", param="--layers")
        return cls(names, tuple(map(int, counts)))

    def options(self) -> dict[str, Any]:
        """As options of the adapter."""
        return {"devices": list(self.names), "layers": list(self.layers)}


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
