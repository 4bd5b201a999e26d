"""`edgectl ladder`: what each rung of the quality ladder costs and is worth, on one's own documents."""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING, Any

import click

from edged.cli.durations import DURATION
from edged.cli.ladder_progress import STOPPED, UNBEGUN, shown
from edged.cli.output import visible
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import BadRequest

if TYPE_CHECKING:
    from edged.rungs.measure import Limits
    from edged.rungs.prepare import Prepared, Wanted
    from edged.rungs.record import Question, Record

BUDGET_S = 600.0
QUESTIONS, ANSWERS, CLIENTS = 64, 32, 4


@click.group(epilog=example("edgectl ladder measure --budget 5m", "edgectl ladder show"))
def ladder() -> None:
    """See what the rungs of the quality ladder cost and are worth."""


@ladder.command(
    epilog=example(
        "edgectl ladder measure --budget 5m",
        "edgectl ladder measure --rungs fewer-passages,no-rerank",
        "edgectl ladder measure --questions questions.jsonl",
    )
)
@click.option("--budget", type=DURATION, default=BUDGET_S, help="Stop after this time, e.g. 5m  [10m].")
@click.option("--rungs", type=TEXT, default="", metavar="NAME,...", help="Only these rungs  [all].")
@click.option(
    "--questions",
    "file",
    type=click.File(encoding="utf-8"),
    help="Your own questions, one JSON object a line: question, relevant (documents), answer.",
)
@click.option(
    "--count", type=click.IntRange(2, 10_000), default=QUESTIONS, help=f"Questions to make  [{QUESTIONS}]."
)
@click.option(
    "--answers",
    type=click.IntRange(2, 10_000),
    default=ANSWERS,
    help=f"How many of the questions are answered too  [{ANSWERS}].",
)
@click.option("--clients", type=click.IntRange(1, 64), default=CLIENTS, help=f"At a time  [{CLIENTS}].")
@click.option("--pipeline", type=TEXT, default="", help="Which pipeline answers  [rag].")
@click.option(
    "--made-by",
    type=click.Choice(["generator", "words"]),
    default="generator",
    help="Who makes questions; words of the documents are quicker  [generator].",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the questions that are made  [0].")
@click.option("--fresh", is_flag=True, help="Forget what was measured before.")
@click.option("--while-serving", is_flag=True, help="Measure beside other work; the figures get worse.")
@json_option
@with_session
def measure(
    session: Session,
    /,
    *,
    budget: float,
    rungs: str,
    file: IO[str] | None,
    answers: int,
    clients: int,
    while_serving: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure what each rung costs and is worth here, with questions about your own documents.

    The running daemon is pinned to one rung after the other and asked; at the end, and on Ctrl-C, the pin
    is what it was. Quality is whether the right passages are found (nDCG@10) and how much of the first
    rung's answers is still said; cost is CPU time, in proportion. Without --questions, questions are made
    of passages drawn from the library. A rerun goes on where this one stopped.
    """
    from edged.rungs.measure import Limits
    from edged.rungs.prepare import Wanted

    own = None if file is None else _read(session, file, asked["pipeline"])
    if not while_serving:
        _heed(session)
    wanted = Wanted(rungs=tuple(filter(None, rungs.split(","))), budget_s=budget, **asked)
    began_s = time.monotonic()
    begin = _prepare(session, wanted, own)
    for note in begin.notes:
        click.echo(f"note: {visible(note)}", err=True)
    hottest = session.config.governor.temperature.get("cpu")
    left_s = budget - (time.monotonic() - began_s)
    limits = Limits(budget_s=left_s, answers=answers, critical_c=hottest.critical_c if hottest else None)
    _run(session, begin, limits, clients)
    _print(session, as_json=as_json)


@ladder.command(epilog=example("edgectl ladder show", "edgectl ladder show --json"))
@json_option
@with_session
def show(session: Session, as_json: bool) -> None:
    """Print what each rung does, costs and is worth, and what is wrong with the order."""
    _print(session, as_json=as_json)


def _print(session: Session, *, as_json: bool) -> None:
    from edged.cli.ladder_table import print_ladder

    print_ladder(session.config, session.environment, as_json=as_json)


def _prepare(session: Session, wanted: Wanted, own: tuple[Question, ...] | None) -> Prepared:
    from edged.rungs.prepare import prepare

    with shown(UNBEGUN) as line:
        return prepare(session.config, session.environment, session.client, wanted, own, line.making)


def _read(session: Session, file: IO[str], pipeline: str) -> tuple[Question, ...]:
    from edged.rungs.asked import questions_in
    from edged.rungs.named import lacking_in

    try:
        return questions_in(file, file.name, lacking_in(session.config, pipeline))
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"{file.name} is not text: byte {error.start} is not valid UTF-8", param="questions"
        ) from error


def _heed(session: Session) -> None:
    from edged.rungs.quiet import PINS, check_quiet

    status, decisions = session.client.status(), session.admin.decisions(PINS)
    check_quiet(status.outstanding, status.governor, decisions, session.config.governor.climb_after_s)


def _run(session: Session, begin: Prepared, limits: Limits, clients: int) -> None:
    from edged.placement.storage import only_writer
    from edged.rungs import storage
    from edged.rungs.asking import Asker
    from edged.rungs.measure import Measurement
    from edged.rungs.taking import Taking

    path = storage.path_in(session.config.daemon.state_dir)
    pipeline = begin.record.fingerprint.pipeline
    asker = Asker(session.client, session.admin, pipeline, clients, embedder=begin.embedder)

    def keep(record: Record) -> None:
        storage.save(record, path)

    with only_writer(path), shown(STOPPED) as line:
        run = Measurement(session.config.governor.ladder, begin.record, asker, limits, keep, line.stand)
        with Taking(session.client, session.admin) as taking:
            run.run(taking, begin.rungs)
    if run.stopped:
        click.echo(f"note: stopped early: {run.stopped}", err=True)
