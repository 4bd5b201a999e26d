"""Calibration tables by hand, in the shape that `edgectl calibrate` leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from edged.placement.limits import MODES, Limits, Wishes
from edged.placement.table import Fingerprint, Form, Pair, Point, Table, Weight

FINGERPRINT = Fingerprint(cpu="test", cores=2, memory_bytes=8 << 30, kernel="6", packages={}, models={})
STAGES = ("retriever", "reranker", "generator")


def form(stage: str, backend: str = "openvino", threads: int = 1, **other: Any) -> Form:
    """A form of a stage: int8 weights on the CPU, where nothing else is said."""
    fields: dict[str, Any] = {"model": "m", "variant": "int8", "device": "cpu"} | other
    return Form(stage=stage, backend=backend, threads=threads, **fields)


def point(of: Form, batch: int, wall_s: float, cpu_s: float = 0.0, **other: Any) -> Point:
    """What a batch of that form took; every thread was busy all the time, where nothing else is said."""
    busy = cpu_s or wall_s * max(of.threads, 1)
    fields: dict[str, Any] = {"length": 256, "rounds": 3, "spread": 0.0} | other
    return Point(form=of, batch=batch, wall_s=wall_s, cpu_s=busy, **fields)


def table(
    points: Iterable[Point], pairs: Iterable[Pair] = (), memory: Mapping[Form, int] | int = 100 << 20
) -> Table:
    """A finished table of these points and pairs; `memory` in bytes, of every form or by form."""
    points = tuple(points)
    forms = dict.fromkeys(each.form for each in points)
    weights = tuple(
        Weight(form=each, memory_bytes=memory if isinstance(memory, int) else memory[each], load_s=1.0)
        for each in forms
    )
    return Table(
        fingerprint=FINGERPRINT,
        measured_at="2026-01-01T00:00:00Z",
        points=points,
        weights=weights,
        pairs=tuple(pairs),
        finished=STAGES,
        finished_pairs=tuple(combinations(sorted(STAGES), 2)),
    )


def wishes(stages: Iterable[str] = STAGES, **fields: Any) -> dict[str, Wishes]:
    """The same wishes for each stage."""
    given: dict[str, Any] = {"model": "m", "variants": ("int8",)} | fields
    return {name: Wishes(**given) for name in stages}


def limits(**fields: Any) -> Limits:
    """Two cores, 4 GiB and every way to lend cores, where nothing else is said."""
    given: dict[str, Any] = {"cores": 2, "memory_bytes": 4 << 30, "modes": MODES} | fields
    return Limits(**given)


def gateway() -> Table:
    """Two cores: prices of the default pipeline (seconds), generator with batches up to eight.

    Rerankers spread their batches over their threads.
    """
    points = []
    for threads, embed, rerank in ((1, 0.0022, 0.318), (2, 0.0018, 0.169)):
        points.append(point(form("retriever", threads=threads), 1, embed))
        for backend, factor in (("openvino", 1.0), ("onnx", 2.5)):
            of = form("reranker", backend, threads)
            points += [point(of, batch, batch * rerank * factor, lanes=threads) for batch in (1, 8)]
    for backend, threads, seconds in (
        ("openvino", 1, (1.16, 3.30, 6.06)),
        ("openvino", 2, (0.97, 2.15, 3.74)),
        ("llama_cpp", 1, (1.50, 6.44, 12.79)),
        ("llama_cpp", 2, (0.92, 3.23, 6.69)),
    ):
        points += [
            point(form("generator", backend, threads), batch, wall_s, first_s=wall_s / 3, new_tokens=64)
            for batch, wall_s in zip((1, 4, 8), seconds, strict=True)
        ]
    return table(points)
