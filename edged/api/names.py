"""Which route a `model` name means."""

from __future__ import annotations

from typing import Literal

import msgspec

from edged.config import Config
from edged.errors import NotFound

Operation = Literal["chat", "embed", "rerank", "tensor"]
_STAGE_OF: dict[str, str] = {"chat": "generator", "embed": "retriever", "rerank": "reranker"}


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A named way through the stages."""

    name: str
    stages: tuple[str, ...]
    kinds: tuple[str, ...]
    pipeline: bool

    def serves(self, operation: Operation) -> bool:
        """Whether a request of that operation may go this way."""
        if operation == "tensor":
            return True
        if operation == "chat":
            return self.kinds[-1:] == ("generator",)
        return self.kinds == (_STAGE_OF[operation],)

    @property
    def grounded(self) -> bool:
        """Whether answers rest on documents."""
        return "retriever" in self.kinds


class Names(msgspec.Struct, frozen=True):
    """Every name that a client may use, in order of precedence: pipelines, stages, models."""

    routes: dict[str, Route]
    defaults: dict[str, str]

    def route(self, name: str | None, operation: Operation) -> Route:
        """Find the route, or `NotFound` with the names that would do."""
        found = self.routes.get(name or self.defaults.get(operation, ""))
        if found is not None and found.serves(operation):
            return found
        choices = ", ".join(known.name for known in self.routes.values() if known.serves(operation))
        wanted = f"no model {name!r} for this endpoint" if name else "no model for this endpoint"
        raise NotFound(f"{wanted}; there is: {choices or 'none'}", param="model")


def names_of(config: Config) -> Names:
    """List the names of a configuration."""
    kinds: dict[str, str] = {name: stage.kind for name, stage in config.stages.items()}
    routes = [_route(name, line.stages, kinds, pipeline=True) for name, line in config.pipelines.items()]
    routes += [_route(name, (name,), kinds, pipeline=False) for name in config.stages]
    routes += [_route(stage.model, (name,), kinds, pipeline=False) for name, stage in config.stages.items()]
    known: dict[str, Route] = {}
    for route in routes:
        if route.name:
            known.setdefault(route.name, route)
    return Names(known, _defaults(known))


def _route(name: str, stages: tuple[str, ...], kinds: dict[str, str], *, pipeline: bool) -> Route:
    return Route(name=name, stages=stages, kinds=tuple(kinds[stage] for stage in stages), pipeline=pipeline)


def _defaults(routes: dict[str, Route]) -> dict[str, str]:
    """`rag` for chat where it exists; otherwise the first that serves."""
    found: dict[str, str] = {}
    for operation in ("chat", "embed", "rerank"):
        first = next((name for name, route in routes.items() if route.serves(operation)), None)
        if first is not None:
            found[operation] = first
    if "rag" in routes and routes["rag"].serves("chat"):
        found["chat"] = "rag"
    return found
