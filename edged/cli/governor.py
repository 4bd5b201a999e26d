"""`edgectl governor`: when quality is traded for heat, load and memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click
import msgspec

from edged.cli.durations import DURATION
from edged.cli.output import print_json, print_table, progress_bar, readable_seconds, visible
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import BadRequest, ConfigError

if TYPE_CHECKING:
    from edged.config.tables import Governor
    from edged.governor.events import Command
    from edged.governor.plant import Scenario
    from edged.governor.simulate import Outcome, Rehearsal
    from edged.report import GovernorStatus

PLANTS = ("cabinet-45c", "cabinet-45c-overload", "cabinet-45c-sensor", "office-25c")
"""Names of `edged.governor.plant.SCENARIOS`, which is imported when one is used."""
DECISIONS = ("TIME", "WHAT", "WHY")
OUTCOMES = ("GOVERNOR", "ANSWERS", "OF ALL", "QUALITY", "ABOVE LIMIT", "PEAK", "CHANGES", "AN HOUR")
NAMES = {
    "ladder": "edged's ladder",
    "pause": "pause only",
    "pause-close": "pause only, 5 °C apart",
    "none": "none",
}


@click.group(
    epilog=example(
        "edgectl governor show",
        "edgectl governor pin fewer-passages",
        "edgectl governor simulate --plant cabinet-45c",
    )
)
def governor() -> None:
    """See and steer what heat, load and memory make the daemon do."""


@governor.command(epilog=example("edgectl governor show --json | jq .name"))
@json_option
@with_session
def show(session: Session, /, *, as_json: bool) -> None:
    """Show the rung in force, why, and what each rung does."""
    from edged.cli.governor_words import print_standing

    found = session.admin.governor()
    if as_json:
        print_json(found)
    else:
        print_standing(found)


@governor.command(epilog=example("edgectl governor pin no-rerank", "edgectl governor auto"))
@click.argument("rung", type=TEXT)
@json_option
@with_session
def pin(session: Session, /, *, rung: str, as_json: bool) -> None:
    """Stay on a RUNG, whatever the readings say, until `auto` or the daemon's next start."""
    _print_outcome(session.admin.pin_rung(rung), as_json=as_json)


@governor.command(epilog=example("edgectl governor auto"))
@json_option
@with_session
def auto(session: Session, /, *, as_json: bool) -> None:
    """Leave the rung to the readings again."""
    from edged.cli.governor_words import ahead

    found = session.admin.release_rung()
    more = ""
    with suppress(ConfigError):  # it is done already
        more = ahead(found, session.config.governor.climb_after_s)
    _print_outcome(found, more, as_json=as_json)


def _print_outcome(found: GovernorStatus, more: str = "", *, as_json: bool) -> None:
    from edged.cli.governor_words import headline

    if as_json:
        print_json(found)
    else:
        click.echo(headline(found) + more)


@governor.command(epilog=example("edgectl governor history -n 50", "edgectl governor history --json"))
@click.option(
    "-n", "--count", type=click.IntRange(1, 1000), default=20, show_default=True, help="Newest rows."
)
@json_option
@with_session
def history(session: Session, /, *, count: int, as_json: bool) -> None:
    """List what was decided and why, over restarts of the daemon too."""
    from edged.cli.governor_words import print_history

    found = session.admin.decisions(count)
    if as_json:
        print_json({"decisions": found})
    else:
        print_history(found)


@governor.command(
    epilog=example(
        "edgectl governor simulate readings.csv",
        "edgectl governor simulate --plant cabinet-45c --offered 1.2",
        "edgectl --set governor.floor=no-rerank governor simulate --plant cabinet-45c --json",
    )
)
@click.argument("trace", type=click.File(encoding="utf-8"), required=False)
@click.option("--plant", type=click.Choice(PLANTS), help="A simulated box instead of a trace.")
@click.option(
    "--offered", type=click.FloatRange(0, 100), help="Plant: requests, by what it can answer at most."
)
@click.option("--duration", type=DURATION, help="Plant: how much virtual time  [4h].")
@click.option("--seed", type=click.IntRange(0), help="Plant: of noise and waves of requests  [1].")
@click.option("--peer/--no-peer", help="A peer takes over when the ladder says so  [no-peer].")
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), help="Plant: write its readings as a trace."
)
@json_option
@with_session
def simulate(
    session: Session,
    /,
    *,
    trace: IO[str] | None,
    plant: str | None,
    offered: float | None,
    duration: float | None,
    seed: int | None,
    peer: bool,
    save: Path | None,
    as_json: bool,
) -> None:
    """Show what the configured governor does with a TRACE of readings, or in a simulated box.

    A trace has one sample a line, as CSV with the columns at_s, busy, load, memory, stall and one for each
    device (cpu, igpu, ...), or as JSON. It is replayed as it is: what the governor does cannot cool it. A
    simulated box feels what is done, and is compared with governors that only pause. Nothing is changed.
    """
    changed = {"offered": offered, "duration_s": duration, "seed": seed}
    asked = {name: value for name, value in changed.items() if value is not None}
    missing = [] if peer else [rung.name for rung in session.config.governor.ladder if rung.peer]
    if (trace is None) == (plant is None):
        raise click.UsageError("give either a TRACE (- for standard input) or --plant NAME")
    if plant is not None:
        _rehearse(session, _scenario(plant, asked), missing, save, as_json=as_json)
    elif trace is not None and not asked and save is None:
        _replay(session, trace, missing, as_json=as_json)
    else:
        raise click.UsageError("--offered, --duration, --seed and --save belong to --plant")


