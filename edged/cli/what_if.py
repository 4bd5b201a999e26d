"""`edgectl plan --what-if`: what a placement would do on other cores, without a device, under a load."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from edged.cli.durations import DURATION
from edged.cli.output import print_json, print_table, readable_seconds, visible
from edged.plurals import counted

if TYPE_CHECKING:
    from edged.config import Config
    from edged.placement.simulate import Load, Machine, Prediction
    from edged.placement.table import Plan, Table

F = TypeVar("F", bound=Callable[..., Any])
CLIENTS, DURATION_S = 8, 300.0
"""Of the load that is foreseen when none is named."""
HEADINGS = ("STAGE", "BUSY", "MEAN BATCH", "WAIT", "COMPUTE")


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks of the simulator."""

    what_if: bool = False
    cores: int | None = None
    clients: int | None = None
    rate: float | None = None
    duration: float | None = None
    new_tokens: int | None = None
    pipeline: str | None = None

    @property
    def named(self) -> list[str]:
        """Options that mean something with `--what-if` only and were given."""
        fields = msgspec.structs.asdict(self).items()
        return [
            f"--{name.replace('_', '-')}" for name, value in fields if value is not None and name != "what_if"
        ]


def what_if_options(command: F) -> F:
    """Add `--what-if` and its load and machine to `edgectl plan`."""
    options = (
        click.option("--what-if", is_flag=True, help="Simulate the plan under a load; changes nothing."),
        click.option("--cores", type=click.IntRange(1, 1024), help="What if: so many CPU cores."),
        click.option("--clients", type=click.IntRange(1, 4096), help=f"What if: a closed loop  [{CLIENTS}]."),
        click.option(
            "--rate", type=click.FloatRange(0, min_open=True), help="What if: arrivals at random, per second."
        ),
        click.option("--duration", type=DURATION, help="What if: how much virtual time  [5m]."),
        click.option("--new-tokens", type=click.IntRange(1, 100_000), help="What if: length of the answers."),
        click.option("--pipeline", metavar="NAME", help="What if: which pipeline is asked  [the first]."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def taken(options: dict[str, Any], *, changes: bool) -> WhatIf:
    """Take the options of `what_if_options` out of a command's; `UsageError` where they contradict.

    `changes`: the command is to do something else than show a plan.
    """
    names = WhatIf.__struct_fields__
    asked = msgspec.convert({name: options.pop(name) for name in names if name in options}, WhatIf)
    if asked.named and not asked.what_if:
        raise click.UsageError(f"{asked.named[0]} describes an imagined machine or load: add --what-if")
    if asked.what_if and changes:
        raise click.UsageError("--what-if only imagines; leave --apply, --clear and --explain out")
    if asked.clients is not None and asked.rate is not None:
        raise click.UsageError("either --clients (each asks again when it is answered) or --rate, not both")
    return asked


def show_what_if(config: Config, plan: Plan, table: Table, asked: WhatIf, *, as_json: bool) -> None:
    """Simulate a plan and print what clients would see."""
    from edged.placement.simulate import simulate

    machine, load = machine_of(config, asked, table), load_of(asked, route_of(config, plan, asked.pipeline))
    found = simulate(plan, table, machine, load)
    if as_json:
        print_json({"plan": plan, "machine": machine, "load": load, "prediction": found})
        return
    _print(plan, machine, load, found)


def machine_of(config: Config, asked: WhatIf, table: Table) -> Machine:
    """The imagined machine: that of the calibration with what the command line says otherwise."""
    from edged.placement.simulate import Machine

    return Machine(
        cores=asked.cores or config.placement.cores or table.fingerprint.cores,
        slots=config.queue.slots,
        max_wait_s={name: stage.max_wait_ms / 1000 for name, stage in config.stages.items()},
        target_s={name: stage.target_ms / 1000 for name, stage in config.stages.items()},
    )


def route_of(config: Config, plan: Plan, name: str | None) -> tuple[str, ...]:
    """The stages of the pipeline that is asked; of the first whose stages all run where none is named."""
    running = {
        each: pipeline.stages
        for each, pipeline in config.pipelines.items()
        if plan.choices.keys() >= set(pipeline.stages)
    }
    if name is None:
        return next(iter(running.values()), tuple(plan.choices))
    if name not in running:
        known = ", ".join(running) or "none"
        raise click.UsageError(f"no pipeline {name!r} runs by this plan; those that do: {known}")
    return running[name]


def load_of(asked: WhatIf, route: tuple[str, ...]) -> Load:
    """The imagined load."""
    from edged.placement.simulate import Load

    return Load(
        clients=0 if asked.rate else asked.clients or CLIENTS,
        rate_per_s=asked.rate or 0.0,
        duration_s=asked.duration or DURATION_S,
        route=route,
        new_tokens=(asked.new_tokens,) if asked.new_tokens else (),
    )


def _print(plan: Plan, machine: Machine, load: Load, found: Prediction) -> None:
    who = counted(load.clients, "client") if load.clients else f"{load.rate_per_s:g} requests per second"
    click.echo(f"plan {plan.id} on {counted(machine.cores, 'core')} under {who}, simulated:")
    click.echo()
    print_table(HEADINGS, [_row(name, found) for name in found.stages])
    click.echo()
    low, high = found.throughput_spread
    click.echo(
        f"throughput   {found.throughput_per_s:.3g}/s  ({low:.3g} to {high:.3g} over {load.seeds} runs)"
    )
    click.echo(f"answer       {_quantiles(found.latency)}")
    click.echo(f"first token  {_quantiles(found.first_token)}")
    click.echo(f"cores busy   {found.busy_cores:.2f} of {machine.cores}")
    if found.refused:
        click.echo(f"refused      {found.refused:.1%}: every slot is taken ([queue] slots = {machine.slots})")
    click.echo(_verdict(found))
    for note in plan.notes:
        click.echo(f"note: {visible(note)}")


def _row(name: str, found: Prediction) -> tuple[str, ...]:
    stage = found.stages[name]
    return (
        name,
        f"{stage.utilisation:.0%}",
        f"{stage.mean_batch:.1f}",
        readable_seconds(stage.wait_s),
        readable_seconds(stage.compute_s),
    )


def _quantiles(of: Any) -> str:
    if of.p50 is None:
        return "nothing was answered"
    named = (("p50", of.p50), ("p95", of.p95), ("p99", of.p99))
    return "  ".join(f"{name} {readable_seconds(value)}" for name, value in named)


def _verdict(found: Prediction) -> str:
    if not found.bottleneck:
        return "no stage is busy all the time: the load is the limit"
    return f"{visible(found.bottleneck)} is the bottleneck"
