"""`--bound NAME=VALUE` of `edgectl plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from edged.cli.durations import DURATION

if TYPE_CHECKING:
    from edged.placement.aim import Objective


def _seconds(text: str) -> float:
    seconds: float = DURATION.convert(text, None, None)
    return seconds


BOUNDS: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "latency": ("latency_s", _seconds),
    "first_token": ("first_token_s", _seconds),
    "rate": ("rate_per_s", float),
    "energy": ("energy", float),
}
"""Name, field of `Aim`, and how its value is read."""


class _Bound(click.ParamType[tuple[str, float]]):
    """`latency=2s`, `first_token=0.5s`, `rate=1.5` (requests per second), `energy=20` (joules)."""

    name = "bound"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Return the field of `Aim` and its value."""
        name, _, text = str(value).partition("=")
        if name not in BOUNDS:
            self.fail(f"{value!r}: write one of {', '.join(f'{each}=...' for each in BOUNDS)}", param, ctx)
        field, read = BOUNDS[name]
        try:
            amount = read(text)
        except ValueError:
            self.fail(f"{value!r}: {text!r} is not a number", param, ctx)
        if not 0 < amount < float("inf"):
            self.fail(f"{value!r}: it has to be more than 0", param, ctx)
        return field, amount


BOUND = _Bound()


def aim_of(objective: Objective, bounds: Sequence[tuple[str, float]]) -> Any:
    """What a plan is made for."""
    from edged.placement.aim import Aim

    return Aim(objective=objective, **dict(bounds))
