"""A plan as a table with its reasons, and all candidates of a stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from edged.cli.output import print_table, readable_bytes, readable_seconds, visible
from edged.placement.plan import label
from edged.placement.table import Choice, Form, Plan
from edged.placement.verdicts import Verdict

HEADINGS = (
    "STAGE",
    "DEVICE",
    "BACKEND",
    "VARIANT",
    "THREADS",
    "BATCH",
    "WORKERS",
    "RATE",
    "BUSY",
    "ALONE",
    "FULL BATCH",
    "CPU EACH",
    "MEMORY",
)
CANDIDATE_HEADINGS = ("", "FORM", "BATCH", "WORKERS", "RATE", "ALONE", "CPU EACH", "MEMORY", "WHY")
SIGNS = {"chosen": "*", "lost": "-", "dominated": "-", "ruled out": "x"}
FEW = 12
"""Losers of a stage that are shown to people; `--json` has all."""


def print_plan(plan: Plan) -> None:
    """Print what a plan says and what it promises."""
    bounds = "".join(f", {name} {value:g}" for name, value in plan.bounds.items())
    click.echo(f"plan {plan.id} for {plan.objective}{bounds}; cores are shared {plan.lease_mode}")
    click.echo()
    print_table(HEADINGS, [_row(name, choice) for name, choice in plan.choices.items()])
    click.echo()
    click.echo(_promise(plan))
    for line in _reasons(plan):
        click.echo(visible(line))
    for note in plan.notes:
        click.echo(f"note: {visible(note)}")


def _row(name: str, choice: Choice) -> tuple[str, ...]:
    form = choice.form
    return (
        name,
        form.device,
        form.backend,
        form.variant,
        str(form.threads or "-"),
        str(choice.batch),
        str(choice.workers),
        f"{choice.predicted_rate_per_s:.3g}/s",
        f"{choice.utilisation:.0%}",
        readable_seconds(choice.latency_s),
        readable_seconds(choice.loaded_latency_s),
        readable_seconds(choice.cpu_s),
        readable_bytes(choice.memory_bytes),
    )


def _promise(plan: Plan) -> str:
    return (
        f"predicted: {plan.predicted_rate_per_s:.3g} requests per second, bounded by {plan.bottleneck}; "
        f"{readable_seconds(plan.predicted_latency_s)} for one alone "
        f"(first token {readable_seconds(plan.predicted_first_token_s)}), "
        f"{readable_seconds(plan.predicted_loaded_latency_s)} in full batches; {_energy(plan)}; "
        f"{readable_bytes(plan.memory_bytes)} of memory"
    )


def _energy(plan: Plan) -> str:
    if plan.predicted_joules is not None:
        return f"{plan.predicted_joules:.3g} J each"
    return f"{plan.predicted_cpu_s:.3g} CPU seconds each"


def _reasons(plan: Plan) -> Iterable[str]:
    for name, choice in plan.choices.items():
        if choice.runner_up is None:
            yield f"{name}: {choice.why}"
        else:
            yield f"{name}: runner-up {label(choice.runner_up)}: {choice.why}"


def print_changes(changes: Sequence[str] | None) -> None:
    """Print what `--apply` would change; None: no daemon could be asked."""
    if changes is None:
        return
    click.echo()
    if not changes:
        click.echo("the daemon runs like that already")
        return
    click.echo("edgectl plan --apply would change:")
    for change in changes:
        click.echo(f"  {visible(change)}")


def print_candidates(stage: str, candidates: Sequence[Verdict]) -> None:
    """Print every candidate of a stage: the chosen one, those that lost, those that were ruled out."""
    ruled_out = [verdict for verdict in candidates if verdict.fate == "ruled out"]
    judged = [verdict for verdict in candidates if verdict.fate != "ruled out"]
    click.echo(f"{visible(stage)}: {len(judged)} candidates, {len(ruled_out)} ruled out")
    click.echo()
    print_table(CANDIDATE_HEADINGS, [_candidate(verdict) for verdict in (*judged[:FEW], *ruled_out)])
    if len(judged) > FEW:
        click.echo(f"note: {len(judged) - FEW} more lost by more; --json lists all", err=True)


def _candidate(verdict: Verdict) -> tuple[str, ...]:
    option = verdict.option
    prices = (
        (
            f"{option.rate_per_s:.3g}/s",
            readable_seconds(option.latency_s),
            readable_seconds(option.cpu_s),
            readable_bytes(option.memory_bytes),
        )
        if option
        else ("-",) * 4
    )
    return (
        SIGNS[verdict.fate],
        _form(verdict.form),
        str(verdict.batch or "any"),
        str(verdict.workers or "any"),
        *prices,
        "chosen" if verdict.fate == "chosen" else verdict.why,
    )


def _form(form: Form) -> str:
    return label(form)
