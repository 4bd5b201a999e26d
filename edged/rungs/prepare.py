"""Before anything is asked: which rungs, which questions, and what of an earlier measurement still holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from edged.config import Config
from edged.errors import BadRequest, ConfigError, NotFound
from edged.placement.survey import open_store
from edged.report import Status
from edged.rungs import storage
from edged.rungs.drawing import drawn
from edged.rungs.record import Question, Record
from edged.rungs.standing import fingerprint, pipeline_of, stale
from edged.rungs.taking import governor_of


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator asks for."""

    rungs: tuple[str, ...] = ()
    """Empty: all."""
    pipeline: str = ""
    count: int = 64
    """Of questions to make."""
    seed: int = 0
    fresh: bool = False


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What to begin with."""

    record: Record
    rungs: tuple[int, ...]
    notes: tuple[str, ...] = ()


def prepare(
    config: Config,
    environment: Mapping[str, str],
    status: Status,
    wanted: Wanted,
    own: Sequence[Question] | None,
) -> Prepared:
    """Put together what a measurement begins with; `own` are questions that the operator brought.

    Raises `ConfigError` where the daemon does not run this configuration, `NotFound` for a rung that there is
    not or a library without passages, `BadRequest` for questions that the pipeline cannot be asked.
    """
    names = [rung.name for rung in config.governor.ladder]
    governor = governor_of(status)
    if list(governor.ladder) != names:
        raise ConfigError("the daemon runs with another ladder than this configuration; run: edgectl reload")
    pipeline = pipeline_of(config, wanted.pipeline)
    questions = _questions(config, pipeline, wanted, own)
    floor = names.index(governor.floor) if governor.floor in names else len(names) - 1
    forbidden = dict.fromkeys(names[floor + 1 :], f"it is below governor.floor = {governor.floor!r}")
    began = Record(
        fingerprint=fingerprint(config, open_store(config, environment), pipeline),
        questions=tuple(questions),
        origin="made" if own is None else "file",
        seed=wanted.seed,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        unavailable=dict(governor.unavailable) | forbidden,
    )
    rungs = _numbers(wanted.rungs, names)
    former = None if wanted.fresh else storage.load(storage.path_in(config.daemon.state_dir))
    if former is None:
        return Prepared(record=began, rungs=rungs)
    reasons = stale(former.fingerprint, began.fingerprint)
    reasons += [] if former.questions == began.questions else ["other questions"]
    if reasons:
        return Prepared(record=began, rungs=rungs, notes=(f"measured anew because of {'; '.join(reasons)}",))
    return Prepared(record=replace(began, sheets=former.sheets), rungs=rungs)


def _numbers(wanted: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    if unknown := [name for name in wanted if name not in names]:
        known = ", ".join(names)
        raise NotFound(f"there is no rung {unknown[0]!r}; from best to worst: {known}", param="rungs")
    return tuple(names.index(name) for name in wanted) or tuple(range(len(names)))


def _questions(
    config: Config, pipeline: str, wanted: Wanted, own: Sequence[Question] | None
) -> Sequence[Question]:
    kinds = {config.stages[name].kind for name in config.pipelines[pipeline].stages}
    if "retriever" in kinds:
        return drawn(config.library.dir, wanted.count, wanted.seed) if own is None else own
    if not own or not all(question.answer for question in own):
        raise BadRequest(
            f"pipeline {pipeline!r} answers without documents, so questions cannot be made of them: give "
            "--questions FILE with an answer in every line",
            param="questions",
        )
    return [replace(question, relevant=()) for question in own]
