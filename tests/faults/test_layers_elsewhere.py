"""A layer pipeline over two hosts: the tokens of one device, named failures, and nobody else's messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq

from edged.backend import Sampling
from edged.errors import BackendError, ConfigError
from edged.layers.assembly import Settings, assemble
from edged.layers.pipeline import Pipeline
from edged.layers.remote.messages import VERSION, Hello, Ping, Pong, Refused, Said, pack, unpack
from edged.layers.remote.relay import task_of
from edged.layers.remote.serving import Offer, StageServer
from edged.layers.weights.fingerprint import identify
from edged.peers.book import Book, Peer
from edged.peers.keys import key_file, make_keys
from edged.testing.network import Cable, cable, refusal
from edged.transport.curve import Beat, KeyPair, Line, context, new_keys

REFUSAL = refusal()
needs_namespaces = pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL)

MODEL = "random:llama:layers=6,hidden=64,heads=4,kv=2,intermediate=128,vocabulary=1024,seed=1"
OTHER = MODEL.replace("seed=1", "seed=2")
PROMPTS = [[(17 * number + 3 * place) % 1000 for place in range(3 + 9 * number)] for number in range(6)]
TOKENS = 12
TIMEOUT_S = 6.0
PATIENCE_S = 60.0


def settings(*devices: str, **more: object) -> Settings:
    base = {"devices": devices, "split": "even", "context_tokens": 128, "max_sequences": 6, "threads": 1}
    return Settings(**(base | {"timeout_s": TIMEOUT_S} | more))


def answers(pipeline: Pipeline, during: Callable[[int], None] = lambda _: None) -> list[list[int]]:
    """Greedy answers to all prompts; `during` is called with the tokens so far."""
    found: list[list[int]] = [[] for _ in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        pipeline.head.start(number, prompt, Sampling(), TOKENS)
    while pipeline.head.live:
        for event in pipeline.turn() or ():
            found[event.sequence] += event.tokens
        during(sum(map(len, found)))
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    pipeline = assemble(MODEL, settings("cpu")).start(lambda _: False)
    try:
        return answers(pipeline)
    finally:
        pipeline.close()


# ------------------------------------------------------------------ two hosts


class Hosts:
    """The head's end of a cable, and servers of stages at the other."""

    def __init__(self, folder: Path, laid: Cable) -> None:
        self.cable = laid
        self.states = tuple(folder / name for name in ("head", "other"))
        self.keys = tuple(make_keys(key_file(state, {}), replace=False) for state in self.states)
        Book(self.states[0]).add(
            Peer(name="other", key=self.keys[1].public, endpoint=f"tcp://{laid.address(1)}:7443")
        )
        Book(self.states[1]).add(Peer(name="head", key=self.keys[0].public))
        self._logs: list[Path] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @contextmanager
    def serving(self, port: int) -> Iterator[str]:
        """`edgectl layers serve` at the other end; gives the device's name."""
        device = f"tcp://{self.cable.address(1)}:{port}"
        command = [sys.executable, "-m", "edged.cli", "layers", "serve", "--listen", device]
        environment = os.environ | {"EDGED_DAEMON__STATE_DIR": str(self.states[1])}
        self._logs.append(self.states[1] / f"{port}.log")
        with self._logs[-1].open("wb") as log:
            process = subprocess.Popen(
                self.cable.command(1, [*command, "--model", MODEL, "--threads", "1"]),
                env=environment,
                stderr=log,
            )
        self._processes[device] = process
        try:
            wait_for(lambda: "listens on" in self.log, "a listening server")
            yield device
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, self.log

    def stage_of(self, device: str) -> int:
        """Process id of the stage that a server holds."""
        server = self._processes[device].pid
        return int(Path(f"/proc/{server}/task/{server}/children").read_text())

    @property
    def log(self) -> str:
        """What the server that was started last has said."""
        return self._logs[-1].read_text()

    @contextmanager
    def pipeline(self, *devices: str) -> Iterator[Pipeline]:
        assembly = assemble(MODEL, settings("cpu", *devices, state_dir=str(self.states[0])))
        with self.cable.inside(0):
            made = assembly.start(lambda _: False)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with cable() as laid:
        yield Hosts(tmp_path_factory.mktemp("hosts"), laid)


@pytest.fixture(scope="module")
def device(hosts: Hosts) -> Iterator[str]:
    with hosts.serving(7701) as made:
        yield made


