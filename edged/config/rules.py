"""Rules that span several options of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edged.backend import names_no_core
from edged.config.bands import governor_problems
from edged.config.tables import Fallback
from edged.errors import ConfigError

if TYPE_CHECKING:
    from edged.config.tables import Config, Peers, Pipeline, Stage

PAGE_BYTES = 4096
MAX_ARENA_BYTES = 16 << 30
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CORES = r"[0-9]{1,4}(-[0-9]{1,4})?"
_LISTEN = re.compile(r"tcp://((?:[0-9]{1,3}\.){3}[0-9]{1,3}|\[[0-9a-fA-F:.%a-z]+\]):[0-9]{1,5}")
_EVERYWHERE = ("0.0.0.0", "[::]", "[::0]")  # noqa: S104 (they are refused)
_DEVICE = re.compile(rf"sim:[a-z0-9]+|[a-z][a-z0-9_]*(:{_CORES}(,{_CORES})*)?")


def cross_check(config: Config) -> None:
    """Raise `ConfigError` for the first rule that the configuration as a whole breaks."""
    for name, problem in _problems(config):
        raise ConfigError(f"{name} {problem}", param=name)


def _problems(config: Config) -> Iterator[tuple[str, str]]:
    yield from _queue_problems(config)
    yield from _library_problems(config)
    yield from governor_problems(config)
    yield from _peer_problems(config.peers)
    if config.api.socket == config.api.admin_socket:
        yield "api.admin_socket", f"= '{config.api.admin_socket}' is also api.socket; they have to differ"
    for name, stage in config.stages.items():
        yield from _stage_problems(f"stages.{name}", stage)
    for name, pipeline in config.pipelines.items():
        yield from _pipeline_problems(config, name, pipeline)


def _queue_problems(config: Config) -> Iterator[tuple[str, str]]:
    queue = config.queue
    if queue.slot_bytes % PAGE_BYTES:
        yield "queue.slot_bytes", f"= {queue.slot_bytes} is not a multiple of {PAGE_BYTES}, the page size"
    if queue.slots * queue.slot_bytes > MAX_ARENA_BYTES:
        product = f"{queue.slots} slots of {queue.slot_bytes} bytes"
        yield "queue.slots", f"asks for {product}: a stage may have at most {MAX_ARENA_BYTES} bytes"


def _library_problems(config: Config) -> Iterator[tuple[str, str]]:
    library = config.library
    if library.overlap_tokens >= library.chunk_tokens:
        yield (
            "library.overlap_tokens",
            f"= {library.overlap_tokens} has to be less than library.chunk_tokens = {library.chunk_tokens}",
        )


def _peer_problems(peers: Peers) -> Iterator[tuple[str, str]]:
    if peers.name and not _NAME.fullmatch(peers.name):
        yield "peers.name", f"= {peers.name!r} may hold only a-z, 0-9, '.', '_' and '-', at most 64"
    found = _LISTEN.fullmatch(peers.listen)
    if peers.listen and found is None:
        yield "peers.listen", f"= {peers.listen!r} is not tcp://ADDRESS:PORT"
    elif found is not None and found[1] in _EVERYWHERE:
        yield "peers.listen", f"= {peers.listen!r} is every network there is; name the address of one"
    if peers.silence_s < 2 * peers.ping_s:
        yield "peers.silence_s", f"= {peers.silence_s:g} has to be at least twice peers.ping_s"


def _stage_problems(name: str, stage: Stage) -> Iterator[tuple[str, str]]:
    if not stage.model and not stage.weightless:
        yield (
            f"{name}.model",
            "is empty; name a model (see `edgectl models list`) or set backend = 'openai' or 'simulated'",
        )
    for option, value in (("model", stage.model), ("variant", stage.variant), ("backend", stage.backend)):
        if value and not _NAME.fullmatch(value):
            yield f"{name}.{option}", _name_problem(option, value)
    if stage.device and (problem := _device_problem(stage.device)):
        yield f"{name}.device", f"= {stage.device!r} {problem}"
    if stage.bypass != "auto" and stage.kind != "reranker":
        yield f"{name}.bypass", f"= {stage.bypass!r} is for rerankers; this stage is a {stage.kind}"
    yield from _fallback_problems(f"{name}.fallback", stage)


def _name_problem(option: str, value: str) -> str:
    model, colon, variant = value.partition(":")
    if option == "model" and colon and _NAME.fullmatch(model) and _NAME.fullmatch(variant):
        return f"= {value!r} names a variant too; write model = {model!r} and variant = {variant!r}"
    return f"= {value!r} may hold only a-z, 0-9, '.', '_' and '-', at most 64"


def _fallback_problems(name: str, stage: Stage) -> Iterator[tuple[str, str]]:
    for entry in stage.fallback or ():
        place = Fallback(device=entry) if isinstance(entry, str) else entry
        if problem := _device_problem(place.device):
            yield name, f"names {place.device!r}, which {problem}"
        for value in (place.variant, place.backend):
            if value and not _NAME.fullmatch(value):
                yield name, f"names {value!r}: only a-z, 0-9, '.', '_' and '-', at most 64"


def _device_problem(device: str) -> str:
    if not _DEVICE.fullmatch(device):
        return "is not a device; write cpu, cpu:0-1, igpu, npu or cuda:0 (see `edgectl devices`)"
    return "names no core" if names_no_core(device) else ""


def _pipeline_problems(config: Config, name: str, pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    where = f"pipelines.{name}.stages"
    for stage in pipeline.stages:
        if stage not in config.stages:
            yield where, f"names {stage!r}, which is not a stage; stages: {', '.join(config.stages)}"
            return
    if len(set(pipeline.stages)) < len(pipeline.stages):
        yield where, f"= {list(pipeline.stages)} names a stage twice"
    if name in {stage.model for stage in config.stages.values()}:
        yield f"pipelines.{name}", "has the name of a model, so clients could not tell them apart; rename it"
    if problem := _order_problem([config.stages[stage].kind for stage in pipeline.stages]):
        yield where, f"= {list(pipeline.stages)}: {problem}"


def _order_problem(kinds: list[str]) -> str:
    if not kinds:
        return "a pipeline needs at least one stage"
    if "generator" in kinds[:-1]:
        return "a generator streams its answer to the client, so it has to be the last stage"
    if "retriever" in kinds[1:]:
        return "a retriever searches for the question, so it has to be the first stage"
    if "reranker" in kinds and kinds[0] == "reranker" and len(kinds) > 1:
        return "a reranker thins out what a retriever found, so a retriever has to come before it"
    if "tensor" in kinds and set(kinds) != {"tensor"}:
        return "a tensor stage speaks arrays and cannot be mixed with stages that speak text"
    return ""
