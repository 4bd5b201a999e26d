"""What `edgectl layers run` and `bench` take for a model and for devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import click

from edged.backend import Variant
from edged.cli.session import Session
from edged.errors import BadRequest

SEEDED = "random:"


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
    if model.startswith(SEEDED) or path.exists() or path.suffix or "/" in model:
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
