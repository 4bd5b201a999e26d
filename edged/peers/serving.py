"""Answers that this node makes for peers: taken within quotas, made as any request, told token by token."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import msgspec

from edged.dispatch.peer import Offer
from edged.dispatch.requests import Completed, Delta, Rejected, Submission, Ticket
from edged.errors import Cancelled, EdgedError, NotFound, Overloaded, ProtocolError
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
    ToServer,
    read_to_server,
)
from edged.peers.quota import MESSAGE_BYTES, READ_AT_ONCE, Bucket
from edged.peers.task import check_task
from edged.transport.curve import Heard, Server

logger = logging.getLogger("edged.peers")

PATIENCE, IDLE_PATIENCE = 2, 20
"""A peer that was not heard for so many times `silence_s` is seen off: with answers, and without."""
MOST_TEXT = 2000
MOST_CONNECTIONS = 4
"""Of one peer: its daemon, its command line, and those that it has lost without our noticing."""
IGNORED_S = 1.0
"""Whoever sends nonsense is not listened to for so long, on any connection."""
REFUSALS_PER_S = 32.0
"""Tasks beyond the quota of bytes that a peer is told of; more go unanswered."""


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

    def __init__(self, route: bytes, key: str, peer: str, now: float) -> None:
        self.route = route
        self.key = key
        self.peer = peer
        self.heard_at = now
        self.session = 0
        self.work: dict[tuple[int, int], Making] = {}

    def leave(self) -> None:
        """Stop working for it."""
        for making in self.work.values():
            making.stop()
        self.work.clear()


class Account:
    """What a peer may say, whatever connections it comes in by."""

    def __init__(self, limits: Limits) -> None:
        self.bytes = Bucket(limits.bytes_per_s)
        self.refusals = Bucket(REFUSALS_PER_S)
        self.ignored_until = float("-inf")


class Counts(msgspec.Struct):
    """What came in since the start."""

    messages: int = 0
    """From listed peers, well-formed: what reached the application."""
    malformed: int = 0
    excessive: int = 0
    """Messages beyond a quota of bytes, or too soon behind a malformed one."""
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
        self._accounts: dict[str, Account] = {}
        """By key."""
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
            if self._shop.name_of(guest.key) != guest.peer:
                self._see_off(guest, "it is not on the list any more")
            elif now - guest.heard_at > patience * self._limits.silence_s:
                self._see_off(guest, "it is not heard any more")
        for key in [key for key in self._accounts if not self._shop.name_of(key)]:
            del self._accounts[key]

    def held(self) -> Mapping[str, int]:
        """Answers in the making, by peer."""
        held: Counter[str] = Counter()
        for guest in self._guests.values():
            held[guest.peer] += len(guest.work)
        return held

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
        guest, peer, now = self._guests.get(heard.route), self._shop.name_of(heard.key), self._clock()
        if guest is not None and (guest.key, guest.peer) != (heard.key, peer):
            self._see_off(guest, "it is not on the list any more")
            guest = None
        if not peer:
            return
        account = self._accounts.setdefault(heard.key, Account(self._limits))
        if now < account.ignored_until:
            self.counts.excessive += 1
            return
        guest = guest or self._welcome(heard, peer, now)
        guest.heard_at = now
        if not account.bytes.take(len(heard.body) + MESSAGE_BYTES, now):
            self.counts.excessive += 1
            self._refuse(guest, account, heard.body, now)
            return
        try:
            message = read_to_server(heard.body)
        except ProtocolError as error:
            self.counts.malformed += 1
            account.ignored_until = now + IGNORED_S
            self._see_off(guest, error.message[:MOST_TEXT])
            return
        self.counts.messages += 1
        self._answer(guest, message)

    def _answer(self, guest: Guest, message: ToServer) -> None:
        match message:
            case Ask():
                self._offer(guest, message)
            case Take():
                self._take(guest, message)
            case Drop(request, attempt):
                self._drop(guest, request, attempt)

    def _refuse(self, guest: Guest, account: Account, body: bytes, now: float) -> None:
        """Say that a task is beyond the quota: who is not told waits for its first token."""
        if not account.refusals.take(1, now):
            return
        try:
            message = read_to_server(body)
        except ProtocolError:
            return
        if isinstance(message, Take):
            self.counts.declined += 1
            error = Overloaded("this node takes no more bytes of this peer for now")
            self._say(guest, _declined((message.request, message.attempt), error))

    def _welcome(self, heard: Heard, peer: str, now: float) -> Guest:
        theirs = sorted(self._of(peer), key=lambda guest: (bool(guest.work), guest.heard_at))
        for former in theirs[: max(0, len(theirs) + 1 - MOST_CONNECTIONS)]:
            self._see_off(former, "it has newer connections")
        guest = self._guests[heard.route] = Guest(heard.route, heard.key, peer, now)
        logger.info("peer came in", extra={"peer": peer})
        return guest

    def _see_off(self, guest: Guest, why: str) -> None:
        self._guests.pop(guest.route, None)
        given_up = list(guest.work)
        guest.leave()
        for place in given_up:  # it may be there still, and waits
            self._say(guest, _declined(place, Cancelled(f"this answer was given up: {why}")))
        logger.info("peer left", extra={"peer": guest.peer, "why": why, "given_up": len(given_up)})

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
