"""How results look: tables for people, JSON for programs, nothing coloured where nobody looks."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.progress import Progress

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
STEP = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_IN_JSON = re.compile(r"[\x7f-\x9f]")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    encoded = msgspec.json.encode(value, enc_hook=str)
    document = msgspec.json.format(encoded, indent=2).decode()
    click.echo(_CONTROL_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", document))


def visible(text: str) -> str:
    r"""Write out what a terminal would obey: names come from whoever wrote the files.

    >>> print(visible("a\x1b[31m\nb"))
    a\x1b[31m\x0ab
    """
    return _CONTROL.sub(_written_out, text)


def visible_text(text: str) -> str:
    """Write out the same, except the line breaks and tabs of running text."""
    return _CONTROL_IN_TEXT.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns that line up; the last one may be as wide as it likes.

    Plain text: it greps well, and drawing it costs no start-up time.
    """
    table = [headings, *([visible(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for number, row in enumerate(table):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(styled(line, bold=True) if number == 0 else line)


def styled(text: str, **style: Any) -> str:
    """Style text for a terminal that wants colours; plain text otherwise (https://no-color.org)."""
    return click.style(text, **style) if colours() else text


def colours() -> bool:
    """Whether standard output is a terminal and $NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def readable_bytes(count: float) -> str:
    """Write a size for people.

    >>> readable_bytes(1536), readable_bytes(0)
    ('1.5 KiB', '0 B')
    """
    unit = 0
    while count >= STEP and unit < len(UNITS) - 1:
        count /= STEP
        unit += 1
    return f"{count:.1f} {UNITS[unit]}" if unit else f"{count:.0f} B"


def readable_seconds(seconds: float) -> str:
    """Write a duration for people.

    >>> readable_seconds(0.0042), readable_seconds(2.5), readable_seconds(93784)
    ('4.2 ms', '2.5 s', '26h 3m')
    """
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{seconds:.1f} s"


def progress_bar(*columns: Any) -> Progress:
    """Return a bar on standard error; it draws nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, no_color=bool(os.environ.get("NO_COLOR")))
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
