"""One node among its peers: comes up, keeps the list, asks and serves, says how things stand."""

from __future__ import annotations

import asyncio
import logging
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from edged.breaker import Breaker
from edged.config.tables import Config, Rung
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.peer import Offer, Pressure
from edged.dispatch.requests import Submission, Ticket
from edged.errors import ConfigError
from edged.governor.force import InForce
from edged.governor.governing import Governing
from edged.models.store import ModelStore
from edged.peers.book import Book, Peer
from edged.peers.identity import Kin, identity_of, kin_of
from edged.peers.kept_up import kept_up
from edged.peers.keys import key_file, read_keys
from edged.peers.link import Link
from edged.peers.messages import OVERHEAD_BYTES
from edged.peers.offers import offers_of
from edged.peers.quota import ANSWERS_BYTES_PER_S
from edged.peers.seams import Patience
from edged.peers.serving import Counts, Limits, Serving
from edged.peers.standing import peer_status
from edged.peers.wires import LoopWires, beat_of
from edged.report import PeersStatus
from edged.transport.curve import Gatekeeper, KeyPair, Server
from edged.workers.spec import StageSpec

logger = logging.getLogger("edged.peers")

LOOK_AGAIN_S = 2.0
"""What kept peers from coming up (an address that is not there yet) is tried again so often."""
LOOKS = 4
"""How often everything is looked after between two questions to a peer."""
FAILURES_TO_OPEN = 1
"""A peer that failed once is left alone at once: its answers have a home."""
OFF = "peers are switched off (peers.enabled)"


def sheds(force: InForce) -> bool:
    """Whether a rung refuses work."""
    return force.settings.shed_batch or force.settings.busy_share < 1


def is_hot(force: InForce, ladder: Sequence[Rung]) -> bool:
    """Whether a box takes nothing of others: it is where it would hand work away itself, if it could.

    By its place on the ladder, not by what is done there: that a peer is gone, or hot as well, cools nothing.
    """
    first = next((number for number, rung in enumerate(ladder) if rung.peer), len(ladder))
    return force.rung >= first or sheds(force)


def pressure_of(force: InForce) -> Pressure:
    """What a rung wants of peers: answers that have begun leave only where the box sheds work beside."""
    away = force.settings.peer
    return Pressure(away, away and sheds(force))


