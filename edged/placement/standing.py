"""Whether an applied plan still fits: the machine, the configuration: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from edged.config import Stage
from edged.placement.staleness import machine_changes, packages_of
from edged.placement.table import Choice, Fingerprint, Form, Plan

OTHER_MACHINE = ("cpu:", "cores:", "accelerators:")
"""Changes after which the devices of a plan may not be there; a new kernel changes figures alone."""


def foreign(plan: Plan, now: Fingerprint) -> str:
    """Why a plan was made for another machine, so that it must not be used; empty when it was not."""
    changes = machine_changes(plan.fingerprint, now)
    return "; ".join(change for change in changes if change.startswith(OTHER_MACHINE))


def outdated(plan: Plan, now: Fingerprint) -> str:
    """Why the figures behind a plan no longer hold; empty when they do.

    Only runtimes and weights that the plan uses count.
    """
    then = plan.fingerprint
    forms = [choice.form for choice in plan.choices.values()]
    packages = sorted({name for form in forms for name in packages_of(form.backend)})
    models = sorted({f"{form.model}/{form.variant}" for form in forms})
    changes = machine_changes(then, now)
    changes += _changes("package", packages, then.packages, now.packages)
    weights = [name for name in models if then.models.get(name) != now.models.get(name)]
    return "; ".join([*changes, *(f"model {name}: other weights" for name in weights)])


def _changes(what: str, names: list[str], then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    pairs = [(name, then.get(name, "absent"), now.get(name, "absent")) for name in names]
    return [f"{what} {name}: {was} -> {is_}" for name, was, is_ in pairs if was != is_]


def contradiction(stage: Stage, form: Form) -> str:
    """Which explicit setting of a stage its planned form goes against; empty when none.

    >>> form = Form(stage="g", model="m", variant="q4_0", backend="openvino", device="cpu", threads=2)
    >>> contradiction(Stage(kind="generator", model="m", backend="llama_cpp"), form)
    'backend = llama_cpp'
    """
    settings = (
        ("model", stage.model, form.model),
        ("variant", stage.variant, form.variant),
        ("backend", stage.backend, form.backend),
        ("device", stage.device, form.device),
    )
    return next((f"{name} = {wanted}" for name, wanted, has in settings if wanted and wanted != has), "")


def choice_of(plan: Plan | None, name: str, stage: Stage) -> Choice | None:
    """What a plan says about a stage, unless the configuration contradicts it."""
    choice = plan.choices.get(name) if plan else None
    return None if choice is None or contradiction(stage, choice.form) else choice


def overruled(plan: Plan, stages: Mapping[str, Stage]) -> dict[str, str]:
    """A sentence for each stage that runs otherwise than planned because the configuration says so."""
    found = {name: _overruled(name, choice, stages.get(name)) for name, choice in plan.choices.items()}
    return {name: sentence for name, sentence in found.items() if sentence}


def shared_otherwise(plan: Plan, leases: str) -> str:
    """What to say where the configuration has cores shared otherwise than planned; empty where it has not."""
    if leases in {"auto", plan.lease_mode}:
        return ""
    return f"cores are not shared {plan.lease_mode} as planned: the configuration says leases = {leases}"


def _overruled(name: str, choice: Choice, stage: Stage | None) -> str:
    if stage is None:
        return f"the plan names the stage {name!r}, which is gone"
    if said := contradiction(stage, choice.form):
        return f"stage {name} is not as planned: the configuration says {said}"
    if left := ", ".join(_individually(stage, choice)):
        return f"stage {name} is not quite as planned: the configuration says {left}"
    return ""


def _individually(stage: Stage, choice: Choice) -> Iterator[str]:
    """Settings that win by themselves; the rest of the choice stands."""
    if stage.workers not in {None, choice.workers}:
        yield f"workers = {stage.workers}"
    if stage.max_batch not in {None, choice.batch}:
        yield f"max_batch = {stage.max_batch}"
    for name, value in options_of(choice.form).items():
        if stage.options.get(name, value) != value:
            yield f"{name} = {msgspec.json.encode(stage.options[name]).decode()}"


def options_of(form: Form) -> dict[str, str | int | bool]:
    """The options that a form fixes."""
    threads: dict[str, str | int | bool] = {"threads": form.threads} if form.threads else {}
    return threads | dict(form.options)
