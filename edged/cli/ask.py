"""`edgectl ask`: one question, one answer."""

from __future__ import annotations

import sys

import click

from edged.cli.output import print_json
from edged.cli.session import TEXT, Session, example, json_option, text_from, with_session


@click.command(
    epilog=example('edgectl ask "How do I reset the gateway?" --max-tokens 200'),
    short_help="Ask one question.",
)
@click.argument("question", required=False, type=TEXT)
@click.option(
    "--model",
    type=TEXT,
    default="rag",
    show_default=True,
    help="Pipeline or model; see `edgectl models list`.",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Most new tokens of the answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always takes the likeliest token.")
@click.option("--top", "candidates", type=click.IntRange(1, 1000), help="Passages to fetch.")
@click.option("--keep", type=click.IntRange(1, 100), help="Passages to keep for the answer.")
@click.option(
    "--priority", type=click.Choice(["interactive", "batch"]), help="`batch` lets interactive work go first."
)
@click.option(
    "--deadline-ms",
    type=click.IntRange(1, 86_400_000),
    help="Be refused at once where the answer would come later than this.",
)
@click.option("--no-stream", is_flag=True, help="Print the answer when it is whole.")
@json_option
@with_session
def ask(  # noqa: PLR0917 - one argument per option, passed by name
    session: Session,
    question: str | None,
    model: str,
    max_tokens: int | None,
    temperature: float | None,
    candidates: int | None,
    keep: int | None,
    priority: str | None,
    deadline_ms: int | None,
    no_stream: bool,
    as_json: bool,
) -> None:
    """Ask one QUESTION; without one, it is read from standard input.

    The answer goes to standard output, citations included; timings go to standard error.
    """
    from edged.cli.answer import collect, fields_of, print_answer

    fields = fields_of(max_tokens, candidates, keep, priority)
    if deadline_ms is not None:
        fields["deadline_ms"] = deadline_ms
    if temperature is not None:
        fields["temperature"] = temperature
    messages = [{"role": "user", "content": question or _from_input()}]
    events = session.client.chat(messages, model=model, stream=not (no_stream or as_json), **fields)
    if as_json:
        print_json(collect(events))
    else:
        print_answer(events)


def _from_input() -> str:
    text = "" if sys.stdin.isatty() else text_from(sys.stdin.read).strip()
    if not text:
        raise click.UsageError("give a QUESTION, or pipe one in")
    return text
