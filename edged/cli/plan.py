"""`edgectl plan`: which form of each stage the calibration says is best, and why; works without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click
import msgspec

from edged.cli.bounds import BOUND, aim_of
from edged.cli.output import print_json, visible
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.cli.what_if import show_what_if, taken, what_if_options

if TYPE_CHECKING:
    from edged.placement.aim import Aim
    from edged.placement.drafts import Draft
    from edged.placement.table import Plan

OBJECTIVES = ("throughput", "latency", "energy")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks of a plan."""

    objective: Literal["throughput", "latency", "energy"] | None
    bounds: tuple[tuple[str, float], ...]
    exact: bool
    quality_loss: bool
    excluded: tuple[str, ...]
    stale: bool
    cores: int | None = None


@click.command(
    epilog=example(
        "edgectl plan",
        "edgectl plan --bound latency=2s --apply",
        "edgectl plan --explain generator",
        "edgectl plan --what-if --clients 32",
    )
)
@click.option("--objective", type=click.Choice(OBJECTIVES), help="What to make best  [placement.objective].")
@click.option(
    "--bound",
    "bounds",
    type=BOUND,
    multiple=True,
    metavar="NAME=VALUE",
    help="latency=2s, first_token=0.5s, rate=1.5 or energy=20; repeatable.",
)
@click.option("--exact/--no-exact", help="Only forms that always answer equal questions alike  [no-exact].")
@click.option("--allow-quality-loss", "quality_loss", is_flag=True, help="Also variants below the default.")
@click.option(
    "--without", "excluded", type=TEXT, multiple=True, metavar="DEVICE", help="Not this device; repeatable."
)
@click.option("--stale", is_flag=True, help="Plan with figures that no longer hold, too.")
@click.option("--explain", type=TEXT, metavar="STAGE", help="Every candidate of a stage, and why it lost.")
@click.option("--apply", "act", flag_value="apply", help="Change the running daemon; no request is lost.")
@click.option("--clear", "act", flag_value="clear", help="Back to the defaults, in the running daemon.")
@what_if_options
@json_option
@with_session
def plan(session: Session, /, explain: str | None, act: str | None, as_json: bool, **wanted: object) -> None:
    """Choose device, backend, variant, threads, batch and workers of every stage.

    The choice is the best of all that was measured by `edgectl calibrate`, within the limits of
    [placement]. What the configuration says about a stage is never changed. With --apply the daemon
    replaces its workers stage by stage, and starts like that from then on.
    """
    imagined = taken(wanted, changes=bool(act) or explain is not None)
    if explain is not None and act:
        raise click.UsageError("--explain changes nothing; leave --apply and --clear out")
    if act == "clear":
        _clear(session, as_json=as_json)
        return
    asked = msgspec.convert({**wanted, "cores": imagined.cores}, Wanted)
    prepared = drafted(session, asked)
    aim = aim_of(asked.objective or session.config.placement.objective, asked.bounds)
    made = prepared.plan(aim)
    if imagined.what_if:
        show_what_if(session.config, made, prepared.table, imagined, as_json=as_json)
    elif explain is not None:
        _explain(prepared, made, explain, aim, as_json=as_json)
    elif act:
        _apply(session, made, as_json=as_json)
    else:
        _show(session, made, as_json=as_json)


def drafted(session: Session, asked: Wanted) -> Draft:
    """The planner over the calibration of the configured state folder; see `drafts.draft`."""
    from edged.placement import survey
    from edged.placement.drafts import Leave, draft

    leave = Leave(
        exact=asked.exact,
        quality_loss=asked.quality_loss,
        excluded=frozenset(asked.excluded),
        stale=asked.stale,
        cores=asked.cores,
    )
    return draft(session.config, survey.open_store(session.config, session.environment), leave)


def _show(session: Session, made: Plan, *, as_json: bool) -> None:
    from edged.cli.plan_apply import foreseen
    from edged.cli.plan_table import print_changes, print_plan

    changes = foreseen(session.admin, made)
    if as_json:
        print_json({"plan": made, "changes": changes})
        return
    print_plan(made)
    print_changes(changes)


def _apply(session: Session, made: Plan, *, as_json: bool) -> None:
    from edged.cli.plan_apply import apply
    from edged.cli.plan_table import print_plan

    done = apply(session.admin, made)
    if as_json:
        print_json({"plan": made, "changes": done.changes, "unstored": done.unstored})
        return
    print_plan(made)
    click.echo(f"plan {made.id} is in force" + ("" if done.changes else "; nothing had to change"))
    _warn(done.unstored)


def _clear(session: Session, *, as_json: bool) -> None:
    from edged.cli.plan_apply import apply

    done = apply(session.admin, None)
    if as_json:
        print_json({"plan": None, "changes": done.changes, "unstored": done.unstored})
        return
    click.echo("the stages run by the configuration and the defaults; no plan is in force")
    _warn(done.unstored)


def _warn(unstored: str) -> None:
    if unstored:
        click.echo(f"warning: {visible(unstored)}", err=True)


def _explain(prepared: Draft, made: Plan, stage: str, aim: Aim, *, as_json: bool) -> None:
    verdicts = prepared.planner.explain(stage, made, aim)
    if as_json:
        print_json({"stage": stage, "candidates": verdicts})
        return
    from edged.cli.plan_table import print_candidates

    print_candidates(stage, verdicts)