def _scenario(name: str, asked: dict[str, float]) -> Scenario:
    from edged.governor.plant import SCENARIOS

    return msgspec.structs.replace(next(each for each in SCENARIOS if each.name == name), **asked)


def _replay(session: Session, trace: IO[str], missing: Sequence[str], *, as_json: bool) -> None:
    from edged.governor.bands import policy_of
    from edged.governor.ladder import without
    from edged.governor.trace import judged, read_lines, replay

    rules = session.config.governor
    policy = policy_of(rules)
    try:
        events = [*without(policy, missing), *judged(read_lines(trace, trace.name), rules.horizon_s)]
    except UnicodeDecodeError as error:
        raise BadRequest(f"{trace.name} is not text: byte {error.start} is not valid UTF-8") from error
    found = replay(policy, events)
    if as_json:
        print_json(found)
        return
    click.echo(f"{visible(trace.name)}: {found.samples} samples in {readable_seconds(found.duration_s)}")
    _print_decisions(found.commands)
    _print_rungs(found.on_rung_s, found.duration_s)
    click.echo(f"changes: {found.changes}, {found.changes_per_hour:.1f} an hour")


def _rehearse(
    session: Session, scenario: Scenario, missing: Sequence[str], save: Path | None, *, as_json: bool
) -> None:
    from edged.governor.simulate import rehearse
    from edged.rungs.known import generators_of

    known, generators = _known(session), generators_of(session.config)
    with progress_bar() as bar:
        task = bar.add_task(scenario.name, total=1.0)
        found = rehearse(known, scenario, missing, lambda share: bar.advance(task, share), generators)
    if save is not None:
        _save(found, save)
    if as_json:
        print_json(msgspec.structs.replace(found, trace=()))
    else:
        _print_rehearsal(found)


def _known(session: Session) -> Governor:
    """The configured governor with what `ladder measure` has found, as far as that still holds."""
    from edged.rungs.known import governor_with, known

    found = known(session.config, session.environment)
    for reason in found.stale:
        click.echo(f"note: what was measured of the ladder is stale: {visible(reason)}", err=True)
    return governor_with(session.config, found)


def _save(found: Rehearsal, path: Path) -> None:
    from edged.governor.trace import write_lines

    try:
        path.write_text("\n".join(write_lines(found.trace)) + "\n")
    except OSError as error:
        raise BadRequest(f"cannot write {path}: {error.strerror}") from error


def _print_rehearsal(found: Rehearsal) -> None:
    scenario = found.scenario
    click.echo(f"{scenario.name}: {scenario.what}; {readable_seconds(scenario.duration_s)}, simulated")
    _print_decisions(found.commands)
    _print_rungs(found.outcomes["ladder"].on_rung_s, scenario.duration_s)
    print_table(OUTCOMES, [_row(NAMES[kind], outcome) for kind, outcome in found.outcomes.items()])
    click.echo()
    click.echo(f"limit: {found.limit_c:g} °C (governor.temperature.cpu.critical_c)")
    click.echo(f"answers, in proportion to pause only: {found.compared_with_pause:.2f}")
    click.echo(_sources(found))


def _sources(found: Rehearsal) -> str:
    """Say which figures were measured."""
    guessed = [effect.name for effect in found.effects[1:] if effect.estimated]
    if not guessed:
        return "work and quality of all rungs: as measured by edgectl ladder measure, or as configured"
    names = "all rungs" if len(guessed) == len(found.effects) - 1 else ", ".join(guessed)
    why = "since governor.ladder has no cost and quality of them; edgectl ladder measure finds them"
    return f"work and quality of {names}: estimated, {why}"


def _row(name: str, outcome: Outcome) -> tuple[str, ...]:
    return (
        name,
        f"{outcome.answers:.0f}",
        f"{outcome.answered_share:.0%}",
        f"{outcome.quality:.3f}",
        f"{outcome.above_limit_s:.0f} s",
        f"{outcome.peak_c:.1f} °C",
        str(outcome.changes),
        f"{outcome.changes_per_hour:.1f}",
    )


def _print_decisions(commands: Sequence[Command]) -> None:
    click.echo()
    if commands:
        print_table(DECISIONS, [_decision(command) for command in commands])
    else:
        click.echo("nothing had to change")
    click.echo()


def _decision(command: Command) -> tuple[str, str, str]:
    from edged.governor.events import GoTo
    from edged.governor.words import because

    minutes, seconds = divmod(int(command.at_s), 60)
    time = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    if isinstance(command, GoTo):
        arrow = "down to" if command.rung > command.before else "up to"
        return time, f"{arrow} {command.name}", because(command.cause)
    return time, command.what, command.why or "known again"


def _print_rungs(on_rung_s: dict[str, float], duration_s: float) -> None:
    rows = [
        (name, readable_seconds(spent_s), f"{spent_s / duration_s:.0%}")
        for name, spent_s in on_rung_s.items()
        if duration_s
    ]
    if rows:
        print_table(("RUNG", "TIME", "SHARE"), rows)
        click.echo()
