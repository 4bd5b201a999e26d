"""`edgectl peers`: other nodes that take over answers: keys, the list, and whether they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edged.cli.output import print_json, print_table, styled, visible
from edged.cli.session import TEXT, Session, example, json_option, with_session
from edged.errors import ConfigError, EdgedError, NotFound, Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edged.peers.book import Book, Peer
    from edged.peers.probe import Found
    from edged.report import PeersStatus, PeerStatus

HEADINGS = (
    "PEER",
    "STATE",
    "ENDPOINT",
    "RUNG",
    "RTT",
    "FREE",
    "TOKENS/S",
    "MAKING",
    "MADE HERE",
    "BACK",
    "NOTE",
)


@click.group(epilog=example("edgectl peers keygen", "edgectl peers test box-b"))
def peers() -> None:
    """Pair this node with others that take over answers when it is hot, full or in trouble.

    Both nodes add each other. The daemon notices changes by itself; `peers.enabled` switches all of it on.
    """


@peers.command(epilog=example("sudo -u edged edgectl peers keygen"))
@click.option("--replace", is_flag=True, help="Make a new key; all peers have to learn it.")
@json_option
@with_session
def keygen(session: Session, replace: bool, as_json: bool) -> None:
    """Print this node's public key, which other nodes add; make the key pair if there is none.

    The secret stays in the state folder, readable by its owner only.
    """
    from edged.peers.keys import key_file, make_keys, read_keys

    path = key_file(session.config.daemon.state_dir, session.environment)
    made = replace or not path.exists()
    keys = make_keys(path, replace=replace) if made else read_keys(path, session.environment)
    if as_json:
        print_json({"public": keys.public, "file": str(path), "made": made})
        return
    click.echo(keys.public)
    if made:
        click.echo(f"the secret key is in {path}; restart the daemon to use it", err=True)
    else:
        click.echo(f"the key was there already, in {path}; --replace makes a new one", err=True)


@peers.command(
    epilog=example("edgectl peers add box-b --endpoint tcp://192.168.7.12:7443 --key 'PUBLICKEY'"),
)
@click.argument("name", type=TEXT)
@click.option("--key", type=TEXT, required=True, help="Its public key, as `peers keygen` printed it there.")
@click.option("--endpoint", type=TEXT, default="", help="tcp://HOST:PORT; without it, it may only ask.")
@json_option
@with_session
def add(session: Session, name: str, key: str, endpoint: str, as_json: bool) -> None:
    """Let the node with this key in as NAME, and ask it where it listens; an older NAME is replaced."""
    from edged.peers.book import Peer

    if key == _own_key(session):
        raise ConfigError("that is the key of this node; add the one that the other node's keygen prints")
    peer = Peer(name=name, key=key, endpoint=endpoint)
    _book(session).add(peer)
    if as_json:
        print_json(peer)
        return
    next_step = (
        f"`edgectl peers test {visible(name)}` asks it"
        if endpoint
        else "without --endpoint it may ask, and is never asked"
    )
    click.echo(f"peer {visible(name)} is listed; {next_step}")


def _own_key(session: Session) -> str:
    """Return the public key of this node; empty where there is none yet, or none that may be read."""
    from edged.peers.keys import key_file, read_keys

    try:
        return read_keys(
            key_file(session.config.daemon.state_dir, session.environment), session.environment
        ).public
    except ConfigError:
        return ""


@peers.command(epilog=example("edgectl peers remove box-b"))
@click.argument("name", type=TEXT)
@json_option
@with_session
def remove(session: Session, name: str, as_json: bool) -> None:
    """Forget peer NAME: it is not let in any more, and its answers go on at home."""
    _book(session).remove(name)
    if as_json:
        print_json({"removed": name})
    else:
        click.echo(f"peer {visible(name)} is not listed any more")


@peers.command("list", epilog=example("edgectl peers list --json | jq '.peers[].state'"))
@json_option
@with_session
def show(session: Session, as_json: bool) -> None:
    """Show all peers and how they are, by the running daemon; without one, by the list."""
    try:
        status = session.client.status().peers
    except Unreachable:
        status, why = None, "no daemon answers; this is the list in its state folder"
    else:
        why = "the daemon runs without peers: set peers.enabled = true and restart it"
    if status is None:
        _print_listed(_book(session).read(), why, as_json=as_json)
    elif as_json:
        print_json(status)
    else:
        _print_running(status)


@peers.command(epilog=example("edgectl peers test", "edgectl peers test box-b --timeout 10"))
@click.argument("name", type=TEXT, default="")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1, 60), default=3.0, show_default=True)
@json_option
@with_session
def test(session: Session, name: str, timeout_s: float, as_json: bool) -> None:
    """Ask peer NAME, or all, with this node's key: both keys, the address and the firewall in one go."""
    from edged.peers.keys import key_file, read_keys
    from edged.peers.probe import probe

    keys = read_keys(key_file(session.config.daemon.state_dir, session.environment), session.environment)
    found: list[Found] = []
    problems: dict[str, EdgedError] = {}
    for peer in _chosen(_book(session), name):
        try:
            found.append(probe(peer, keys, timeout_s))
        except EdgedError as error:
            problems[peer.name] = error
        else:
            if not as_json:
                click.echo(_answered(found[-1]))
    if as_json:
        print_json(_tested(found, problems))
    for problem in list(problems.values())[:-1]:
        click.echo(f"error [{problem.code}]: {visible(problem.message)}", err=True)
    for problem in list(problems.values())[-1:]:
        raise problem


