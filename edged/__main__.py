"""`edged --config edged.toml`: read the configuration, take the lock, run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import uvloop

from edged import __version__, log
from edged.config import Config, load, locate
from edged.daemon import Daemon
from edged.errors import AlreadyRunning, ConfigError, EdgedError

EX_TEMPFAIL = 75
EX_CONFIG = 78


@click.command(
    help="Run the edged daemon in the foreground. Example: edged --config edged.toml",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override: --set queue.slots=8")
@click.version_option(__version__, prog_name="edged")
def main(path: Path | None, overrides: tuple[str, ...]) -> None:
    """Exit 0 after a drain, 75 when another daemon runs, 78 on a bad configuration, 1 otherwise."""
    try:
        sys.exit(_run(path, overrides))
    except EdgedError as error:
        click.echo(f"error [{error.code}]: {error.message}", err=True)
        sys.exit(_exit_status(error))


def _run(path: Path | None, overrides: tuple[str, ...]) -> int:
    os.umask(0o077)

    def read() -> tuple[Config, str]:
        return load(path, os.environ, overrides), str(locate(path, os.environ) or "")

    config, place = read()
    log.configure(config.daemon.log_level, config.daemon.log_format)

    async def serve() -> None:
        await Daemon(config, place, read).run(os.environ)

    uvloop.run(serve())
    return 0


def _exit_status(error: EdgedError) -> int:
    if isinstance(error, AlreadyRunning):
        return EX_TEMPFAIL
    return EX_CONFIG if isinstance(error, ConfigError) else 1


if __name__ == "__main__":
    main()
