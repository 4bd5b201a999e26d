"""Whether the places that questions name are in the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edged.config import Config
from edged.documents.library import Library
from edged.messages import Passage
from edged.rungs.record import Place
from edged.rungs.scores import lies_in
from edged.rungs.standing import pipeline_of


def lacking_in(config: Config, pipeline: str = "") -> Callable[[Place], str]:
    """Say of a place why no passage of the library can lie in it; empty where one can.

    A pipeline that looks nothing up is asked without places, so none is lacking. Raises `ConfigError`,
    `StorageError`.
    """
    stages = config.pipelines[pipeline_of(config, pipeline)].stages
    if not any(config.stages[name].kind == "retriever" for name in stages):
        return lambda _: ""
    folder = config.library.dir
    with Library.open(folder) as library:
        sources = [document.source for document in library.documents()]
    return lambda place: _lacking(place, sources, folder)


def _lacking(place: Place, sources: list[str], folder: Path) -> str:
    if place.passage:
        return ""
    document = Place(source=place.source)
    named = [source for source in sources if lies_in(Passage(id=0, text="", source=source), document)]
    if not named:
        return (
            f"relevant names {place.source!r}, and no document of the library is called or ends so; "
            "see: edgectl documents list"
        )
    if not place.first_line or _touched(place, named, folder):
        return ""
    last = place.last_line or place.first_line
    return f"relevant names the lines {place.first_line} to {last} of {place.source!r}, where no passage is"


def _touched(place: Place, named: list[str], folder: Path) -> bool:
    """Whether a passage of these documents touches the lines."""
    with Library.open(folder) as library:
        return any(lies_in(passage, place) for source in named for passage in library.show(source)[1])
