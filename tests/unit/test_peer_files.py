"""Peers without daemons: keys, the list, what configurations and messages may say."""

from __future__ import annotations

import stat
from pathlib import Path

import hypothesis.strategies as st
import pytest
import zmq
from hypothesis import given

from edged.backend import Variant
from edged.config import Governor, load
from edged.dispatch.peer import Pressure
from edged.errors import ConfigError, NotFound, ProtocolError
from edged.governor import effects
from edged.governor.force import InForce
from edged.messages import Ceiling, ChatTask, Message, encode
from edged.peers.book import Book, Peer, check_endpoint
from edged.peers.identity import Kin, identity_of, kin_of
from edged.peers.keys import key_file, make_keys, read_keys
from edged.peers.messages import (
    Said,
    Take,
    read_from_server,
    read_to_server,
)
from edged.peers.node import is_hot, pressure_of
from edged.peers.task import MOST_TOKENS, answer_tokens
from edged.transport.curve import Beat, Gatekeeper, Line, Server, context, new_keys
from edged.workers.spec import StageSpec

KEYS = new_keys()
NO_KEY = b'[{"name": "b", "key": "' + b"#" * 40 + b'"}]'
BEAT = Beat(500, 1500)


def test_a_key_is_stored_for_its_owner_alone(tmp_path):
    path = key_file(tmp_path, {})
    made = make_keys(path, replace=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path, {}) == made
    with pytest.raises(ConfigError, match="--replace"):
        make_keys(path, replace=False)
    assert make_keys(path, replace=True) != made


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    path = key_file(tmp_path, {})
    make_keys(path, replace=False)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(path, {})


@pytest.mark.parametrize(("mode", "fine"), [(0o400, True), (0o440, True), (0o460, False), (0o444, False)])
def test_a_credential_may_have_the_mask_of_its_acl(tmp_path, mode, fine):
    path = tmp_path / "curve.key"
    path.write_text(KEYS.secret)
    path.chmod(mode)
    if fine:
        assert read_keys(path, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == KEYS
    else:
        with pytest.raises(ConfigError, match="chmod 600"):
            read_keys(path, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    path.chmod(0o440)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(path, {})


def test_a_credential_goes_before_the_state_folder(tmp_path):
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert key_file(tmp_path, environment).is_relative_to(tmp_path / "peers")
    (tmp_path / "credentials").mkdir()
    given_key = tmp_path / "credentials" / "curve.key"
    given_key.write_text(KEYS.secret)
    assert key_file(tmp_path, environment) == given_key


@pytest.mark.parametrize("content", ["", "no key", "k" * 40 + "k", "#" * 40, "\xff\x00" * 20])
def test_what_is_no_key_is_refused(tmp_path, content):
    path = key_file(tmp_path, {})
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        read_keys(path, {})


def test_the_list_keeps_one_peer_of_a_name_and_one_of_a_key(tmp_path):
    book = Book(tmp_path)
    assert book.read() == ()
    book.add(Peer(name="b", key=KEYS.public, endpoint="tcp://192.0.2.1:7443"))
    before = book.version()
    book.add(Peer(name="b", key=KEYS.public))
    assert book.version() != before
    assert book.read() == (Peer(name="b", key=KEYS.public),)
    with pytest.raises(ConfigError, match="that of peer 'b'"):
        book.add(Peer(name="c", key=KEYS.public))
    book.remove("b")
    assert book.read() == ()
    with pytest.raises(NotFound):
        book.remove("b")
    assert stat.S_IMODE(book.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", [b"{}", b"[1]", NO_KEY, b"\xff", b'[{"name": "../x", "key": "k"}]', b"[" * 9999]
)
def test_a_bad_list_is_one_sentence(tmp_path, content):
    book = Book(tmp_path)
    book.path.parent.mkdir()
    book.path.write_bytes(content)
    with pytest.raises(ConfigError):
        book.read()


@pytest.mark.parametrize(
    "make",
    [
        lambda sockets: Gatekeeper(sockets, lambda _: False),
        lambda sockets: Server(sockets, KEYS, 1 << 20, BEAT),
        lambda sockets: Line(sockets, KEYS, "tcp://192.0.2.1:1", KEYS.public, most_bytes=1 << 20, beat=BEAT),
        lambda sockets: Line(sockets, KEYS, "tcp://192.0.2.1:1", "no key", most_bytes=1 << 20, beat=BEAT),
    ],
)
def test_a_box_without_a_socket_to_spare_says_so(make):
    sockets = context()
    sockets.max_sockets = 1
    with sockets.socket(zmq.PAIR), pytest.raises(ConfigError):
        make(sockets)
    sockets.term()


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:1",
        "ipc:///run/x",
        "tcp://host",
        "tcp://host:0",
        "tcp://host:65536",
        "tcp://a b:1",
        "host:1",
        "",
    ],
)
def test_what_is_no_address_is_refused(endpoint):
    with pytest.raises(ConfigError):
        check_endpoint(endpoint)


@pytest.mark.parametrize("endpoint", ["tcp://box-b.lan:7443", "tcp://192.0.2.1:1", "tcp://[fd00::1]:65535"])
def test_what_is_an_address_is_taken(endpoint):
    assert check_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("listen='tcp://0.0.0.0:7443'", "every network"),
        ("listen='tcp://[::]:7443'", "every network"),
        ("listen='tcp://*:7443'", "is not tcp://"),
        ("silence_s=0.3", "twice"),
        ("name='Box B'", "may hold only"),
    ],
)
def test_a_configuration_that_opens_too_much_is_refused(tmp_path, option, why):
    file = tmp_path / "edged.toml"
    file.write_text(f"[peers]\n{option}\n")
    with pytest.raises(ConfigError, match=why):
        load(file, {})