@needs_namespaces
def test_a_link_that_is_cut_in_mid_answer_is_named_and_the_next_head_is_served(hosts, device, alone):
    cut: list[int] = []

    def once(tokens: int) -> None:
        if tokens >= TOKENS and not cut:
            hosts.cable.cut()
            cut.append(tokens)

    silent = r"stage 1 of 2: host other \(tcp://.*\) has said nothing for 1\.5 s"
    with hosts.pipeline(device) as pipeline, pytest.raises(BackendError, match=silent):
        answers(pipeline, once)
    wait_for(lambda: "ready for the next head" in hosts.log, "a server that has given up")
    hosts.cable.mend()
    with hosts.pipeline(device) as pipeline:
        assert answers(pipeline) == alone
    wait_for(lambda: "head has ended" in hosts.log, "a server that is ready again")


@needs_namespaces
def test_two_stages_on_another_host_give_the_tokens_of_one_device_and_the_one_that_dies_is_named(
    hosts, device, alone
):
    with hosts.serving(7702) as second, hosts.pipeline(device, second) as pipeline:
        assert [loaded.layers for loaded in pipeline.loaded] == [2, 2, 2]
        assert answers(pipeline) == alone
        times = pipeline.head.meter.stages
        assert all(each.jobs and each.busy_s > 0 and each.wait_receive_s >= 0 for each in times)
        os.kill(hosts.stage_of(second), signal.SIGKILL)
        with pytest.raises(BackendError, match=r"stage 2 of 3: host other .*killed by signal 9"):
            answers(pipeline)


# ------------------------------------------------------------------ who is heard


class Stand:
    """A server in a thread, and a peer that it knows."""

    def __init__(self, folder: Path) -> None:
        with zmq.Context() as sockets, sockets.socket(zmq.DEALER) as free:
            self.endpoint = f"tcp://127.0.0.1:{free.bind_to_random_port('tcp://127.0.0.1')}"
        self.keys = make_keys(key_file(folder / "server", {}), replace=False)
        self.head = folder / "head"
        self.friend = make_keys(key_file(self.head, {}), replace=False)
        Book(self.head).add(Peer(name="server", key=self.keys.public, endpoint=self.endpoint))
        self.book = Book(folder / "server")
        self.book.add(Peer(name="friend", key=self.friend.public))
        self.said: list[str] = []
        offer = Offer(MODEL, identify(MODEL), "cpu", 1)
        self.server = StageServer(self.keys, self.book, offer, self.endpoint, self.said.append)

    def heard(self, text: str) -> bool:
        return any(text in each for each in self.said)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    thread = threading.Thread(target=made.server.run)
    thread.start()
    wait_for(lambda: made.heard("listens on"), "a listening server")
    yield made
    made.server.stop()
    thread.join()


class Caller:
    """A head that says what it likes."""

    def __init__(self, stand: Stand, silence_s: float = 5.0) -> None:
        self._sockets = context()
        beat = Beat(5000, 20_000)
        self.line = Line(
            self._sockets, stand.friend, stand.endpoint, stand.keys.public, most_bytes=1 << 20, beat=beat
        )
        spec = assemble(MODEL, settings("cpu", "cpu", timeout_s=4 * silence_s)).specs[1]
        self.hello = Hello(VERSION, os.urandom(4).hex(), identify(MODEL), task_of(spec))

    def say(self, *said: Said) -> None:
        for each in said:
            wait_for(lambda each=each: self.line.send(pack(each)), "a connection")

    def answer(self, *kinds: type) -> Said:
        """The next answer of these kinds."""
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            self.line.wait(100)
            for body in self.line.receive():
                said, _ = unpack(body)
                if isinstance(said, Ping):
                    self.line.send(pack(Pong(said.session)))
                if isinstance(said, kinds):
                    return said
        raise TimeoutError("no answer")

    def close(self) -> None:
        if not self._sockets.closed:
            self.line.close()
            self._sockets.term()


@pytest.fixture
def caller(stand: Stand) -> Iterator[Callable[..., Caller]]:
    with ExitStack() as stack:

        def call(**options: float) -> Caller:
            made = Caller(stand, **options)
            stack.callback(made.close)
            return made

        yield call


