"""`edgectl logs`: the daemon's newest log records."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from edged.cli.output import print_json
from edged.cli.session import Session, example, json_option, with_session
from edged.errors import Unreachable

POLL_S = 0.5
MOST = 1000


@click.command(epilog=example("edgectl logs -n 200 | grep generator"))
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(1, MOST), help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing as records come; Ctrl-C ends it.")
@json_option
@with_session
def logs(session: Session, lines: int, follow: bool, as_json: bool) -> None:
    """Show the daemon's newest log records, oldest first.

    The daemon keeps the newest 1000 in memory. Under systemd, `journalctl -u edged` has all of them.
    """
    records = _records(session, lines)
    if as_json and not follow:
        print_json(records)
        return
    _print(records, as_json)
    while follow:
        time.sleep(POLL_S)
        fresh = [record for record in _records(session, MOST) if _newer(record, records)]
        _print(fresh, as_json)
        records = fresh or records


def _records(session: Session, count: int) -> list[dict[str, Any]]:
    try:
        return session.admin.logs(count)
    except Unreachable as error:
        raise Unreachable(f"{error.message}; under systemd see `journalctl -u edged`") from error


def _newer(record: dict[str, Any], seen: list[dict[str, Any]]) -> bool:
    """Compare places in the daemon's ring; a daemon that started again counts from 1."""
    if not seen:
        return True
    then, last = _position(seen[-1])
    now, number = _position(record)
    return number > last or now > then


def _position(record: dict[str, Any]) -> tuple[float, int]:
    return float(record.get("ts", 0)), int(record.get("seq", 0))


def _print(records: list[dict[str, Any]], as_json: bool) -> None:
    from edged.log import as_text_line

    for record in records:
        click.echo(msgspec.json.encode(record) if as_json else as_text_line(record))
