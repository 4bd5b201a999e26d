"""A stage on another host, as its pipeline sees it: a process here that hands on what comes and goes.

It connects, so that nothing listens on the head's host; consecutive stages on other hosts meet here.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from msgspec.structs import replace

from edged.errors import BackendError, ConfigError, DeviceLost, EdgedError
from edged.layers.links.pipes import Inlet, Outlet
from edged.layers.links.silence import Silence
from edged.layers.links.waiting import wait
from edged.layers.remote.clocks import Clock
from edged.layers.remote.messages import (
    VERSION,
    Accepted,
    Hello,
    Hop,
    Identity,
    Ping,
    Pong,
    Refused,
    Task,
    most_bytes,
    pack,
    unpack,
)
from edged.layers.spec import Loaded, StageSpec
from edged.layers.weights.fingerprint import identify
from edged.layers.wire import Broken, End, Header, Job, decode, encode
from edged.peers.book import Book, Peer, check_endpoint
from edged.peers.keys import key_file, read_keys
from edged.transport.curve import Beat, Line, context

CONNECT_S = 10.0
"""How long the other host may take to answer at all, or to let go of the head before this one."""
AGAIN_S = 0.3
STUCK = 0.9
"""Of a stage's `timeout_s`: the stage that holds a job is named before the head only knows that one does."""
_KINDS: dict[str, type[EdgedError]] = {"config": ConfigError, "device_lost": DeviceLost}


def run(spec: StageSpec, told: Callable[[Loaded], None], environment: Mapping[str, str]) -> None:
    """Have the stage loaded over there, say so, and hand on jobs until told to leave.

    Raises `ConfigError` for keys, address or model that do not fit, `BackendError` for a host that does not
    answer, falls silent or keeps a job for too long; the crew puts the stage's number before it.
    """
    state_dir = Path(spec.state_dir)
    with ExitStack() as undo:
        keys = read_keys(key_file(state_dir, environment), environment)
        peer = peer_at(check_endpoint(spec.device), Book(state_dir).read())
        identity = identify(spec.source)
        sockets = context()
        undo.callback(sockets.term)
        silence_s = spec.silence_s
        beat = Beat(round(silence_s * 500), round(silence_s * 2000))  # later than our own questions
        line = Line(
            sockets,
            keys,
            spec.device,
            peer.key,
            most_bytes=most_bytes(identity.architecture.hidden),
            beat=beat,
        )
        undo.callback(line.close)
        inlet = Inlet(f"ipc://{spec.meeting}/{spec.stage}")
        undo.callback(inlet.close)
        outlet = Outlet(f"ipc://{spec.meeting}/{spec.next}")
        undo.callback(outlet.close)
        relay = _Relay(spec, peer.name, line, inlet, outlet)
        told(relay.have_loaded(identity))
        relay.serve()


def peer_at(device: str, peers: Sequence[Peer]) -> Peer:
    """The peer that listens at an address, else the one on its host or of its host's name."""
    host = urlsplit(device).hostname
    exact = [peer for peer in peers if peer.endpoint == device]
    near = [peer for peer in peers if host in {peer.name, urlsplit(peer.endpoint).hostname}]
    found = exact or near
    if len(found) != 1:
        many = f"{len(found)} peers are" if found else "no peer is"
        raise ConfigError(
            f"{many} listed for {device}; on this host run: edgectl peers add NAME --endpoint {device} "
            "--key KEY, with the key that `edgectl layers serve` prints there",
            param="devices",
        )
    return found[0]


def task_of(spec: StageSpec) -> Task:
    """What the other host is told."""
    return Task(
        stage=spec.stage,
        stages=spec.stages,
        share=spec.share,
        dtype=spec.dtype,
        sequences=spec.sequences,
        micro_batch=spec.micro_batch,
        context_tokens=spec.context_tokens,
        mode=spec.mode,
        overlap=spec.overlap,
        overlap_from=spec.overlap_from,
        block=spec.block,
        offload_cache=spec.offload_cache,
        silence_s=spec.silence_s,
    )