def knock(endpoint: str, keys: KeyPair | None, server: str, body: bytes) -> None:
    """Send to the server until it hangs up, or refuses."""
    refused = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    with zmq.Context() as sockets, sockets.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
            dealer.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
        ends = refused | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
        with dealer.get_monitor_socket(ends) as monitor:
            dealer.connect(endpoint)
            dealer.send(body)
            assert monitor.poll(round(PATIENCE_S * 1000)), "it was not turned away"
            dealer.disable_monitor()


@pytest.mark.parametrize("who", ["a stranger", "plain text", "wrong server key", "too much"])
def test_nothing_of_an_attack_reaches_the_stage(stand, who):
    keys, server, body = {
        "a stranger": (new_keys(), stand.keys.public, b"x"),
        "plain text": (None, "", b"x"),
        "wrong server key": (stand.friend, new_keys().public, b"x"),
        "too much": (stand.friend, stand.keys.public, bytes(8 << 20)),
    }[who]
    knock(stand.endpoint, keys, server, body)
    assert stand.server.messages == 0
    if who == "a stranger":
        wait_for(lambda: stand.heard("refused 1 connection"), "a note of it")


def test_one_head_at_a_time(stand, caller):
    first, second = caller(), caller()
    first.say(first.hello)
    wait_for(lambda: stand.heard("friend takes stage 1 of 2, layers 3 to 5"), "the first head's stage")
    second.say(second.hello)
    refused = second.answer(Refused)
    assert (refused.code, refused.session) == ("busy", second.hello.session)
    assert "another head (friend)" in refused.why
    first.close()
    wait_for(lambda: stand.heard("friend is gone"), "the first head's end")
    second.say(second.hello)
    wait_for(lambda: stand.said[-1].startswith("friend takes stage"), "the second head's stage")


def test_a_head_that_asks_again_and_again_is_told_of_once(stand, caller):
    first, second = caller(), caller()
    first.say(first.hello)
    wait_for(lambda: stand.heard("friend takes stage"), "the first head's stage")
    for _ in range(3):
        second.say(second.hello)
        assert second.answer(Refused).code == "busy"
    assert sum("refused friend" in each for each in stand.said) == 1


def test_who_may_ask_is_told(tmp_path):
    stand = Stand(tmp_path)
    stand.server.stop()  # it comes to its end as soon as it listens
    stand.server.run()
    assert stand.said == [f"listens on {stand.endpoint} for 1 peer"]
    stand.book.remove("friend")
    stand.server.run()
    assert stand.heard("for 0 peers: nobody may ask yet, `edgectl peers add NAME")


@pytest.mark.parametrize("end", ["silent", "gone", "removed"])
def test_a_head_that_is_lost_frees_the_stage(stand, caller, end):
    head = caller(silence_s=0.4 if end == "silent" else 4)
    head.say(head.hello)
    wait_for(lambda: stand.heard("takes stage"), "the head's stage")
    if end == "gone":
        head.close()
    elif end == "removed":
        stand.book.remove("friend")
    wait_for(lambda: stand.heard("ready for the next head"), "a free stage")
    why = {"silent": "fell silent", "gone": "is gone", "removed": "was taken off the list"}[end]
    assert stand.heard(why)


def test_another_model_is_refused_by_name(stand):
    asked = settings("cpu", stand.endpoint, state_dir=str(stand.head))
    with pytest.raises(ConfigError, match=r"stage 1 of 2: host server \(tcp://.*other weights \(fingerprint"):
        assemble(OTHER, asked).start(lambda _: False)
    with pytest.raises(ConfigError, match="its model has hidden 64, the head's 32"):
        assemble(MODEL.replace("hidden=64", "hidden=32"), asked).start(lambda _: False)


def test_a_host_that_nobody_has_added_is_not_asked(stand):
    asked = settings("cpu", "tcp://192.0.2.7:7701", state_dir=str(stand.head))
    with pytest.raises(ConfigError, match=r"no peer is listed for tcp://192\.0\.2\.7:7701.*peers add NAME"):
        assemble(MODEL, asked).start(lambda _: False)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"devices": ("tcp://h:1", "cpu")}, "the first stage computes where"),
        ({"transport": "gloo"}, "transport 'gloo' cannot reach"),
        ({"mode": "seed"}, "mode 'seed' cannot reach"),
        ({"prefill_tokens": 5000}, "more than the 4096"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(options, why):
    with pytest.raises(ConfigError, match=why):
        assemble(MODEL, Settings(**({"devices": ("cpu", "tcp://h:1")} | options)))
