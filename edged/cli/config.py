"""`edgectl config`: the configuration before and while it is in force."""

from __future__ import annotations

import click

from edged.cli.output import print_json, print_table
from edged.cli.session import Session, example, json_option, with_session


@click.group(epilog=example("edgectl --config edged.toml config check"))
def config() -> None:
    """Check and show the configuration."""


@config.command(epilog=example("edgectl --config edged.toml config check", "edgectl config check --json"))
@json_option
@with_session
def check(session: Session, as_json: bool) -> None:
    """Check the configuration as the daemon would read it, with the models and backends that it names."""
    from edged.cli.checks import absent, check_names, unused
    from edged.config import locate

    check_names(session.config)
    file = locate(session.file, session.environment)
    warnings = [*absent(session.config), *unused(session.config)]
    if as_json:
        print_json({"valid": True, "file": file, "warnings": warnings})
    else:
        click.echo(f"{file or 'built-in configuration'}: valid")
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)


@config.command(epilog=example("edgectl --set queue.slots=8 config show", "edgectl config show --running"))
@click.option("--running", is_flag=True, help="What the daemon has in force, from its admin socket.")
@json_option
@with_session
def show(session: Session, running: bool, as_json: bool) -> None:
    """Show every option with its value, after all layers."""
    import msgspec

    plain = session.admin.configuration() if running else msgspec.to_builtins(session.config, enc_hook=str)
    if as_json:
        print_json(plain)
    else:
        print_table(("OPTION", "VALUE"), list(_flat(plain)))


def _flat(value: object, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [row for key, inner in value.items() for row in _flat(inner, f"{name}.{key}".lstrip("."))]
    import msgspec

    return [(name, msgspec.json.encode(value).decode())]


@config.command(epilog=example("edgectl config schema > edged.schema.json"))
def schema() -> None:
    """Print the JSON Schema of edged.toml, for editors and linters."""
    from edged.config import schema as described

    print_json(described())
