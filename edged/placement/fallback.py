"""Where a stage goes when its device is lost: as the operator wrote, else as plan and defaults say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from edged.backend import is_cpu
from edged.config import Config, Stage
from edged.config.tables import Fallback
from edged.dispatch.losses import is_accelerator
from edged.errors import EdgedError
from edged.models.store import ModelStore
from edged.placement.applied import OWN_OPTIONS
from edged.placement.defaults import first_present, place
from edged.placement.overrides import manifest_entry, overridden
from edged.placement.standing import contradiction, options_of
from edged.placement.table import Form, Plan
from edged.report import Override
from edged.workers.spec import StageSpec

logger = logging.getLogger("edged.placement")

CPU, SIMULATED_CPU = "cpu", "sim:cpu"


def silicon(device: str) -> str:
    """What a device is lost with: a set of cores is the CPU.

    >>> silicon("cpu:0-1"), silicon("cuda:0")
    ('cpu', 'cuda:0')
    """
    return "cpu" if is_cpu(device) else device


def places(
    name: str, stage: Stage, home: StageSpec, config: Config, plan: Plan | None, store: ModelStore
) -> list[StageSpec]:
    """How a stage runs that runs as `home`, and then on each device that it may move to, best first.

    What cannot be placed (weights that are not here, a runtime that is not installed) is left out, and told
    in the log.
    """
    found = [home]
    for described, candidate in _candidates(name, stage, home, config, plan, store):
        try:
            spec = candidate()
        except EdgedError as error:
            details = {"stage": name, "device": described, "why": error.message}
            logger.warning("not a device to fall back to", extra=details)
            continue
        if spec not in found:
            found.append(spec)
    return found


_Candidate = tuple[str, Callable[[], StageSpec]]


def _candidates(
    name: str, stage: Stage, home: StageSpec, config: Config, plan: Plan | None, store: ModelStore
) -> Iterator[_Candidate]:
    if stage.fallback is not None:
        for entry in stage.fallback:
            wanted = Fallback(device=entry) if isinstance(entry, str) else entry
            yield wanted.device, partial(_written, name, stage, wanted, home, config, store)
        return
    if not is_accelerator(home.device):
        return
    runner_up = _runner_up(name, stage, home, plan)
    if runner_up is not None:
        yield runner_up.device, partial(_planned, name, stage, runner_up, home, config, store)
    cpu = SIMULATED_CPU if home.backend == "simulated" else CPU
    wanted = Fallback(device=cpu, backend=_on_cpu(home, store))
    yield cpu, partial(_written, name, stage, wanted, home, config, store)


def _on_cpu(home: StageSpec, store: ModelStore) -> str:
    """The backend for the CPU where that of an accelerator is not for it; empty: it stays."""
    rung = manifest_entry(home.variant, store) if home.backend == "torch_pipeline" else None
    return first_present(rung.backends) if rung else ""


def _written(
    name: str, stage: Stage, wanted: Fallback, home: StageSpec, config: Config, store: ModelStore
) -> StageSpec:
    asked = Override(variant=wanted.variant, backend=wanted.backend, device=wanted.device)
    spec = overridden(name, stage, asked, home, config, store)
    if wanted.options is None:
        return spec
    own = {key: value for key, value in spec.options.items() if key in OWN_OPTIONS}
    return msgspec.structs.replace(spec, options=own | wanted.options)


def _planned(
    name: str, stage: Stage, form: Form, home: StageSpec, config: Config, store: ModelStore
) -> StageSpec:
    filled = msgspec.structs.replace(
        stage,
        variant=form.variant,
        backend=form.backend,
        device=form.device,
        options=options_of(form) | stage.options,
    )
    spec = place(name, filled, config, store)
    return msgspec.structs.replace(spec, max_batch=home.max_batch)


def _runner_up(name: str, stage: Stage, home: StageSpec, plan: Plan | None) -> Form | None:
    """The plan's second best for a stage, where it is on another device and the operator leaves it open.

    Another variant of an embedder would search with vectors that nobody compared with those stored.
    """
    choice = plan.choices.get(name) if plan else None
    form = choice.runner_up if choice else None
    if form is None or silicon(form.device) == silicon(home.device):
        return None
    if stage.kind == "retriever" and form.variant != home.variant.name:
        return None
    return None if contradiction(msgspec.structs.replace(stage, device=""), form) else form
