"""Which figures still hold on the machine as it is now: pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from edged.placement.table import Fingerprint, Form, Point, Table

PACKAGES = {
    "onnx": ("onnxruntime",),
    "openvino": ("openvino", "openvino-genai"),
    "llama_cpp": ("llama-cpp-python",),
    "torch_pipeline": ("torch", "transformers"),
}
"""Distributions whose version decides what a backend costs, beside `edged` itself, whose stages it runs."""
LENGTH_TOLERANCE = 0.25
"""A library grows; only when its passages become much longer or shorter do requests cost something else."""
DISTURBING = 0.25
"""Cores that other processes may keep busy before a time is called in doubt."""
MEMORY_TOLERANCE = 0.02
"""Firmware and kernel take a little more or less at each boot."""


def stale(table: Table, now: Fingerprint) -> list[str]:
    """Why figures of `table` do not hold on the machine `now`, a sentence each; empty when all do.

    Weights that are new are no reason: what was measured still holds.
    """
    reasons = machine_changes(table.fingerprint, now)
    reasons += [f"package {name}: {was} -> {is_}" for name, was, is_ in _packages(table, now)]
    return reasons + [f"model {name}: other weights than measured" for name in _models(table, now)]


def machine_changes(then: Fingerprint, now: Fingerprint) -> list[str]:
    """What is another machine or kernel: then no figure holds.

    >>> was = Fingerprint(cpu="A", cores=2, memory_bytes=8, kernel="6.1", packages={}, models={})
    >>> machine_changes(was, msgspec.structs.replace(was, cores=4))
    ['cores: 2 -> 4']
    """
    before, after = msgspec.structs.asdict(then), msgspec.structs.asdict(now)
    names = [name for name in ("cpu", "cores", "accelerators", "kernel") if before[name] != after[name]]
    changes = [f"{name}: {_shown(before[name])} -> {_shown(after[name])}" for name in names]
    if abs(then.memory_bytes - now.memory_bytes) > MEMORY_TOLERANCE * then.memory_bytes:
        changes.append(f"memory: {then.memory_bytes} -> {now.memory_bytes} bytes")
    return changes


def still_valid(table: Table, now: Fingerprint) -> Table:
    """The table without the figures that no longer hold, under the fingerprint `now`.

    Another machine or kernel: nothing is left. Another version of a runtime: its forms go. Other weights:
    the forms of that variant go.
    """
    if machine_changes(table.fingerprint, now):
        return Table(fingerprint=now, measured_at=table.measured_at, workload=table.workload)
    changed = {name for name, *_ in _packages(table, now)}
    models = set(_models(table, now))

    def holds(form: Form) -> bool:
        return not changed & set(packages_of(form.backend)) and f"{form.model}/{form.variant}" not in models

    known = {**table.fingerprint.models, **now.models}
    return msgspec.structs.replace(
        table,
        fingerprint=msgspec.structs.replace(now, models=known),
        points=tuple(point for point in table.points if holds(point.form)),
        weights=tuple(weight for weight in table.weights if holds(weight.form)),
        pairs=tuple(pair for pair in table.pairs if holds(pair.first) and holds(pair.second)),
        failures=tuple(failure for failure in table.failures if holds(failure.form)),
    )


def undisturbed(table: Table, stages: Collection[str]) -> Table:
    """Without the figures of these stages that other processes disturbed, and without pairs of such forms."""

    def loud(point: Point) -> bool:
        return point.form.stage in stages and point.others > DISTURBING

    forms = {point.form for point in table.points if loud(point)}
    return msgspec.structs.replace(
        table,
        points=tuple(point for point in table.points if not loud(point)),
        pairs=tuple(pair for pair in table.pairs if not forms & {pair.first, pair.second}),
    )


def workload_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What requests have become: more or fewer passages, or passages of another length.

    >>> workload_changes({"candidates": 20, "passage_words": 100}, {"candidates": 10, "passage_words": 110})
    ['candidates: 20 -> 10']
    """
    names = [name for name in ("candidates", "keep", "new_tokens") if then.get(name) != now.get(name)]
    was, is_ = then.get("passage_words", 0), now.get("passage_words", 0)
    if abs(was - is_) > LENGTH_TOLERANCE * max(was, 1):
        names.append("passage_words")
    return [f"{name}: {then.get(name)} -> {now.get(name)}" for name in names]


def packages_of(backend: str) -> tuple[str, ...]:
    """Distributions that decide what a form on this backend costs."""
    return ("edged", *PACKAGES.get(backend, ()))


def _packages(table: Table, now: Fingerprint) -> list[tuple[str, str, str]]:
    """Packages of backends that were measured or refused, whose version is another one."""
    forms = [*(point.form for point in table.points), *(failure.form for failure in table.failures)]
    names = {name for form in forms for name in packages_of(form.backend)}
    then = table.fingerprint.packages
    pairs = [(name, then.get(name, "absent"), now.packages.get(name, "absent")) for name in sorted(names)]
    return [(name, was, is_) for name, was, is_ in pairs if was != is_]


def _models(table: Table, now: Fingerprint) -> list[str]:
    """Variants that were measured and whose digest is another one; a removed one has none to differ."""
    then: Mapping[str, str] = table.fingerprint.models
    return sorted(name for name, digest in then.items() if now.models.get(name, digest) != digest)


def _shown(value: object) -> str:
    return (", ".join(value) or "none") if isinstance(value, tuple) else str(value)
