"""`edgectl cache`: what the stages of the running daemon remember."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edged.cli.output import print_json, print_table, readable_bytes, visible
from edged.cli.session import TEXT, Session, example, json_option, with_session

if TYPE_CHECKING:
    from edged.report import CacheReport

HEADINGS = ("STAGE", "CACHE", "ENTRIES", "SIZE", "LIMIT", "HITS", "MISSES", "HIT RATE", "EVICTED")


@click.group(epilog=example("edgectl cache show"))
def cache() -> None:
    """Look into the caches of the running daemon, or empty them."""


@cache.command(epilog=example("edgectl cache show --json | jq '.[].hits'"))
@json_option
@with_session
def show(session: Session, as_json: bool) -> None:
    """Show what the stages remember and how often that served; `prefix` counts prompt tokens."""
    found = session.admin.caches()
    if as_json:
        print_json(found)
    elif found:
        print_table(HEADINGS, [_row(each) for each in found])
    else:
        click.echo("no stage has told of a cache yet: none is loaded, or all caches are off")


@cache.command(epilog=example("edgectl cache clear scores passages"))
@click.argument("names", nargs=-1, type=TEXT)
@json_option
@with_session
def clear(session: Session, names: tuple[str, ...], as_json: bool) -> None:
    """Empty the caches of these NAMES in every stage, or all; nothing in flight is disturbed."""
    held = session.admin.clear_caches(names)
    if as_json:
        print_json(held)
        return
    for each in held:
        entries = f"{each.entries} entries, " if each.entries else ""
        place = f"{visible(each.stage)}: {visible(each.name)}"
        click.echo(f"{place}: cleared ({entries}{readable_bytes(each.bytes)})")
    if not held:
        click.echo("there was nothing to clear")


def _row(each: CacheReport) -> tuple[str, ...]:
    asked = each.hits + each.misses
    return (
        each.stage,
        each.name,
        str(each.entries) if each.entries or each.limit_bytes else "-",
        readable_bytes(each.bytes),
        readable_bytes(each.limit_bytes) if each.limit_bytes else "-",
        str(each.hits),
        str(each.misses),
        f"{each.hits / asked:.0%}" if asked else "-",
        str(each.evictions),
    )
