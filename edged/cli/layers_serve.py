"""`edgectl layers serve`: a stage of a pipeline whose head runs on another host."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from importlib.util import find_spec

import click

from edged.cli.layers_model import source_of
from edged.cli.output import visible
from edged.cli.session import TEXT, Session, example, with_session
from edged.errors import ConfigError


@click.command(
    epilog=example(
        "edgectl peers keygen",
        "edgectl peers add box-a --key 'PUBLICKEY'",
        "edgectl layers serve --listen tcp://10.0.0.2:7701 --model smollm2-135m-instruct:q4_1",
    )
)
@click.option(
    "--listen", type=TEXT, required=True, metavar="tcp://HOST:PORT", help="An address of this host."
)
@click.option("--model", type=TEXT, required=True, metavar="MODEL", help="The head's, as this host has it.")
@click.option("--device", type=TEXT, default="cpu", show_default=True, help="cpu, cpu:0-1, cuda:0, ...")
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Of the CPU  [one a core of the device]."
)
@with_session
def serve(session: Session, listen: str, model: str, device: str, threads: int) -> None:
    """Hold a stage for a layer pipeline that runs on another host, until Ctrl-C, which is exit code 0.

    Only peers may ask (`edgectl peers add`, on both hosts), over an encrypted link, one at a time. The head
    names this host among its devices and says which layers it gets; when it ends or falls silent, the stage's
    memory is freed and the next may ask. Both hosts need the same model files.
    """
    from edged.layers.places import check_here
    from edged.layers.remote.serving import Offer, StageServer
    from edged.layers.weights.fingerprint import identify
    from edged.peers.book import Book, check_endpoint
    from edged.peers.keys import key_file, read_keys

    if find_spec("torch") is None:
        raise ConfigError("stages of a layer pipeline need torch; run: pip install 'edged[pipeline]'")
    check_here(device)
    state_dir = session.config.daemon.state_dir
    keys = read_keys(key_file(state_dir, session.environment), session.environment)
    source = source_of(session, model)
    offer = Offer(source, identify(source), device, threads)
    server = StageServer(keys, Book(state_dir), offer, check_endpoint(listen), _say)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    _say(f"has the key {keys.public}")
    server.run()
    _say("stopped")


def _say(what: str) -> None:
    """Tell the operator, with the time: under systemd this is the log."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    click.echo(f"{now} layers serve: {visible(what)}", err=True)
