"""`edgectl devices`: the silicon as each runtime sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edged.cli.output import print_json, print_table, readable_bytes
from edged.cli.session import example, json_option
from edged.errors import EdgedError

if TYPE_CHECKING:
    from edged.backend import Device

HEADINGS = ("BACKEND", "DEVICE", "KIND", "NAME", "MEMORY", "USABLE")


@click.command(epilog=example("edgectl devices --json | jq '.devices[] | select(.unusable == \"\") | .id'"))
@json_option
def devices(as_json: bool) -> None:
    """List what every runtime sees on this machine, and why something cannot be used."""
    found, missing = _survey()
    if as_json:
        print_json({"devices": found, "missing": missing})
        return
    rows = [_row(device) for device in found]
    rows += [(backend, "-", "-", "-", "-", f"no: {reason}") for backend, reason in missing.items()]
    print_table(HEADINGS, rows)


def _survey() -> tuple[list[Device], dict[str, str]]:
    from edged.plugins import load, names

    found: list[Device] = []
    missing: dict[str, str] = {}
    for name in names():
        try:
            found += load(name).devices()
        except EdgedError as error:
            missing[name] = error.message
    return found, missing


def _row(device: Device) -> tuple[str, ...]:
    memory = readable_bytes(device.memory_bytes) if device.memory_bytes else "-"
    usable = f"no: {device.unusable}" if device.unusable else "yes"
    return device.backend, device.id, device.kind, device.name, memory, usable