def _tested(found: Sequence[Found], problems: Mapping[str, EdgedError]) -> dict[str, Any]:
    from msgspec.structs import asdict

    return {
        "answered": [asdict(each) | {"models": [asdict(offer) for offer in each.models]} for each in found],
        "problems": [
            {"peer": name, "code": error.code, "message": error.message} for name, error in problems.items()
        ],
    }


def _book(session: Session) -> Book:
    from edged.peers.book import Book

    return Book(session.config.daemon.state_dir)


def _chosen(book: Book, name: str) -> list[Peer]:
    listed = [peer for peer in book.read() if peer.name == name or (not name and peer.endpoint)]
    if not listed:
        what = f"no peer {name!r}" if name else "no peer with an address"
        raise NotFound(f"there is {what}; see `edgectl peers list`")
    return listed


def _answered(found: Found) -> str:
    models = ", ".join(
        f"{offer.free} of {offer.grant} free, {offer.tokens_per_s:.0f} tokens/s" for offer in found.models
    )
    return f"{visible(found.peer)}: {visible(found.node)} answers in {found.rtt_ms:.1f} ms; " + (
        f"rung {visible(found.rung)}; {models}" if models else "it serves no model yet"
    )


def _print_listed(listed: tuple[Peer, ...], why: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"peers": listed})
        return
    print_table(("PEER", "ENDPOINT", "KEY"), [(peer.name, peer.endpoint or "-", peer.key) for peer in listed])
    click.echo(f"note: {why}")


def _print_running(status: PeersStatus) -> None:
    place = f"listens on {status.listen}" if status.listen else "serves no peers"
    click.echo(f"{visible(status.node)}  {place}  key {status.key}")
    print_table(HEADINGS, [_row(peer) for peer in status.peers])
    if status.problem:
        click.echo(styled(f"note: {visible(status.problem)}", fg="yellow"))
    wish = "those that have begun too" if status.urgent else "new answers"
    if status.away:
        click.echo(f"note: the governor sends answers away: {wish}")


def peer_line(status: PeersStatus) -> str:
    """How peers stand, for `edgectl status`."""
    up = [peer.name for peer in status.peers if peer.state == "up"]
    making = sum(peer.making for peer in status.peers)
    here = sum(peer.made_here for peer in status.peers)
    names = f" ({visible(', '.join(up))})" if up else ""
    counts = f"{len(up)} of {len(status.peers)} up{names}  making {making} for us, {here} made here"
    return f"peers  {counts}{'  sending answers away' if status.away else ''}"


def _row(peer: PeerStatus) -> tuple[str, ...]:
    up = peer.state == "up"
    again = f"; asked again in {peer.again_in_s:.0f} s" if peer.again_in_s else ""
    return (
        peer.name,
        peer.state,
        peer.endpoint or "-",
        (f"{peer.rung} (hot)" if peer.hot else peer.rung) if up else "-",
        f"{peer.rtt_ms:.1f} ms" if up else "-",
        f"{peer.free}/{peer.grant}" if up else "-",
        f"{peer.tokens_per_s:.0f}" if up else "-",
        str(peer.making),
        str(peer.made_here),
        f"{peer.returned}/{peer.handed}",
        f"{peer.reason}{again}" or "-",
    )
