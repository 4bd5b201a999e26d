"""What a plan may not do: the machine's limits, and what the operator wrote: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from edged.catalogue import Catalogue
from edged.config import Config, Stage
from edged.dispatch.leases import Mode
from edged.placement.table import Fingerprint, Form

MEMORY_SHARE = 0.75
"""Of the machine's memory, when no budget is given: a replacement loads beside what it replaces."""
MIB = 1 << 20
MODES: tuple[Mode, ...] = ("split", "single", "together", "turns")
"""Of equals the first: it is what applies where no plan says otherwise."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of the whole plan."""

    cores: int
    memory_bytes: int
    excluded: frozenset[str] = frozenset()
    """Device ids that no stage may use."""
    modes: tuple[Mode, ...] = MODES


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator wrote for one stage, which a plan never changes; empty is free."""

    model: str
    variants: tuple[str, ...]
    """Those that are allowed: the one he named, else those that are no worse than the default."""
    better_refused: str = ""
    """Why other variants are not allowed."""
    backend: str = ""
    device: str = ""
    workers: int | None = None
    max_batch: int | None = None
    options: dict[str, object] = {}
    exact: bool = False
    """Whether forms with `exact = false` are refused."""

    def objection(self, form: Form) -> str:
        """Why a form is not what the operator wants; empty when it is."""
        return next(self._objections(form), "")

    def _objections(self, form: Form) -> Iterator[str]:
        if form.variant not in self.variants:
            yield self.better_refused or f"only {' and '.join(self.variants)} are allowed"
        for name, wanted, has in (
            ("backend", self.backend, form.backend),
            ("device", self.device, form.device),
            *(
                (name, self.options[name], value)
                for name, value in options_of(form)
                if self.options.get(name)
            ),
        ):
            if wanted and wanted != has:
                yield f"the configuration says {name} = {wanted}"
        exact = dict(form.options).get("exact", True)
        if exact is not True and (self.exact or self.options.get("exact") is True):
            yield "it is not exact: equal questions may get unequal answers (decision 0011)"
        if exact is True and self.options.get("exact") is False and "exact" in dict(form.options):
            yield "the configuration says exact = false"


def options_of(form: Form) -> Iterator[tuple[str, str | int | bool]]:
    """What a form fixes of a stage's options, `exact` aside."""
    if form.threads:
        yield "threads", form.threads
    yield from ((name, value) for name, value in form.options if name != "exact")


def limits(config: Config, fingerprint: Fingerprint, excluded: frozenset[str] = frozenset()) -> Limits:
    """The limits of `[placement]` on the machine of a fingerprint."""
    wanted = config.placement
    cores = min(wanted.cores or fingerprint.cores, fingerprint.cores)
    memory = wanted.memory_mib * MIB or int(MEMORY_SHARE * fingerprint.memory_bytes)
    modes = MODES if wanted.leases == "auto" else (wanted.leases,)
    return Limits(cores=cores, memory_bytes=memory, excluded=excluded, modes=modes)


def wishes(
    config: Config, catalogue: Catalogue, *, exact: bool, quality_loss: bool = False
) -> dict[str, Wishes]:
    """What the operator wrote, by stage that is on, in the order of the pipelines."""
    ordered = dict.fromkeys(
        [name for line in config.pipelines.values() for name in line.stages] + list(config.stages)
    )
    return {
        name: _wishes(config.stages[name], catalogue, exact=exact, quality_loss=quality_loss)
        for name in ordered
        if config.stages[name].workers != 0
    }


def _wishes(stage: Stage, catalogue: Catalogue, *, exact: bool, quality_loss: bool) -> Wishes:
    variants, refusal = allowed_variants(stage, catalogue, quality_loss=quality_loss)
    return Wishes(
        model=stage.model,
        variants=variants,
        better_refused=refusal,
        backend=stage.backend,
        device=stage.device,
        workers=stage.workers,
        max_batch=stage.max_batch,
        options=dict(stage.options),
        exact=exact,
    )


def allowed_variants(
    stage: Stage, catalogue: Catalogue, *, quality_loss: bool
) -> tuple[tuple[str, ...], str]:
    """Variants that a plan may choose for a stage, best first, and why no other.

    A manifest lists its variants best first, so whatever stands at or before the one that runs without a
    plan is as good. A retriever keeps its variant: the vectors in the index were made with it.
    """
    if stage.variant:
        return (stage.variant,), f"the configuration says variant = {stage.variant}"
    manifest = catalogue.models.get(stage.model)
    if manifest is None or stage.weightless:
        return ("none",), "the model is in no catalogue, or its backend opens no weights here"
    default, names = manifest.variant().name, [rung.name for rung in manifest.variants]
    if stage.kind == "retriever":
        return (default,), f"the index was made with variant {default}"
    if quality_loss:
        return tuple(names), "the manifest does not list it"
    return tuple(names[: names.index(default) + 1]), (
        f"its quality is below that of {default}; --allow-quality-loss allows it"
    )


def merged(given: Mapping[str, object], form: Form) -> dict[str, object]:
    """Options of a stage with what a form adds; what the operator gave wins."""
    return {**dict(options_of(form)), **dict(form.options), **given}
