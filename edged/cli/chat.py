"""`edgectl chat`: a conversation."""

from __future__ import annotations

import sys

import click

from edged.cli.output import styled, visible
from edged.cli.session import TEXT, Session, example, text_from, with_session
from edged.errors import EdgedError, Unreachable

WELCOME = "Ask away. /clear forgets the conversation, /quit leaves, Ctrl-C stops an answer."


@click.command(
    epilog=example("printf 'What is a lease?\\nHow long does it last?\\n' | edgectl chat"),
    short_help="Hold a conversation.",
)
@click.option(
    "--model",
    type=TEXT,
    default="rag",
    show_default=True,
    help="Pipeline or model; see `edgectl models list`.",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Most new tokens of an answer.")
@with_session
def chat(session: Session, model: str, max_tokens: int | None) -> None:
    """Hold a conversation: each line is a turn, and earlier turns are remembered.

    Ctrl-C stops the answer that is being given; at the prompt it leaves. Reads a pipe as well.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        _line_editing()
        click.echo(WELCOME, err=True)
    conversation: list[dict[str, str]] = []
    while (line := _next_line(interactive)) not in {None, "/quit", "/exit"}:
        if line == "/clear":
            conversation.clear()
        elif line:
            _turn(session, conversation, str(line), model, max_tokens, interactive)


def _line_editing() -> None:
    """Importing readline is what gives `input` a history; not every build of Python has it."""
    from contextlib import suppress
    from importlib import import_module

    with suppress(ImportError):
        import_module("readline")


def _next_line(interactive: bool) -> str | None:
    try:
        prompt = styled("> ", bold=True) if interactive else ""
        return text_from(lambda: input(prompt)).strip()
    except EOFError:
        if interactive:
            click.echo(err=True)
        return None


def _turn(
    session: Session,
    conversation: list[dict[str, str]],
    line: str,
    model: str,
    max_tokens: int | None,
    interactive: bool,
) -> None:
    """Ask and answer once; a turn that failed is forgotten, so that it can be asked again."""
    from edged.cli.answer import fields_of, print_answer

    conversation.append({"role": "user", "content": line})
    fields = fields_of(max_tokens, None, None)
    try:
        answer = print_answer(session.client.chat(conversation, model=model, **fields))
    except KeyboardInterrupt:
        conversation.pop()
        click.echo("\n(stopped)", err=True)
    except EdgedError as error:
        conversation.pop()
        if not interactive or isinstance(error, Unreachable):
            raise
        click.echo(f"error [{error.code}]: {visible(error.message)}", err=True)
    else:
        conversation.append({"role": "assistant", "content": answer.text})
