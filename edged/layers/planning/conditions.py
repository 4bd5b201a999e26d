"""Whether measured costs say anything about what is planned. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from edged.errors import ConfigError
from edged.layers.planning.costs import Conditions, MeasuredCosts
from edged.layers.planning.partition import Candidate
from edged.layers.share import Architecture, DType

LIKE = {"dtype": "dtype", "micro_batch": "micro-batch", "context_tokens": "context-tokens"}
"""What has to be alike, and the option that makes it so."""


UNKNOWN = (
    "the costs do not say what they were measured for, so that nothing can be compared; "
    "`edgectl layers measure --save` writes it down"
)


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What costs are wanted for."""

    model: str = ""
    architecture: Architecture | None = None
    """None where only the number of layers is known."""
    dtype: DType | None = None
    micro_batch: int
    context_tokens: int
    candidates: Sequence[Candidate] = ()
    """Devices with their names; none where nothing is known of them."""


def doubts(costs: MeasuredCosts, planned: Planned) -> tuple[str, ...]:
    """Say in what the measurement differs from the plan; `ConfigError` where it is of another model."""
    measured = costs.conditions
    if measured is None:
        return (UNKNOWN,)
    if planned.architecture is None:
        return (f"the costs are those of {measured.model}; whether they hold here is not known",)
    if planned.architecture != measured.architecture:
        raise ConfigError(
            f"the costs were measured for {measured.model}, which has other layers than {planned.model}; "
            f"measure this one: edgectl layers measure --model {planned.model} --save FILE",
            param="costs",
        )
    return (*_unlike(measured, planned), *_elsewhere(measured, planned.candidates))


def _unlike(measured: Conditions, planned: Planned) -> Iterator[str]:
    for name, option in LIKE.items():
        then, now = getattr(measured, name), getattr(planned, name)
        if then != now:
            yield (
                f"the costs were measured with {name} = {then}, and {now} is planned; measure with "
                f"--{option} {now}, or plan with --{option} {then}"
            )


def _elsewhere(measured: Conditions, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Speeds are relative to the device that was measured."""
    for each in candidates:
        alike = _kind(each.id) == _kind(measured.device)
        if each.speed == 1 and not alike:
            yield (
                f"{each.id} is planned as if it were as fast as {measured.device}, where the costs were "
                f"measured; write {each.id}=SPEED"
            )
        elif each.speed != 1 and each.id == measured.device:
            yield (
                f"{each.id} is planned with speed {each.speed:g}, and the costs were measured there, at "
                "speed 1; leave its speed out"
            )


def _kind(device: str) -> str:
    return device.partition(":")[0]
