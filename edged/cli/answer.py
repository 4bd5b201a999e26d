"""How an answer looks in a terminal: streamed text, what it rests on, what it cost."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from edged.cli.output import readable_seconds, styled, visible, visible_text
from edged.replies import Cited, Delta, Final, Timing

Events = Generator[Delta | Final, None, None]
MAX_QUOTE_CHARACTERS = 160
WORTH_SAYING_S = 0.001
PEER = "peer:"
"""How the device of a timing begins that a peer worked for; its name follows."""


class Watch:
    """Takes the times of one answer as the user sees it."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: float | None = None

    def mark(self) -> None:
        """Note that text has come."""
        if self._first is None:
            self._first = time.monotonic()

    def line(self, answer: Final) -> str:
        """Say what each stage took, and how fast the text came."""
        total_s = time.monotonic() - self._started
        parts = [_spent(timing) for timing in answer.timings]
        if self._first is not None:
            parts.append(f"first token {readable_seconds(self._first - self._started)}")
        parts.append(f"total {readable_seconds(total_s)}")
        return "  ".join(parts + self._rate(answer))

    def _rate(self, answer: Final) -> list[str]:
        if self._first is None or answer.usage is None or answer.usage.completion_tokens <= 1:
            return []
        seconds = max(time.monotonic() - self._first, 1e-6)
        return [f"{(answer.usage.completion_tokens - 1) / seconds:.1f} tokens/s"]


def _spent(timing: Timing) -> str:
    """What one stage took, and which peer did it."""
    device = timing.device
    by = f" (by {visible(device.removeprefix(PEER))})" if device.startswith(PEER) else ""
    waited = f" (+{readable_seconds(timing.wait_s)} waiting)" if timing.wait_s >= WORTH_SAYING_S else ""
    return f"{timing.stage} {readable_seconds(timing.compute_s)}{by}{waited}"


def print_answer(events: Events) -> Final:
    """Print an answer as it comes, then its citations and its timing line; return it."""
    watch = Watch()
    with closing(events):
        for text, answer in _told(events, watch):
            click.echo(visible_text(text), nl=False)
            if answer is not None:
                click.echo()
                print_evidence(answer)
                click.echo(styled(watch.line(answer), dim=True), err=True)
                return answer
    raise AssertionError("an answer ends with a Final or an error")


def _told(events: Events, watch: Watch) -> Iterator[tuple[str, Final | None]]:
    """Yield each piece of text once: a whole answer repeats what was streamed."""
    streamed = False
    for event in events:
        if isinstance(event, Delta):
            streamed = True
            watch.mark()
            yield event.text, None
        else:
            yield ("" if streamed else event.text), event


def collect(events: Events) -> Final:
    """Take an answer in without printing it."""
    with closing(events):
        return next(event for event in events if isinstance(event, Final))


def print_evidence(answer: Final) -> None:
    """Print the numbered citations and what the reader should know about the answer."""
    if answer.citations:
        click.echo()
    for cited in answer.citations:
        click.echo(
            f"{styled(f'[{cited.number}]', bold=True)} {visible(place(cited))}{visible(_quoted(cited))}"
        )
    if answer.finish == "length":
        click.echo("note: cut at the limit of new tokens; raise it with --max-tokens", err=True)
    if answer.resumed:
        times = "once" if answer.resumed == 1 else f"{answer.resumed} times"
        click.echo(f"note: continued {times} by another worker", err=True)


def place(cited: Cited) -> str:
    """Say where a citation is, in a form that editors understand.

    >>> place(Cited(number=1, source="manual.md", first_line=12, last_line=18))
    'manual.md:12-18'
    """
    source = _from_here(cited.source)
    if cited.page:
        return f"{source} page {cited.page}"
    if not cited.first_line:
        return source
    last = f"-{cited.last_line}" if cited.last_line > cited.first_line else ""
    return f"{source}:{cited.first_line}{last}"


def _from_here(source: str) -> str:
    """Shorten a path below the working folder."""
    path, here = Path(source), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else source


def _quoted(cited: Cited) -> str:
    text = " ".join((cited.quote or cited.text).split())
    if len(text) > MAX_QUOTE_CHARACTERS:
        text = text[: MAX_QUOTE_CHARACTERS - 1].rstrip() + "…"
    return f' "{text}"' if text else ""


def fields_of(
    max_tokens: int | None, candidates: int | None, keep: int | None, priority: str | None = None
) -> dict[str, Any]:
    """Put what the user asked for into the request, and nothing else."""
    edged = {"candidates": candidates, "keep": keep, "priority": priority}
    edged = {key: value for key, value in edged.items() if value is not None}
    fields: dict[str, Any] = {"edged": edged} if edged else {}
    return fields | ({"max_tokens": max_tokens} if max_tokens is not None else {})
