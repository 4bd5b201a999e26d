"""Answers that this node makes for peers: taken within quotas, made as any request, told token by token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import msgspec

from edged.dispatch.peer import Offer
from edged.dispatch.requests import Completed, Delta, Rejected, Submission, Ticket
from edged.errors import EdgedError, NotFound, Overloaded, ProtocolError
from edged.messages import encode
from edged.peers.messages import (
    VERSION,
    Answered,
    Ask,
    Declined,
    Drop,
    Dropped,
    FromServer,
    Offers,
    Said,
    Take,
    read_to_server,
)
from edged.peers.quota import MESSAGE_BYTES, READ_AT_ONCE, Bucket
from edged.peers.task import check_task
from edged.transport.curve import Heard, Server

logger = logging.getLogger("edged.peers")

PATIENCE, IDLE_PATIENCE = 2, 20
"""A peer that was not heard for so many times `silence_s` is seen off: with answers, and without."""
MOST_TEXT = 2000


class Shop(Protocol):
    """What the serving side needs of its node."""

    def name_of(self, key: str, /) -> str:
        """Of the peer with that key; empty when it is not on the list any more."""
        ...

    def offers(self, held: int, /) -> tuple[str, str, tuple[Offer, ...]]:
        """The node's name, its rung, and what it offers a peer that holds so many answers."""
        ...

    def stage_of(self, identity: str, /) -> str:
        """The stage that serves such a model; empty: none."""
        ...

    def submit(self, submission: Submission, /) -> Ticket:
        """See `FrontDoor.submit`."""
        ...


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one peer."""

    requests: int
    bytes_per_s: float
    silence_s: float


class Making(NamedTuple):
    """An answer in the making."""

    ticket: Ticket
    task: asyncio.Task[None]

    def stop(self) -> None:
        """Give it up; idempotent."""
        self.ticket.cancel()  # not only by the task, which may not have begun and then runs no `finally`
        self.task.cancel()


class Guest:
    """One connection of a peer and the answers that are made for it."""

    def __init__(self, route: bytes, peer: str, limits: Limits, now: float) -> None:
        self.route = route
        self.peer = peer
        self.heard_at = now
        self.session = 0
        self.bucket = Bucket(limits.bytes_per_s)
        self.work: dict[tuple[int, int], Making] = {}

    def leave(self) -> None:
        """Stop working for it."""
        for making in self.work.values():
            making.stop()
        self.work.clear()


class Counts(msgspec.Struct):
    """What came in since the start."""

    messages: int = 0
    """From listed peers, well-formed: what reached the application."""
    malformed: int = 0
    excessive: int = 0
    """Messages beyond a quota of bytes."""
    taken: int = 0
    declined: int = 0


class Serving:
    """The server's side of all peers."""

    def __init__(
        self,
        server: Server,
        shop: Shop,
        limits: Limits,
        clock: Callable[[], float],
        again: Callable[[], None],
    ) -> None:
        self._server = server
        self._shop = shop
        self._limits = limits
        self._clock = clock
        self._again = again
        self._guests: dict[bytes, Guest] = {}
        self.counts = Counts()

    def listen(self) -> None:
        """Read what has arrived, some of it; `again` is called when there is more."""
        for number, heard in enumerate(self._server.receive(), start=1):
            self._hear(heard)
            if number >= READ_AT_ONCE:
                self._again()
                return

    def look(self) -> None:
        """Give up the answers of peers that are not heard any more, or not on the list."""
        now = self._clock()
        for guest in list(self._guests.values()):
            patience = PATIENCE if guest.work else IDLE_PATIENCE
            if now - guest.heard_at > patience * self._limits.silence_s:
                self._see_off(guest, "it is not heard any more")

    def held(self) -> Mapping[str, int]:
        """Answers in the making, by peer."""
        return {guest.peer: self._held_by(guest.peer) for guest in self._guests.values()}

    def _of(self, peer: str) -> list[Guest]:
        return [guest for guest in self._guests.values() if guest.peer == peer]

    def _held_by(self, peer: str) -> int:
        return sum(len(guest.work) for guest in self._of(peer))

    def close(self) -> None:
        """Stop working for everybody."""
        for guest in list(self._guests.values()):
            guest.leave()
        self._guests.clear()

    # ------------------------------------------------------------- messages

    def _hear(self, heard: Heard) -> None:
        peer, now = self._shop.name_of(heard.key), self._clock()
        if not peer:  # removed since it came in
            if guest := self._guests.get(heard.route):
                self._see_off(guest, "it is not on the list any more")
            return
        guest = self._guests.get(heard.route) or self._welcome(heard.route, peer, now)
        guest.heard_at = now
        if not guest.bucket.take(len(heard.body) + MESSAGE_BYTES, now):
            self.counts.excessive += 1
            return
        try:
            message = read_to_server(heard.body)
        except ProtocolError as error:
            self.counts.malformed += 1
            self._see_off(guest, error.message[:MOST_TEXT])
            return
        self.counts.messages += 1
        match message:
            case Ask():
                self._offer(guest, message)
            case Take():
                self._take(guest, message)
            case Drop(request, attempt):
                self._drop(guest, request, attempt)

    def _welcome(self, route: bytes, peer: str, now: float) -> Guest:
        self._guests[route] = Guest(route, peer, self._limits, now)
        logger.info("peer came in", extra={"peer": peer})
        return self._guests[route]

    def _see_off(self, guest: Guest, why: str) -> None:
        self._guests.pop(guest.route, None)
        given_up = len(guest.work)
        guest.leave()
        logger.info("peer left", extra={"peer": guest.peer, "why": why, "given_up": given_up})

    def _offer(self, guest: Guest, ask: Ask) -> None:
        if ask.session != guest.session:
            guest.session = ask.session
            for former in [each for each in self._of(guest.peer) if each.session not in {0, ask.session}]:
                self._see_off(former, "it came in anew")
        node, rung, models = self._shop.offers(self._held_by(guest.peer))
        self._say(guest, Offers(VERSION, ask.nonce, node, rung, models if ask.version == VERSION else ()))

    def _say(self, guest: Guest, message: FromServer) -> None:
        if not self._server.send(guest.route, encode(message)) and guest.route in self._guests:
            self._see_off(guest, "it takes nothing any more")

    def _drop(self, guest: Guest, request: int, attempt: int) -> None:
        if making := guest.work.pop((request, attempt), None):
            making.stop()
        self._say(guest, Dropped(request, attempt))

    # --------------------------------------------------------------- answers

    def _take(self, guest: Guest, take: Take) -> None:
        place = take.request, take.attempt
        try:
            ticket = self._shop.submit(self._submission(guest, take))
        except EdgedError as error:
            self.counts.declined += 1
            self._say(guest, _declined(place, error))
            return
        self.counts.taken += 1
        task = asyncio.ensure_future(self._make(guest, place, len(take.tokens), ticket))
        guest.work[place] = Making(ticket, task)

    def _submission(self, guest: Guest, take: Take) -> Submission:
        if (take.request, take.attempt) in guest.work:
            raise ProtocolError("this answer is in the making already")
        if self._held_by(guest.peer) >= self._limits.requests:
            raise Overloaded(f"this node makes {self._limits.requests} answers at a time for one peer")
        check_task(take.payload)
        stage = self._shop.stage_of(take.identity)
        if not stage:
            raise NotFound("this node does not serve that model any more")
        return Submission(
            route=(stage,),
            operation="chat",
            payload=take.payload,
            deadline_s=max(0.001, take.remaining_ms / 1000),
            priority=take.priority,
            pipeline=f"peer:{guest.peer}",
            hops=take.hops,
            resume_tokens=take.tokens,
            resume_characters=take.characters,
        )

    async def _make(self, guest: Guest, place: tuple[int, int], known: int, ticket: Ticket) -> None:
        try:
            async for event in ticket:
                match event:
                    case Delta(text, count, ids):
                        self._say(guest, Said(*place, known, ids, text))
                        known += count
                    case Completed():
                        compute_s = event.timings[-1].compute_s if event.timings else 0.0
                        self._end(guest, place, Answered(*place, event.payload, compute_s))
                    case Rejected(error):
                        self._decline(guest, place, error)
        finally:
            ticket.cancel()

    def _end(self, guest: Guest, place: tuple[int, int], message: FromServer) -> None:
        guest.work.pop(place, None)
        self._say(guest, message)

    def _decline(self, guest: Guest, place: tuple[int, int], error: EdgedError) -> None:
        self.counts.declined += 1
        self._end(guest, place, _declined(place, error))


def _declined(place: tuple[int, int], error: EdgedError) -> Declined:
    param = error.param[:64] if error.param else None
    return Declined(*place, error.code, error.message[:MOST_TEXT], param)
