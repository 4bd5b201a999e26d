"""The embedder that the configuration's retriever uses, opened in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from edged.errors import ConfigError

if TYPE_CHECKING:
    from edged.backend import TensorSession
    from edged.config import Config, Stage
    from edged.stages.encoder import Encoder


@contextmanager
def open_encoder(config: Config) -> Iterator[Encoder]:
    """Open the first retriever's model as the daemon would; `ConfigError`, `ModelError`, `BackendError`."""
    from edged.catalogue import Catalogue
    from edged.models.store import ModelStore
    from edged.placement.defaults import place
    from edged.stages.encoder import Encoder
    from edged.stages.factory import open_session, split_options
    from edged.stages.retriever import Retriever

    name, stage = _retriever(config)
    spec = place(name, stage, config, ModelStore(config.daemon.state_dir / "models", Catalogue.discover()))
    _, options = split_options(spec.options, Retriever.OPTIONS)
    options.pop("cache_dir", None)  # the daemon's, which a file of root's would spoil
    session = cast("TensorSession", open_session(spec, options))
    try:
        yield Encoder(session, spec.variant)
    finally:
        session.close()


def _retriever(config: Config) -> tuple[str, Stage]:
    for name, stage in config.stages.items():
        if stage.kind == "retriever":
            return name, stage
    raise ConfigError("no stage is a retriever, whose model embeds documents; add one to [stages]")
