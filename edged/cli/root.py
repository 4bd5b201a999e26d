"""The root of `edgectl`: finds commands when they are asked for, and turns errors into exit codes."""

from __future__ import annotations

import json
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from edged.cli.lazy import LazyGroup
from edged.cli.output import visible
from edged.cli.session import TEXT, Session
from edged.errors import ConfigError, EdgedError, Unreachable

COMMANDS = {
    "status": "edged.cli.status:status",
    "ask": "edged.cli.ask:ask",
    "chat": "edged.cli.chat:chat",
    "embed": "edged.cli.embed:embed",
    "rerank": "edged.cli.rerank:rerank",
    "ingest": "edged.cli.ingest:ingest",
    "documents": "edged.cli.documents:documents",
    "models": "edged.cli.models:models",
    "calibrate": "edged.cli.calibrate:calibrate",
    "plan": "edged.cli.plan:plan",
    "devices": "edged.cli.devices:devices",
    "bench": "edged.cli.bench:bench",
    "stage": "edged.cli.stage:stage",
    "reload": "edged.cli.daemon:reload",
    "drain": "edged.cli.daemon:drain",
    "cache": "edged.cli.cache:cache",
    "governor": "edged.cli.governor:governor",
    "ladder": "edged.cli.ladder:ladder",
    "peers": "edged.cli.peers:peers",
    "layers": "edged.cli.layers:layers",
    "config": "edged.cli.config:config",
    "logs": "edged.cli.logs:logs",
    "version": "edged.cli.version:version",
    "completion": "edged.cli.completion:completion",
}
"""Every command and where it lives; a module is imported when its command runs."""

FAILED, UNREACHABLE, BAD_CONFIG, INTERRUPTED = 1, 69, 78, 130
"""69 and 78 as in sysexits.h, 130 as a shell reports SIGINT. A closed pipe ends in silence, with 1."""


class Root(LazyGroup):
    """All commands; it names the nearest to one that is misspelt, and turns errors into exit codes."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed, or name the nearest one."""
        near = get_close_matches(args[0], COMMANDS, 1)
        if near and args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise click.UsageError(f"no such command {args[0]!r}; did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, print at most one line about an error, and leave with the code that belongs to it."""
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except click.Abort:
            code = INTERRUPTED
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except EdgedError as error:
            typed = extra.get("args") or (args[0] if args else None) or sys.argv[1:]
            click.echo(_as_json(error) if "--json" in typed else _as_line(error), err=True)
            code = _code_of(error)
        sys.exit(code if isinstance(code, int) else 0)


def _as_line(error: EdgedError) -> str:
    when = f" (try again in {error.retry_after_s:g} s)" if error.retry_after_s else ""
    return f"error [{error.code}]: {visible(error.message)}{when}"


def _as_json(error: EdgedError) -> str:
    """As the API gives it, for whoever asked for JSON."""
    body = {"code": error.code, "message": error.message, "param": error.param}
    return json.dumps({"error": body | {"retry_after_s": error.retry_after_s}})


def _code_of(error: EdgedError) -> int:
    if isinstance(error, Unreachable):
        return UNREACHABLE
    return BAD_CONFIG if isinstance(error, ConfigError) else FAILED


_EPILOG = """\b
Example:
  edgectl ask "How do I reset the gateway?"

\b
Exit codes: 0 done, 1 the request failed, 2 usage, 69 no daemon answers,
78 the configuration is bad, 130 interrupted."""


@click.group(
    cls=Root, places=COMMANDS, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="Configuration [$EDGED_CONFIG]."
)
@click.option(
    "--set",
    "overrides",
    type=TEXT,
    multiple=True,
    metavar="NAME=VALUE",
    help="Override one option; repeatable.",
)
@click.option("--socket", type=click.Path(path_type=Path), help="The daemon's client socket [$EDGED_SOCKET].")
@click.option(
    "--admin-socket", type=click.Path(path_type=Path), help="The daemon's admin socket [$EDGED_ADMIN_SOCKET]."
)
@click.pass_context
def edgectl(
    context: click.Context,
    file: Path | None,
    overrides: tuple[str, ...],
    socket: Path | None,
    admin_socket: Path | None,
) -> None:
    """Ask, feed and run edged."""
    context.obj = Session(
        file=file, overrides=overrides, socket=socket, admin_socket=admin_socket, environment=dict(os.environ)
    )