class Node:
    """Peers of one daemon. Construct, `begin` on the running loop, `run` beside everything, `close`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        config: Callable[[], Config],
        governing: Governing,
        store: ModelStore,
        submit: Callable[[Submission], Ticket],
    ) -> None:
        self._dispatcher = dispatcher
        self._config = config
        self._governing = governing
        self._store = store
        self._kin: dict[str, Kin] = {}
        """By stage, as it was when it last changed."""
        self.submit = submit
        self._problem = ""
        self._keys = KeyPair("", "")
        self._wires: LoopWires | None = None
        self._gate: Gatekeeper | None = None
        self._server: Server | None = None
        self._serving: Serving | None = None
        self._links: dict[str, Link] = {}
        self._peers: dict[str, Peer] = {}
        self._names: dict[str, str] = {}
        """By public key."""
        self._book = Book(config().daemon.state_dir)
        self._version = (-1, -1)

    @property
    def name(self) -> str:
        """How this node calls itself."""
        return self._dispatcher.ledger.node

    # ------------------------------------------------------------------ life

    def begin(self, environment: Mapping[str, str]) -> None:
        """Come up if the configuration says so; what is in the way is a note in `status`, and tried again."""
        self._environment = environment
        self._dispatcher.ledger.node = self._config().peers.name or _machine_name()
        if not self._config().peers.enabled:
            self._governing.offer("peer", available=False, why=OFF)
            return
        try:
            self._come_up()
        except ConfigError as error:
            self.close()
            if error.message != self._problem:
                logger.error("peers stay off", extra={"why": error.message})
            self._problem = error.message
            self._governing.offer("peer", available=False, why=error.message)
        else:
            self._problem = ""

    def _come_up(self) -> None:
        config = self._config()
        self._keys = read_keys(key_file(config.daemon.state_dir, self._environment), self._environment)
        self._version = (-1, -1)
        self._wires = LoopWires(self._keys, self._most_bytes + OVERHEAD_BYTES, beat_of(self._patience))
        self._gate = self._wires.gate(lambda key: key in self._names)
        self._read_book()
        if config.peers.listen:
            server = self._server = self._wires.serve(config.peers.listen)
            limits = Limits(
                requests=config.peers.most_requests,
                bytes_per_s=config.peers.most_kib_per_s * 1024,
                silence_s=config.peers.silence_s,
            )
            again = partial(self._again, self._listen)
            self._serving = Serving(server, self, limits, time.monotonic, again)
            self._wires.watch(server, self._listen)
        logger.info("peers are on", extra={"node": self.name, "listen": config.peers.listen})

    def close(self) -> None:
        """Take every answer home, stop those that are made for others, close everything; idempotent."""
        for link in self._links.values():
            link.close("this node stops")
        self._links.clear()
        if self._serving is not None:
            self._serving.close()
        if self._wires is not None:
            for socket in (self._server, self._gate):
                if socket is not None:
                    self._wires.close(socket)
            self._wires.end()
        self._wires = self._gate = self._server = self._serving = None

    async def run(self) -> None:
        """Look after everything, for ever."""
        if self._config().peers.enabled:
            await kept_up(self._watch, self._broken)

    def _broken(self, error: BaseException) -> None:
        """Something went wrong that nobody thought of: start afresh."""
        logger.error("peers broke down and come up again", exc_info=error)
        self._problem = f"they broke down ({type(error).__name__}: {error}) and come up again"
        self.close()
        self._governing.offer("peer", available=False, why=self._problem)

    async def _watch(self) -> None:
        while True:
            if self._wires is None:
                await asyncio.sleep(LOOK_AGAIN_S)
                self.begin(self._environment)
                continue
            self._look()
            busy = self._wanted() or any(link.held or not link.up for link in self._links.values())
            await asyncio.sleep(self._config().peers.ping_s / (LOOKS if busy else 1))

    def _look(self) -> None:
        self._keep_book()
        self._dispatcher.remotes.press(pressure_of(self._governing.force))
        if self._gate is not None:
            self._gate.answer()
        self._listen()
        if self._serving is not None:
            self._serving.look()
        for link in list(self._links.values()):
            link.look()
        self._tell_governor()

    def _tell_governor(self) -> None:
        useful = any(link.up and link.useful for link in self._links.values())
        self._governing.offer("peer", available=useful, why="" if useful else self._why_none())

    def _wanted(self) -> bool:
        """Whether an answer would be handed to a peer now, or soon."""
        ledger = self._dispatcher.ledger
        return ledger.pressure.away or any(stage.queue and stage.remotes for stage in ledger.stages.values())

    def _why_none(self) -> str:
        if not self._links:
            return "no peer is listed; see `edgectl peers add`"
        return "no peer is up and cool: " + "; ".join(
            f"{name}: {link.reason or 'hot, or without a model of this node'}"
            for name, link in sorted(self._links.items())
        )

    def _listen(self) -> None:
        if self._serving is not None:
            self._serving.listen()

    def _again(self, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(call)

    # ------------------------------------------------------------------ list

    def _keep_book(self) -> None:
        if self._book.version() == self._version:
            return
        try:
            self._read_book()
        except ConfigError as error:
            if error.message != self._problem:
                logger.error("the list of peers stays as it was", extra={"why": error.message})
            self._problem = error.message
        else:
            self._problem = ""

    def _read_book(self) -> None:
        """Adopt the list: links to new peers, none to those that are gone or have changed."""
        version, peers = self._book.version(), {peer.name: peer for peer in self._book.read()}
        for name in [name for name, link in self._links.items() if peers.get(name) != link.peer]:
            self._links.pop(name).close("it is not on the list any more")
        for link in self._links.values():
            link.hurry()
        self._version, self._peers = version, peers
        self._names = {peer.key: name for name, peer in peers.items()}
        for name, peer in peers.items():
            if peer.endpoint and name not in self._links:
                self._links[name] = self._link(peer)

    def _link(self, peer: Peer) -> Link:
        assert self._wires is not None
        settings = self._config().peers
        return Link(
            peer,
            wires=self._wires,
            remotes=self._dispatcher.remotes,
            kins=self._kins,
            patience=self._patience,
            breaker=Breaker(FAILURES_TO_OPEN, settings.first_wait_s, settings.longest_wait_s),
            bytes_per_s=max(settings.most_kib_per_s * 1024, ANSWERS_BYTES_PER_S),
            clock=time.monotonic,
            wanted=self._wanted,
            changed=self._tell_governor,
        )

    @property
    def _patience(self) -> Patience:
        settings = self._config().peers
        return Patience(ping_s=settings.ping_s, silence_s=settings.silence_s, stall_s=settings.stall_s)

    @property
    def _most_bytes(self) -> int:
        return self._config().queue.slot_bytes

    # ------------------------------------------------------------------ shop

    def identities(self) -> dict[str, str]:
        """By generator stage: which model it serves now, as peers compare it."""
        return {name: identity_of(spec, details) for name, (spec, details) in self._served().items()}

    def _kins(self) -> dict[str, Kin]:
        for name, (spec, details) in self._served().items():  # a stage that is down stays what it was
            known = identity_of(spec, details)
            if self._kin.get(name, Kin("")).own != known:  # files are looked at once after a change
                self._kin[name] = kin_of(spec, details, self._better(spec))
        return self._kin

    def _better(self, spec: StageSpec) -> Iterator[str]:
        """Digests of the variants of a stage's model that are better than the one that it runs."""
        model = self._store.catalogue.models.get(spec.variant.model)
        rungs = model.variants if model is not None else ()
        if spec.variant.name in {rung.name for rung in rungs}:
            for rung in takewhile(lambda each: each.name != spec.variant.name, rungs):
                yield rung.sha256 or self._store.recorded_digest(spec.variant.model, rung.name)

    def _served(self) -> dict[str, tuple[StageSpec, dict[str, Any]]]:
        """By generator stage with a worker: what it runs, and what that says about itself."""
        found: dict[str, tuple[StageSpec, dict[str, Any]]] = {}
        for name, stage in self._dispatcher.ledger.stages.items():
            spec = self._dispatcher.serving(name) if stage.streaming else None
            workers = (self._dispatcher.ledger.workers[worker] for worker in sorted(stage.workers))
            details = [worker.details for worker in workers if worker.state == "ready"]
            if spec is not None and details:
                found[name] = spec, details[-1]
        return found

    def name_of(self, key: str) -> str:
        """See `Shop.name_of`."""
        return self._names.get(key, "")

    def stage_of(self, identity: str) -> str:
        """See `Shop.stage_of`."""
        served = self.identities().items()
        return next((stage for stage, known in served if known == identity), "")

    def offers(self, held: int) -> tuple[str, str, tuple[Offer, ...]]:
        """See `Shop.offers`."""
        force = self._governing.force
        offers = offers_of(
            self._dispatcher.ledger,
            self.identities(),
            grant=self._config().peers.most_requests,
            held=held,
            most_bytes=self._most_bytes,
            hot=is_hot(force, self._config().governor.ladder),
        )
        return self.name, force.name, offers

    # ---------------------------------------------------------------- status

    def status(self) -> PeersStatus | None:
        """How things stand; None while peers are switched off."""
        settings = self._config().peers
        if not settings.enabled:
            return None
        counts = self._serving.counts if self._serving else Counts()
        held = self._serving.held() if self._serving else {}
        pressure = self._dispatcher.ledger.pressure
        now = time.monotonic()
        return PeersStatus(
            node=self.name,
            listen=settings.listen if self._server else "",
            key=self._keys.public,
            problem=self._problem,
            away=pressure.away,
            urgent=pressure.urgent,
            peers=tuple(
                peer_status(peer, self._links.get(name), held.get(name, 0), now)
                for name, peer in self._peers.items()
            ),
            refused=self._gate.refused if self._gate else 0,
            messages=counts.messages,
            malformed=counts.malformed,
            excessive=counts.excessive,
            taken=counts.taken,
            declined=counts.declined,
        )

    def notes(self) -> tuple[str, ...]:
        """What an operator should read."""
        return (f"peers: {self._problem}",) if self._problem else ()


def _machine_name() -> str:
    return re.sub(r"[^a-z0-9._-]", "-", platform.node().lower())[:64] or "edged"
