"""The way to one peer: asks what it offers, hands it work, hears its tokens, notices when it is gone.

To the dispatcher it is one more worker of each stage whose model both have (`dispatch/remotes.py`).
Whatever goes wrong, the answers that it held go on at home from the tokens that arrived.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping

from edged.breaker import Breaker
from edged.dispatch.peer import NOTHING, Offer
from edged.dispatch.remotes import Remotes
from edged.errors import (
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    EdgedError,
    ProtocolError,
    TooLarge,
    from_code,
)
from edged.messages import Batch, Cancel, Done, Failed, Gone, Stop, Tokens, ToWorker, Work, encode
from edged.peers.book import Peer
from edged.peers.identity import Kin
from edged.peers.messages import (
    MOST_REMAINING_MS,
    VERSION,
    Answered,
    Ask,
    Declined,
    Drop,
    Dropped,
    Offers,
    Said,
    Take,
    read_from_server,
)
from edged.peers.quota import MESSAGE_BYTES, READ_AT_ONCE, Bucket
from edged.peers.seams import Patience, Wires
from edged.peers.seat import MOST_QUESTIONS, Held, Seat
from edged.peers.task import answer_tokens, read_answer
from edged.transport.curve import Line

logger = logging.getLogger("edged.peers")

CONNECT_S = 6.0
"""A connection that is not up by then is made anew; longer than libzmq takes to connect and shake hands."""
IDLE_PINGS = 5
"""A peer that nobody needs now is asked once where another one is asked so often."""
EVASIONS = 4
"""So many questions and times `silence_s` without an offer are silence, whatever else is said."""
STEADY_S = 30.0
"""A peer that has been up for so long has made up for its failures."""
CLIENTS_FAULT = (BadRequest, DeadlineExceeded, TooLarge)
"""Errors that would come at home too."""


class Link:
    """One peer as this node's worker."""

    def __init__(  # noqa: PLR0913 (each is a seam)
        self,
        peer: Peer,
        *,
        wires: Wires,
        remotes: Remotes,
        kins: Callable[[], Mapping[str, Kin]],
        patience: Patience,
        breaker: Breaker,
        bytes_per_s: float,
        clock: Callable[[], float],
        wanted: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self.peer = peer
        self._wanted, self._changed = wanted, changed
        self._wires, self._remotes, self._kins = wires, remotes, kins
        self._patience, self.breaker, self._clock = patience, breaker, clock
        self._bytes_per_s = bytes_per_s
        self._quota = Bucket(bytes_per_s)
        self._more = False
        """More is to be read in the next turn of the loop."""
        self._line: Line | None = None
        self._seats: dict[str, Seat] = {}
        """By stage."""
        self._nonce = self._session = 0
        self._asked: dict[int, float] = {}
        self._asked_at = float("-inf")
        self._opened_at = self._heard_at = self._offered_at = 0.0
        self._unanswered_since: float | None = None
        """When it was first asked something since it was last heard."""
        self._up_at: float | None = None
        self.offers: Offers | None = None
        self.rtt_s = 0.0
        self.reason = "it has not answered yet"
        self.failures = 0
        self.handed = 0
        self.returned = 0
        self.stale = 0

    # ------------------------------------------------------------------ life

    @property
    def up(self) -> bool:
        """Whether it is heard."""
        return self._up_at is not None

    @property
    def held(self) -> int:
        """Answers that it makes for us."""
        return sum(len(seat.held) for seat in self._seats.values())

    def _all_held(self) -> Iterator[Held]:
        return (held for seat in self._seats.values() for held in seat.held.values())

    @property
    def useful(self) -> bool:
        """Whether it could take an answer, now or when its own are finished."""
        return any(not seat.offer.hot for seat in self._seats.values())

    def look(self) -> None:
        """Do what is due: connect, ask, notice silence."""
        now = self._clock()
        if self._line is None:
            if not self.breaker.begin(now):
                return
            self._open()
        self.listen()
        if self._line is not None and now - self._asked_at >= self._pause_s():
            self._ask(now)
        if self._up_at is not None:
            self._judge(now, self._up_at)
        elif self._line is not None:
            self._insist(self._line, now)

    def hurry(self) -> None:
        """Try at once: somebody says that the peer is there now."""
        if not self.up:
            self.close(self.reason)
            self.breaker.reset()

    def _pause_s(self) -> float:
        """Between two questions: no hurry while the peer has nothing of ours and would get nothing."""
        return self._patience.ping_s * (1 if self.held or self._wanted() or not self.up else IDLE_PINGS)

    def _open(self) -> None:
        self._asked.clear()
        self._quota = Bucket(self._bytes_per_s)
        self._session = 1 + secrets.randbits(62)
        self._asked_at = float("-inf")
        try:
            self._line, self._opened_at = self._wires.open(self.peer, self.listen), self._clock()
        except ConfigError as error:
            self.reason = error.message
            self.breaker.failed(self._clock(), error.message)

    def _insist(self, line: Line, now: float) -> None:
        """See what becomes of a connection that is not up; a socket that was refused stays dead."""
        if line.quarrel.refused():
            self._fail(f"it {line.quarrel.reason()}")
        elif now - self._opened_at > CONNECT_S:
            self.reason = f"it {line.quarrel.reason()}"
            self._wires.close(line)
            self._line = None
            self._open()

    def close(self, reason: str) -> None:
        """Have its answers go on at home, and forget the connection; idempotent."""
        line, self._line, self._up_at, self.offers = self._line, None, None, None
        self._unanswered_since = None
        self.reason = reason
        if line is not None:
            self._wires.close(line)
        for seat in self._seats.values():
            self.returned += len(seat.held)
            self._remotes.leave(seat.worker, reason)
        self._seats.clear()
        self._changed()

    def _fail(self, reason: str) -> None:
        if self._line is None:
            return
        self.failures += 1
        given_back, news = self.held, self.up or reason != self.reason
        self.breaker.failed(self._clock(), reason)
        self.close(reason)
        wait_s = round(self.breaker.refusal_s(self._clock()), 2)
        extra = {"peer": self.peer.name, "why": reason, "given_back": given_back, "again_in_s": wait_s}
        if news:
            logger.warning("peer lost", extra=extra)

    def _judge(self, now: float, up_at: float) -> None:
        """Whether it still does what it is there for."""
        if self._silent(now):
            self._fail(f"silent for {self._patience.silence_s:g} s")
        elif any(held.stalled(now, self._patience.stall_s) for held in self._all_held()):
            self._fail(f"an answer had no token for {self._patience.stall_s:g} s")
        elif now - up_at > STEADY_S:
            self.breaker.completed()

    def _silent(self, now: float) -> bool:
        """Nothing was heard for `silence_s`, and half of it after a question: it may be us who slept."""
        asked_at, silence_s = self._unanswered_since, self._patience.silence_s
        mute = asked_at is not None and now - asked_at > silence_s / 2 and now - self._heard_at > silence_s
        return mute or (len(self._asked) > EVASIONS and now - self._offered_at > EVASIONS * silence_s)

    # ------------------------------------------------------------------- out

    def _ask(self, now: float) -> None:
        self._asked_at = now
        self._nonce += 1
        if self._unanswered_since is None:
            self._unanswered_since = now
        if self._line is not None and self._line.send(encode(Ask(VERSION, self._session, self._nonce))):
            self._asked[self._nonce] = now
            for seat in self._seats.values():
                seat.mark(self._nonce)
            while len(self._asked) > MOST_QUESTIONS:
                del self._asked[next(iter(self._asked))]

    def _take(self, stage: str, message: ToWorker) -> None:
        """What the dispatcher sends to the seat of a stage."""
        seat = self._seats.get(stage)
        if seat is None:
            return
        match message:
            case Batch(items):
                for work in items:
                    self._hand(seat, work)
            case Cancel(request, attempt):
                if held := seat.held.get((request, attempt)):
                    held.drop(self._clock())
                    self._send(Drop(request, attempt))
            case Stop():
                self._wires.soon(lambda: self._fail("it broke the protocol"))
            case _:
                return

    def _hand(self, seat: Seat, work: Work) -> None:
        try:
            payload, priority = self._remotes.task(work)
            most_tokens = answer_tokens(payload, seat.answer_tokens)
        except EdgedError as error:
            message = Failed(work.request, work.attempt, error.code, error.message)
            self._wires.soon(lambda: self._remotes.say(seat.worker, message))
            return
        seat.hand(work, most_tokens, self._clock())
        self.handed += 1
        self._send(
            Take(
                work.request,
                work.attempt,
                seat.identity,
                1,
                payload,
                min(work.remaining_ms, MOST_REMAINING_MS),
                priority,
                work.resume_tokens,
                work.resume_characters,
            )
        )

    def _send(self, message: Take | Drop) -> None:
        if self._line is None or not self._line.send(encode(message)):
            self._wires.soon(lambda: self._fail("it takes nothing any more"))

    # -------------------------------------------------------------------- in

    def listen(self) -> None:
        """Read what has arrived, some of it; the rest in the next turn of the loop."""
        line = self._line
        if line is None:
            return
        try:
            for number, body in enumerate(line.receive(), start=1):
                self._hear(body)
                if self._line is not line:
                    return
                if number >= READ_AT_ONCE:
                    self._listen_again()
                    return
        except ProtocolError as error:
            self._fail(error.message)

    def _listen_again(self) -> None:
        if not self._more:
            self._more = True
            self._wires.soon(self._listen_on)

    def _listen_on(self) -> None:
        self._more = False
        self.listen()

    def _hear(self, body: bytes) -> None:
        now = self._clock()
        if not self._quota.take(len(body) + MESSAGE_BYTES, now):
            raise ProtocolError("it says more than this node reads")
        message = read_from_server(body)
        self._heard_at, self._unanswered_since = now, None
        if isinstance(message, Offers):
            self._consider(message, now)
            return
        seat = next((s for s in self._seats.values() if (message.request, message.attempt) in s.held), None)
        if seat is None:
            self.stale += 1
            return
        self._report(seat, message, now)

    def _report(self, seat: Seat, message: Said | Answered | Declined | Dropped, now: float) -> None:
        place = message.request, message.attempt
        match message:
            case Said():
                self._said(seat, message, now)
            case Answered(payload=payload, compute_s=compute_s):
                read_answer(payload)
                work = seat.held.pop(place).work
                self.breaker.completed()
                self._remotes.say(seat.worker, self._done(work, payload, compute_s))
            case Declined():
                self._declined(seat, seat.held.pop(place).work, message)
            case Dropped():
                if seat.held[place].dropped_at is None:
                    raise ProtocolError("it dropped an answer that somebody waits for")
                del seat.held[place]
                self._remotes.say(seat.worker, Gone(*place))

    def _said(self, seat: Seat, said: Said, now: float) -> None:
        held = seat.held[said.request, said.attempt]
        if held.dropped_at is not None:
            return
        if not held.hear(len(said.tokens), len(said.text), now):
            raise ProtocolError("an answer is longer than what was asked for")
        message = Tokens(said.request, said.attempt, said.first, said.tokens, said.text)
        self._remotes.say(seat.worker, message)

    def _done(self, work: Work, payload: bytes, compute_s: float) -> Done | Failed:
        try:
            return Done(work.request, work.attempt, self._remotes.result(work, payload), compute_s, 1)
        except EdgedError as error:
            return Failed(work.request, work.attempt, error.code, error.message, error.param)

    def _declined(self, seat: Seat, work: Work, message: Declined) -> None:
        error = from_code(message.code, message.message, message.param)
        if isinstance(error, CLIENTS_FAULT):
            said = Failed(work.request, work.attempt, error.code, error.message, error.param)
            self._remotes.say(seat.worker, said)
            return
        self.returned += 1
        extra = {"peer": self.peer.name, "code": message.code, "why": message.message}
        logger.info("peer declined", extra=extra)
        self._remotes.give_back(seat.worker, work)

    # ---------------------------------------------------------------- offers

    def _consider(self, offers: Offers, now: float) -> None:
        """Take a seat in each stage whose model it has, and note how it could serve one more."""
        asked_at = self._asked.pop(offers.nonce, None)
        if asked_at is None:
            return
        self._asked = {nonce: at for nonce, at in self._asked.items() if nonce > offers.nonce}
        self.offers, self.rtt_s, self._offered_at = offers, now - asked_at, now
        if self._up_at is None:
            self._up_at = now
            self.breaker.heard()
            logger.info("peer is up", extra={"peer": self.peer.name, "node": offers.node})
        if offers.version != VERSION:
            self.reason = f"it speaks version {offers.version} of the protocol, this node {VERSION}"
        by_identity = {offer.identity: offer for offer in offers.models}
        for stage, kin in self._kins().items():
            better = next((offer for offer in offers.models if offer.identity in kin.better), NOTHING)
            offer = by_identity.get(kin.own, better)
            self._sit(stage, offer, offers.nonce, kin.answer_tokens, same=offer.identity == kin.own)
        if offers.version == VERSION:
            self.reason = "" if self._seats else "it serves none of the models that this node serves now"
        self._changed()

    def _sit(self, stage: str, offer: Offer, nonce: int, most_tokens: int, *, same: bool) -> None:
        seat = self._seats.get(stage)
        if seat is not None and (seat.identity, seat.grant) != (offer.identity, offer.grant):
            offer = NOTHING  # it finishes what it has, and joins as what it is now
            if not seat.held:
                del self._seats[stage]
                self._remotes.leave(seat.worker, "another model is served now")
                return
        if seat is None:
            if not offer.identity or not offer.grant:
                return
            seat = self._seats[stage] = Seat(offer.identity, offer.grant)
            seat.worker = self._remotes.join(
                stage, self.peer.name, offer.grant, "", lambda message: self._take(stage, message)
            )
        seat.offer, seat.answer_tokens = offer, most_tokens
        self._remotes.offered(seat.worker, offer, self.rtt_s, -seat.since(nonce), same=same)