def spec(**changes: object) -> StageSpec:
    known = {"backend": "openvino", "digest": "d", "model": "m", "kind": "generator", "variant": "q4"}
    known |= changes
    variant = Variant(
        model=str(known["model"]),
        name=str(known["variant"]),
        task="generate",
        format="none",
        path=Path("/x"),
        digest=str(known["digest"]),
    )
    return StageSpec(
        name="g",
        kind=str(known["kind"]),
        backend=str(known["backend"]),
        device="cpu",
        max_batch=1,
        variant=variant,
        options={},
        library=Path("/x"),
    )


def test_only_the_same_weights_under_the_same_limits_are_the_same_model():
    details = {"context_tokens": 2048, "max_tokens": 256}
    same = identity_of(spec(), details)
    assert same == identity_of(spec(backend="llama_cpp"), details)
    others = [
        identity_of(spec(digest="e"), details),
        identity_of(spec(model="n"), details),
        identity_of(spec(), details | {"max_tokens": 128}),
        identity_of(spec(), details | {"context_tokens": 1024}),
    ]
    assert len({same, *others}) == 5
    assert identity_of(spec(backend="openai", digest=""), details) == ""
    assert identity_of(spec(kind="tensor"), details) == ""


@pytest.mark.parametrize(
    ("max_tokens", "ceiling", "default", "most"),
    [(0, 0, 256, 256), (64, 0, 256, 64), (512, 0, 256, 512), (512, 96, 256, 96), (0, 0, 0, MOST_TOKENS)],
)
def test_how_long_the_answer_to_a_task_may_be(max_tokens, ceiling, default, most):
    asked = (Message(role="user", content="why?"),)
    task = ChatTask(messages=asked, max_tokens=max_tokens, ceiling=Ceiling(answer_tokens=ceiling))
    assert answer_tokens(encode(task), default) == most


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_are_a_message_or_an_error(data):
    for read in (read_to_server, read_from_server):
        try:
            read(data)
        except ProtocolError:
            continue


TAKE = Take(1, 1, "model", 1, b"task", 1000, "interactive", (), 0)


@pytest.mark.parametrize(
    "data",
    [
        encode(TAKE).replace(b"model\x01", b"model\x02"),  # a second hop
        encode(TAKE)[:-1] + b"\x00\x00",
        b"\x91\xa3ask",
        encode(Said(1, 1, 0, (1,), "x")),  # said to a server
    ],
)
def test_what_a_server_must_not_take_is_refused(data):
    with pytest.raises(ProtocolError):
        read_to_server(data)


@pytest.mark.parametrize(
    ("rung", "hot", "away", "urgent"),
    [
        ("full", False, False, False),
        ("no-rerank", False, False, False),
        ("peer", True, True, False),
        ("shed-batch", True, True, True),
        ("shed-half", True, True, True),
    ],
)
def test_what_a_rung_means_for_peers(rung, hot, away, urgent):
    ladder = Governor().ladder
    number = next(number for number, each in enumerate(ladder) if each.name == rung)
    force = InForce(number, rung, effects.settings(ladder, number))
    assert is_hot(force, ladder) == hot
    assert pressure_of(force) == Pressure(away=away, urgent=urgent)


def test_a_box_without_a_peer_to_turn_to_is_no_cooler_for_it():
    ladder = Governor().ladder
    number = next(number for number, each in enumerate(ladder) if each.peer)
    force = InForce(number, "peer", effects.settings(ladder, number, without={number}))
    assert pressure_of(force) == Pressure()
    assert is_hot(force, ladder)


def test_better_variants_are_kin():
    details = {"context_tokens": 2048, "max_tokens": 256}
    kin = kin_of(spec(), details, ["better", ""])
    better = frozenset({identity_of(spec(digest="better"), details)})
    assert kin == Kin(identity_of(spec(), details), better, answer_tokens=256)
    assert kin_of(spec(backend="openai", digest=""), details, ["better"]) == Kin("")
