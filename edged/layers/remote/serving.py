"""A host that holds a stage for somebody else's pipeline: who may ask, one head at a time, then the next.

The stage itself is a process as in any pipeline, in a private folder of this host; it ends with its head, and
takes all of its memory with it. This one never computes, and so always answers.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace

from edged.errors import ConfigError, DeviceLost, EdgedError, ProtocolError
from edged.layers.crew import Crew
from edged.layers.links.meeting import Meeting
from edged.layers.links.pipes import Inlet, Outlet
from edged.layers.links.silence import Silence
from edged.layers.links.waiting import Waited, wait
from edged.layers.remote.messages import (
    VERSION,
    Accepted,
    Hello,
    Hop,
    Identity,
    Ping,
    Pong,
    Refused,
    Said,
    Task,
    most_bytes,
    pack,
    unpack,
)
from edged.layers.spec import StageSpec
from edged.layers.weights.fingerprint import difference
from edged.layers.wire import End, decode
from edged.peers.book import Book
from edged.transport.curve import Beat, Gatekeeper, Heard, KeyPair, Server, context

BEAT = Beat(2000, 10_000)
IDLE_S = 0.25
"""How soon a stop or a change of the list of peers is seen."""
LOADED_S = 1.0
"""How long a stage that has begun to say that it is ready may take to say it."""
MOST_HEARD = 64
"""Messages before anything else has its turn."""
QUIET_S = 60.0
OVERLAP_FOLDER = "/var/tmp"  # noqa: S108 # the file there has no name

Tell = Callable[[str], None]


class Offer(NamedTuple):
    """What this host gives: its copy of the model, and a device."""

    source: str
    identity: Identity
    device: str
    threads: int


class _Guest(NamedTuple):
    """Who has the stage."""

    name: str
    route: bytes
    session: str


class Seat:
    """The stage of one head, while it has it."""

    def __init__(self, guest: _Guest, spec: StageSpec, silence_s: float) -> None:
        self.guest = guest
        self.spec = spec
        self.silence = Silence(silence_s, time.monotonic())
        self.loaded = False
        with ExitStack() as undo:
            meeting = Meeting()
            undo.callback(meeting.close)
            spec = _placed(spec, meeting.folder)
            self.inlet = Inlet(f"ipc://{meeting.folder}/{spec.next}")
            undo.callback(self.inlet.close)
            self._outlet = Outlet(f"ipc://{meeting.folder}/{spec.stage}")
            undo.callback(self._outlet.close, 0)
            with _uninterrupted():
                self.crew = Crew([spec])
            undo.callback(self.crew.close)
            self._undo = undo.pop_all()

    def take(self, header: bytes, payload: memoryview) -> None:
        """Hand a message of the head to the stage."""
        self._outlet.send(header, *([payload] if payload.nbytes else []))

    def close(self, *, kill: bool) -> None:
        """End the stage: at once, or once it has left by itself."""
        if kill:
            self.crew.kill()
        self._undo.close()


class StageServer:
    """Listens for heads. `run` serves until `stop` is called, from a signal handler for one."""

    def __init__(self, keys: KeyPair, book: Book, offer: Offer, endpoint: str, tell: Tell) -> None:
        self._keys = keys
        self._book = book
        self._offer = offer
        self._endpoint = endpoint
        self._tell = tell
        self._known: dict[str, str] = {}
        """Names of the peers by key."""
        self._version: tuple[int, int] | None = None
        self._seat: Seat | None = None
        self._stopped = False
        self._refused, self._quiet_until_s = 0, 0.0
        self._told: dict[str, tuple[str, float]] = {}
        """By name: why a head was refused last, and until when that need not be said again."""
        self.messages = 0
        """That came in past the gate."""

    def stop(self) -> None:
        """Let `run` come to its end."""
        self._stopped = True

    def run(self) -> None:
        """Serve; `ConfigError` when the address cannot be had, or strangers would not be refused."""
        with ExitStack() as undo:
            sockets = context()
            undo.callback(sockets.term)
            self._read_book()
            gate = Gatekeeper(sockets, lambda key: key in self._known)
            undo.callback(gate.close)
            gate.prove()
            hidden = self._offer.identity.architecture.hidden
            server = Server(sockets, self._keys, most_bytes(hidden), BEAT)
            undo.callback(server.close)
            server.bind(self._endpoint)
            undo.callback(self._leave, kill=True)
            self._tell(f"listens on {self._endpoint} for {_audience(len(self._known))}")
            while not self._stopped:
                self._turn(gate, server)

    def _turn(self, gate: Gatekeeper, server: Server) -> None:
        self._read_book()
        gate.answer()
        self._tell_refused(gate.refused)
        for heard in islice(server.receive(), MOST_HEARD):
            self._hear(server, heard)
        if self._seat is not None:
            self._tend(server, self._seat)
        seat = self._seat
        sockets: list[Waited] = [gate, server, *([seat.inlet] if seat else [])]
        wait(sockets, seat.crew.outputs if seat else (), seat.silence.tick_s if seat else IDLE_S)

    def _tell_refused(self, refused: int) -> None:
        """Say it once a minute at most: strangers do not fill the log."""
        now_s = time.monotonic()
        if refused > self._refused and now_s > self._quiet_until_s:
            keys = f"{refused - self._refused} connection(s) with a key that is not on the list"
            self._tell(f"refused {keys}: `edgectl peers add` lets a key in")
            self._refused, self._quiet_until_s = refused, now_s + QUIET_S

    def _read_book(self) -> None:
        version = self._book.version()
        if version == self._version:
            return
        self._version = version
        try:
            self._known = {peer.key: peer.name for peer in self._book.read()}
        except ConfigError as error:
            self._known = {}
            self._tell(f"lets nobody in: {error.message}")

    # ---------------------------------------------------------------- what heads say

    def _hear(self, server: Server, heard: Heard) -> None:
        self.messages += 1
        name = self._known.get(heard.key)
        if name is None:
            return  # it was on the list when it came in
        try:
            said, payload = unpack(heard.body)
        except ProtocolError as error:
            self._tell(f"{name} says what cannot be read: {error.message}")
            return
        seat = self._seat
        if isinstance(said, Hello):
            self._welcome(server, _Guest(name, heard.route, said.session), said)
        elif seat is not None and (heard.route, said.session) == (seat.guest.route, seat.guest.session):
            seat.silence.heard()
            self._follow(server, seat, said, payload)

    def _follow(self, server: Server, seat: Seat, said: Said, payload: memoryview) -> None:
        match said:
            case Hop(header=header) if seat.loaded:
                seat.take(header, payload)
            case Ping():
                self._answer(server, seat.guest, Pong(seat.guest.session))
            case _:
                pass

    def _welcome(self, server: Server, guest: _Guest, hello: Hello) -> None:
        refusal = self._refusal(hello)
        if refusal is not None:
            self._tell_refusal(guest.name, refusal.why)
            self._answer(server, guest, refusal)
            return
        self._told.pop(guest.name, None)
        task = hello.task
        layers = f"layers {task.share.first} to {task.share.end - 1}"
        self._tell(f"{guest.name} takes stage {task.stage} of {task.stages}, {layers}, {task.dtype}")
        try:
            self._seat = Seat(guest, _spec(task, self._offer), task.silence_s)
        except ConfigError as error:
            self._answer(server, guest, _gone(guest.session, error))
        except OSError as error:
            why = f"no process can be started: {error.strerror}"
            self._answer(server, guest, Refused(guest.session, "backend", why))

    def _tell_refusal(self, name: str, why: str) -> None:
        """Say it once a minute at most: a head asks again three times a second."""
        now_s = time.monotonic()
        last, quiet_until_s = self._told.get(name, ("", 0.0))
        if why != last or now_s > quiet_until_s:
            self._tell(f"refused {name}: {why}")
            self._told[name] = why, now_s + QUIET_S

    def _refusal(self, hello: Hello) -> Refused | None:
        task, shape = hello.task, self._offer.identity.architecture
        if hello.version != VERSION:
            why = f"it speaks version {VERSION} of the protocol, the head {hello.version}"
            return Refused(hello.session, "config", why)
        if different := difference(self._offer.identity, hello.identity):
            return Refused(hello.session, "config", f"{different}; give both the same files")
        if not (
            0 < task.stage < task.stages
            and 0 <= task.share.first < task.share.end <= shape.layers
            and task.context_tokens <= shape.context_tokens
        ):
            return Refused(hello.session, "config", "the head asks for what its model does not have")
        if self._seat is not None:
            why = f"another head ({self._seat.guest.name}) has this stage; one at a time"
            return Refused(hello.session, "busy", why)
        return None

    # ---------------------------------------------------------------- what the stage says

    def _tend(self, server: Server, seat: Seat) -> None:
        now_s = time.monotonic()
        try:
            self._look(server, seat)
        except EdgedError as error:
            self._tell(error.message)
            self._answer(server, seat.guest, _gone(seat.guest.session, error))
            self._leave(kill=True)
            return
        if self._seat is None:
            return
        asked = seat.silence.ask(now_s)
        gone = asked and not self._answer(server, seat.guest, Ping(seat.guest.session))
        removed = seat.guest.name not in self._known.values()
        if gone or removed or seat.silence.lost(now_s):
            why = "is gone" if gone else "was taken off the list" if removed else "fell silent"
            self._tell(f"{seat.guest.name} {why}; ready for the next head")
            self._leave(kill=True)

    def _look(self, server: Server, seat: Seat) -> None:
        """Hand on what the stage has made. Raises what kept it from loading, or ended it."""
        session = seat.guest.session
        if not seat.loaded and _readable(seat.crew.outputs):
            (loaded,) = seat.crew.loaded(LOADED_S)
            seat.loaded = True
            self._tell(f"stage {loaded.stage} is loaded: {loaded.layers} layers in {loaded.load_s:.1f} s")
            self._answer(server, seat.guest, Accepted(session, loaded))
        while seat.inlet.pending():
            header, *payload = seat.inlet.take()
            self._answer(server, seat.guest, Hop(session, bytes(header)), *payload)
            if isinstance(decode(header), End):
                self._tell(f"{seat.guest.name} has ended; ready for the next head")
                self._leave(kill=False)
                return
        if seat.loaded:
            seat.crew.check()

    def _leave(self, *, kill: bool) -> None:
        if self._seat is not None:
            seat, self._seat = self._seat, None
            seat.close(kill=kill)

    @staticmethod
    def _answer(server: Server, guest: _Guest, said: Said, payload: memoryview | bytes = b"") -> bool:
        return server.send(guest.route, pack(said, payload))


def _audience(peers: int) -> str:
    """Say how many may ask, and what to do where nobody may."""
    if not peers:
        return "0 peers: nobody may ask yet, `edgectl peers add NAME --key KEY` lets a head in"
    return "1 peer" if peers == 1 else f"{peers} peers"


def _gone(session: str, error: EdgedError) -> Refused:
    """Why there is no stage any more, by the kind of error."""
    match error:
        case DeviceLost():
            return Refused(session, "device_lost", error.message)
        case ConfigError():
            return Refused(session, "config", error.message)
        case _:
            return Refused(session, "backend", error.message)


def _spec(task: Task, offer: Offer) -> StageSpec:
    """The stage as this host starts it."""
    return StageSpec(
        stage=task.stage,
        stages=task.stages,
        share=task.share,
        device=offer.device,
        source=offer.source,
        dtype=task.dtype,
        sequences=task.sequences,
        micro_batch=task.micro_batch,
        context_tokens=task.context_tokens,
        mode=task.mode,
        transport="zeromq",
        threads=offer.threads,
        overlap=task.overlap,
        overlap_from=task.overlap_from,
        overlap_folder=OVERLAP_FOLDER,
        block=task.block,
        offload_cache=task.offload_cache,
    )


def _placed(spec: StageSpec, folder: str) -> StageSpec:
    return replace(spec, meeting=folder, parent=os.getpid())


def _readable(descriptors: Sequence[int]) -> bool:
    return bool(select.select(descriptors, [], [], 0)[0])


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C in a terminal reaches all processes: those that are started here leave it to this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