class _Relay:
    def __init__(self, spec: StageSpec, name: str, line: Line, inlet: Inlet, outlet: Outlet) -> None:
        self._spec = spec
        self._where = f"host {name} ({spec.device})"
        self._line = line
        self._inlet = inlet
        self._outlet = outlet
        self._session = ""
        self._silence = Silence(spec.silence_s, time.monotonic())
        self._clock = Clock()
        self._there: dict[int, float] = {}
        """Jobs on the other host, and when they were sent."""
        self._ended = False

    # ---------------------------------------------------------------- until it is loaded

    def have_loaded(self, identity: Identity) -> Loaded:
        """Ask for the stage; again for a while where another head has it, which may be one that has died."""
        until_s = time.monotonic() + CONNECT_S
        while isinstance(answer := self._asked(identity, until_s), Refused):
            if answer.code != "busy" or time.monotonic() > until_s:
                raise self._refusal(answer)
            time.sleep(AGAIN_S)
        return answer.loaded

    def _asked(self, identity: Identity, until_s: float) -> Accepted | Refused:
        self._session = secrets.token_hex(8)
        hello = pack(Hello(VERSION, self._session, identity, task_of(self._spec)))
        while not self._line.send(hello):
            if self._line.quarrel.refused() or time.monotonic() > until_s:
                raise BackendError(f"{self._where} {self._line.quarrel.reason()}")
            time.sleep(AGAIN_S / 10)
        self._line.quarrel.forget()
        self._silence = Silence(max(self._spec.silence_s, CONNECT_S), time.monotonic())
        while True:
            for answer in self._heard():
                if isinstance(answer, Accepted | Refused):
                    self._silence = Silence(self._spec.silence_s, time.monotonic())
                    return answer
            self._check()
            wait([self._line], (), self._silence.tick_s)

    def _refusal(self, refused: Refused) -> EdgedError:
        return _KINDS.get(refused.code, BackendError)(f"{self._where}: {refused.why}")

    # ---------------------------------------------------------------- while it runs

    def serve(self) -> None:
        """Hand on until the end of jobs has gone round."""
        while not self._ended:
            for answer in self._heard():
                if isinstance(answer, Refused):
                    raise self._refusal(answer)
            while self._inlet.pending():
                self._send(self._inlet.take())
            self._check()
            if not self._ended:
                wait([self._line, self._inlet], (), self._silence.tick_s)

    def _heard(self) -> list[Accepted | Refused]:
        """Deal with what has come from the other host; return what is not to be handed on."""
        answers: list[Accepted | Refused] = []
        for body in self._line.receive():
            said, payload = unpack(body)
            self._silence.heard()
            match said:
                case Hop(session, header) if session == self._session:
                    self._hand_on(decode(header), payload)
                case Ping(session):
                    self._line.send(pack(Pong(session)))
                case Accepted(session) | Refused(session) if session == self._session:
                    answers.append(said)
                case _:
                    pass
        return answers

    def _send(self, frames: Sequence[memoryview]) -> None:
        header = bytes(frames[0])
        message = decode(header)
        if isinstance(message, Job):
            self._there[message.number] = time.monotonic()
        payload = frames[1] if len(frames) > 1 else b""
        if not self._line.send(pack(Hop(self._session, header), payload)):
            raise BackendError(f"{self._where} {self._closed()}")

    def _hand_on(self, header: Header, payload: memoryview) -> None:
        now_s = time.monotonic()
        match header:
            case Job(number) if header.timings:
                sent_s = self._there.pop(number, now_s)
                *before, last = header.timings
                here = self._clock.here(last, sent_s, now_s)
                self._outlet.send(encode(replace(header, timings=(*before, here))), payload)
            case Broken():
                self._there.pop(next(iter(self._there), 0), None)
                self._outlet.send(encode(header))
            case End():
                self._outlet.send(encode(header))
                self._ended = True
            case _:
                raise BackendError(f"{self._where} answered what is no finished job")

    def _check(self) -> None:
        now_s = time.monotonic()
        if self._line.quarrel.closed() and not self._ended:
            raise BackendError(f"{self._where} {self._closed()}")
        if self._silence.ask(now_s):
            self._line.send(pack(Ping(self._session)))
        if self._silence.lost(now_s):
            raise BackendError(
                f"{self._where} has said nothing for {self._silence.silence_s:g} s: the host is down, or the "
                "network between"
            )
        oldest = next(iter(self._there.items()), None)
        if oldest is not None and now_s - oldest[1] > STUCK * self._spec.timeout_s:
            raise BackendError(
                f"{self._where} has not finished job {oldest[0]} within {now_s - oldest[1]:.0f} s"
            )

    @staticmethod
    def _closed() -> str:
        return "closed the connection: `edgectl layers serve` was stopped there, or died"
