"""`edgectl status`: how the daemon and its stages are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from edged.cli import heat
from edged.cli.governor_words import headline
from edged.cli.layer_words import pipelines
from edged.cli.output import print_json, print_table, readable_bytes, readable_seconds, styled, visible
from edged.cli.peers import peer_line
from edged.cli.session import Session, example, json_option, with_session
from edged.cli.stage_bypass import remarkable
from edged.errors import StageUnavailable, Unreachable

if TYPE_CHECKING:
    from edged.report import PlanStatus, StageStatus, Status

POLL_S = 0.1
HEADINGS = (
    "STAGE",
    "STATE",
    "DEVICE",
    "MODEL",
    "PID",
    "QUEUED",
    "BATCH",
    "BUSY",
    "IN FLIGHT",
    "SLOTS",
    "RATE",
    "COMPUTE",
    "MEMORY",
)
_COLOURS = {"ready": "green", "degraded": "yellow", "starting": "yellow", "failed": "red"}


@click.command(
    epilog=example("edgectl status --json | jq '.stages[].rate_per_s'"),
    short_help="Show the daemon and its stages.",
)
@click.option(
    "--wait",
    "wait_s",
    type=float,
    metavar="SECONDS",
    help="Wait until every stage and all its workers are ready; exit 1 if not.",
)
@json_option
@with_session
def status(session: Session, wait_s: float | None, as_json: bool) -> None:
    """Show the daemon and its stages."""
    current = session.client.status() if wait_s is None else _ready_within(session, wait_s)
    if as_json:
        print_json(current)
        return
    click.echo(_headline(current))
    click.echo(_counts(current))
    if current.plan is not None:
        click.echo(_plan(current.plan))
    if current.governor is not None and (current.governor.rung or current.governor.pin):
        click.echo(headline(current.governor))
    if current.peers is not None:
        click.echo(peer_line(current.peers))
    if current.senses is not None:
        for line in heat.lines(current.senses):
            click.echo(line)
    click.echo()
    print_table(HEADINGS, [_row(stage) for stage in current.stages])
    for stage in current.stages:
        for line in pipelines(stage):
            click.echo(line)
    _print_remarks(current)


def _ready_within(session: Session, wait_s: float) -> Status:
    """Poll until every worker of every stage is ready; `StageUnavailable` says which are not."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            current = session.client.status()
        except Unreachable:
            if time.monotonic() > deadline:
                raise
        else:
            unready = list(_unready(current))
            if current.state == "ready" and not unready:
                return current
            if time.monotonic() > deadline:
                waiting = ", ".join(unready) or f"the daemon is {current.state}"
                raise StageUnavailable(f"not ready after {wait_s:g} s: {waiting}; see `edgectl logs`")
        time.sleep(POLL_S)


def _unready(current: Status) -> Iterator[str]:
    """Name the stages that are not ready, or that a worker is still joining or leaving."""
    for stage in current.stages:
        changing = [f"a worker is {worker.state}" for worker in stage.workers if worker.state != "ready"]
        states = changing if stage.state == "ready" else [stage.state]
        if states and stage.state != "off":
            yield f"{stage.name} ({states[0]})"


def _headline(current: Status) -> str:
    state = styled(current.state, fg=_COLOURS.get(current.state), bold=True)
    config = current.config_path or "built-in configuration"
    uptime = readable_seconds(current.uptime_s)
    return f"edged {current.version}  {state}  pid {current.pid}  up {uptime}  {config}"


def _counts(current: Status) -> str:
    hottest = "" if current.temperature_c is None else f"  {current.temperature_c:.0f} °C"
    refused = sum(current.rejected.values())
    return (
        f"accepted {current.accepted}  completed {current.completed}  rejected {refused}  "
        f"outstanding {current.outstanding}  entry {current.entry_slots_used}/{current.entry_slots} slots  "
        f"memory {readable_bytes(current.memory_bytes)}  load {current.load_average:.2f}{hottest}"
    )


def _plan(plan: PlanStatus) -> str:
    observed = plan.observed_rate_per_s
    seen = "not saturated yet" if observed is None else f"{observed:.3g}/s observed at saturation"
    return (
        f"plan {plan.id} for {plan.objective}  predicted {plan.predicted_rate_per_s:.3g}/s, bounded by "
        f"{visible(plan.bottleneck)}; {seen}"
    )


def _row(stage: StageStatus) -> tuple[str, ...]:
    return (
        stage.name,
        stage.state,
        f"{stage.backend} {stage.device}".strip(),
        f"{stage.model} {stage.variant}".strip(),
        ",".join(str(worker.pid) for worker in stage.workers) or "-",
        _queued(stage),
        str(stage.batch_limit or "-"),
        f"{stage.utilisation:.0%}",
        str(stage.in_flight),
        f"{stage.slots_used}/{stage.slots}",
        f"{stage.rate_per_s:.1f}/s",
        readable_seconds(stage.mean_compute_s),
        readable_bytes(sum(worker.memory_bytes for worker in stage.workers)),
    )


def _queued(stage: StageStatus) -> str:
    """All that wait, and how many of them are batch work where some are."""
    behind = stage.queued_by_priority.get("batch", 0)
    return f"{stage.queued} ({behind} batch)" if behind else str(stage.queued)


def _print_remarks(current: Status) -> None:
    remarks = [f"{stage.name}: {stage.reason}" for stage in current.stages if stage.reason]
    remarks += [
        f"{stage.name}: batches of at most {stage.batch_limit}: {stage.batch_reason}"
        for stage in current.stages
        if stage.batch_reason and not stage.batch_reason.startswith("max_batch")
    ]
    remarks += [line for stage in current.stages for line in remarkable(stage)]
    remarks += [f"refused {code}: {count}" for code, count in sorted(current.rejected.items()) if count]
    remarks += [note for note in (current.temperature_note, *current.notes) if note]
    if remarks:
        click.echo()
    for remark in remarks:
        click.echo(f"note: {visible(remark)}")
