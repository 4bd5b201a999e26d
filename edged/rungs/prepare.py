"""Before anything is asked: which rungs, which questions, and what of an earlier measurement still holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from edged.client import Client
from edged.config import Config
from edged.errors import BadRequest, ConfigError, NotFound
from edged.placement.survey import open_store
from edged.report import Status
from edged.rungs import storage
from edged.rungs.invent import Made, Making, invented
from edged.rungs.record import Origin, Question, Record
from edged.rungs.standing import fingerprint, pipeline_of, stale
from edged.rungs.taking import governor_of

INVENTING_SHARE = 0.3
"""Of the budget, at most, for the generator's questions."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator asks for."""

    rungs: tuple[str, ...] = ()
    """Empty: all."""
    pipeline: str = ""
    count: int = 64
    """Of questions to make."""
    made_by: Origin = "generator"
    seed: int = 0
    fresh: bool = False
    budget_s: float = 600.0


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What to begin with."""

    record: Record
    rungs: tuple[int, ...]
    embedder: str
    """Stage that embeds answers; empty where the pipeline has none."""
    notes: tuple[str, ...] = ()


def prepare(
    config: Config,
    environment: Mapping[str, str],
    client: Client,
    wanted: Wanted,
    own: Sequence[Question] | None,
    watch: Callable[[Making], None],
) -> Prepared:
    """Put together what a measurement begins with; `own` are questions that the operator brought.

    `watch` is called while questions are made.

    Raises `ConfigError` where the daemon does not run this configuration, `NotFound` for a rung that there
    is not or a library without passages, `BadRequest` for questions that the pipeline cannot be asked, or
    that are others than those of a measurement that still holds.
    """
    ladder, status = config.governor.ladder, client.status()
    if governor_of(status).ladder != ladder:
        raise ConfigError("the daemon runs with another ladder than this configuration; run: edgectl reload")
    pipeline = pipeline_of(config, wanted.pipeline)
    rungs = _numbers(wanted.rungs, [rung.name for rung in ladder])
    began = Record(
        fingerprint=fingerprint(config, open_store(config, environment), pipeline),
        questions=() if own is None else tuple(_askable(config, pipeline, own)),
        origin=wanted.made_by if own is None else "file",
        by_words=0,
        seed=wanted.seed,
        count=wanted.count if own is None else len(own),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        unavailable=_unavailable(status),
    )
    former = None if wanted.fresh else storage.load(storage.path_in(config.daemon.state_dir))
    reasons = [] if former is None else _differences(former, began)
    notes = [f"measured anew because of {'; '.join(reasons)}"] if reasons else []
    if former is not None and not reasons:
        began = replace(began, sheets=former.sheets, questions=former.questions, by_words=former.by_words)
    elif own is None:
        made = _made(config, client, pipeline, wanted, watch)
        began = replace(began, questions=made.questions, by_words=made.by_words)
    return Prepared(
        record=began,
        rungs=rungs,
        embedder=next(iter(_stages(config, pipeline, "retriever")), ""),
        notes=tuple(notes),
    )


def _differences(former: Record, began: Record) -> list[str]:
    """Why nothing of a former measurement holds any more.

    `BadRequest` where all of it holds and something else is asked: what the operator has is not thrown away
    unasked.
    """
    then = replace(former.fingerprint, pipeline=began.fingerprint.pipeline)
    if reasons := stale(then, began.fingerprint):
        return reasons
    other_pipeline = former.fingerprint.pipeline != began.fingerprint.pipeline
    same = ("origin", *(("questions",) if began.origin == "file" else ("seed", "count")))
    if other_pipeline or any(getattr(former, name) != getattr(began, name) for name in same):
        raise BadRequest(
            f"what was measured before holds still, and was asked otherwise ({_asked(former)}): ask the same "
            "to go on with it, or add --fresh to forget it",
            param="fresh",
        )
    return []


def _asked(former: Record) -> str:
    """What the operator said then."""
    pipeline = f"--pipeline {former.fingerprint.pipeline}"
    if former.origin == "file":
        return f"{pipeline} --questions with a file of {former.count}"
    return f"{pipeline} --count {former.count} --seed {former.seed} --made-by {former.origin}"


def _unavailable(status: Status) -> dict[str, str]:
    """By rung that cannot be taken: why."""
    governor = governor_of(status)
    names = [rung.name for rung in governor.ladder]
    floor = names.index(governor.floor) if governor.floor in names else len(names) - 1
    below = f"it is below governor.floor = {governor.floor!r}"
    return dict(governor.unavailable) | dict.fromkeys(names[floor + 1 :], below)


def _numbers(wanted: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    if unknown := [name for name in wanted if name not in names]:
        known = ", ".join(names)
        raise NotFound(f"there is no rung {unknown[0]!r}; from best to worst: {known}", param="rungs")
    return tuple(names.index(name) for name in wanted) or tuple(range(len(names)))


def _stages(config: Config, pipeline: str, kind: str) -> list[str]:
    return [name for name in config.pipelines[pipeline].stages if config.stages[name].kind == kind]


def _askable(config: Config, pipeline: str, own: Sequence[Question]) -> Sequence[Question]:
    """The questions without what a pipeline without documents cannot be judged by."""
    if _stages(config, pipeline, "retriever"):
        return own
    if not all(question.answer for question in own):
        raise BadRequest(
            f"pipeline {pipeline!r} answers without documents: every question needs an answer", param="answer"
        )
    return [replace(question, relevant=()) for question in own]


def _made(
    config: Config, client: Client, pipeline: str, wanted: Wanted, watch: Callable[[Making], None]
) -> Made:
    if not _stages(config, pipeline, "retriever"):
        raise BadRequest(
            f"pipeline {pipeline!r} answers without documents, so no questions can be made of them: give "
            "--questions FILE with an answer in every line",
            param="questions",
        )
    generator = config.pipelines[pipeline].stages[-1] if wanted.made_by == "generator" else ""
    budget_s = INVENTING_SHARE * wanted.budget_s
    return invented(
        client,
        generator,
        config.library.dir,
        count=wanted.count,
        seed=wanted.seed,
        budget_s=budget_s,
        watch=watch,
    )
