"""Who passes a reranker by, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edged.cli.output import print_json, visible
from edged.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from edged.cli.session import Session
    from edged.report import BypassStatus, StageStatus

_MODES = {"on": "always"}
_WHO = {
    "nothing": "nobody passes it by",
    "benefit": "questions that gain little pass it by",
    "everything": "everybody passes it by",
}


def chosen(session: Session, name: str, mode: str | None) -> BypassStatus:
    """Choose a mode, or find out about the present one; what holds now."""
    if mode is not None:
        return session.admin.bypass_stage(name, _MODES.get(mode, mode))
    stages = {stage.name: stage for stage in session.client.status().stages}
    if name not in stages:
        raise NotFound(f"no stage {name!r}; there is: {', '.join(stages)}")
    found = stages[name].bypass
    if found is None:
        raise BadRequest(f"stage {name!r} is no reranker: nothing passes it by")
    return found


def show(name: str, bypass: BypassStatus, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        print_json(bypass)
        return
    for line in lines(name, bypass):
        click.echo(visible(line))


def lines(name: str, bypass: BypassStatus) -> list[str]:
    """Who passes by and why; what that saved and cost; from where on, and how that is known."""
    said = f"{name}: {_WHO[bypass.passing]} ({bypass.why})"
    if bypass.mode != bypass.configured:
        said += f"; configured: {bypass.configured}"
    share = bypass.bypassed / bypass.questions if bypass.questions else 0.0
    saved = (
        f"{name}: {bypass.bypassed} of {bypass.questions} rerankings saved ({share:.0%}), "
        f"for an expected {bypass.lost_points:.2f} points of nDCG@10"
    )
    who = "nobody" if bypass.from_margin is None else f"from margin {bypass.from_margin:.3g} on"
    known = f"learnt from {bypass.observations} questions of library generation {bypass.generation}"
    if bypass.calibration == "shipped":
        known = f"as shipped; {bypass.observations} questions of this library are not enough yet"
    return [said, saved, f"{name}: by benefit {who} ({known})"]


def remarkable(stage: StageStatus) -> list[str]:
    """What `edgectl status` says of a stage; nothing where nothing passes it by, or has."""
    bypass = stage.bypass
    if bypass is None or (bypass.passing == "nothing" and not bypass.bypassed):
        return []
    return lines(stage.name, bypass)[:2]
