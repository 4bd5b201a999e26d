"""`edgectl layers`: a generator that is too large for one device, over several."""

from __future__ import annotations

from importlib import import_module

import click

from edged.cli.session import example

COMMANDS = {
    "plan": "edged.cli.layers_plan:plan",
    "measure": "edged.cli.layers_measure:measure",
    "run": "edged.cli.layers_run:run",
    "bench": "edged.cli.layers_bench:bench",
    "serve": "edged.cli.layers_serve:serve",
}
"""Every command and where it lives; a module is imported when its command runs."""


class Layers(click.Group):
    """A group that imports a command when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order in which they are used."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(
    cls=Layers,
    epilog=example("edgectl layers plan --model smollm2-135m-instruct:q4_1 --devices cuda:0,cuda:1"),
)
def layers() -> None:
    """Split a generator by layers over several devices."""
