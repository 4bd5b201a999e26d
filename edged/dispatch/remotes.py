"""Peers as workers of a stage: what the dispatcher sends them and what they say, without processes.

A peer's link asks to `join` and gets a name that is never used twice; it `leave`s when the peer is not heard
any more. In between it speaks as any worker does, so that leases, cancels, deadlines and the resumption of
answers are those of every worker.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.dispatch.arenas import Arenas
from edged.dispatch.events import Died, Event, Joined, Returned, Spoke, Waited
from edged.dispatch.ledger import Ledger
from edged.dispatch.peer import Offer, Pressure
from edged.messages import FromWorker, Priority, SlotRef, ToWorker, Work
from edged.stages.keeping import kept_payload

Mailbox = Callable[[ToWorker], None]


class Remotes:
    """The dispatcher's side of every peer that works for it."""

    def __init__(self, ledger: Ledger, arenas: Arenas, happened: Callable[[Event], None]) -> None:
        self._ledger = ledger
        self._arenas = arenas
        self._happened = happened
        self._mailboxes: dict[str, Mailbox] = {}

    def join(self, stage: str, peer: str, credit: int, variant: str, mailbox: Mailbox) -> str:
        """Let a peer work for a stage, so many items at a time; returns its name as a worker."""
        self._ledger.last_worker += 1
        worker = f"{stage}-{self._ledger.last_worker}"
        self._mailboxes[worker] = mailbox
        self._happened(Joined(worker, stage, peer, credit, variant))
        return worker

    def leave(self, worker: str, reason: str) -> None:
        """What it held goes on elsewhere, and what it says from now on matches nothing; idempotent."""
        if self._mailboxes.pop(worker, None) is not None:
            self._happened(Died(worker, reason, killed=False))

    def take(self, worker: str, message: ToWorker) -> bool:
        """Pass a message on if it is for a peer."""
        mailbox = self._mailboxes.get(worker)
        if mailbox is None:
            return False
        mailbox(message)
        return True

    def say(self, worker: str, message: FromWorker) -> None:
        """A peer's word as its worker's."""
        self._happened(Spoke(worker, message))

    def give_back(self, worker: str, work: Work) -> None:
        """A peer does not do a piece of work: it goes on elsewhere."""
        self._happened(Returned(worker, work.request, work.attempt))

    def offered(self, worker: str, offer: Offer, rtt_s: float, balance: int, *, same: bool) -> None:
        """How the peer could serve one more now; `balance`, `same`: see `Remote`."""
        known = self._ledger.workers.get(worker)
        if known is None or known.remote is None:
            return
        remote = known.remote
        remote.offer, remote.rtt_s, remote.balance, remote.same = offer, rtt_s, balance, same
        self._happened(Waited())

    def press(self, pressure: Pressure) -> None:
        """From now on the governor wants this of peers."""
        if pressure != self._ledger.pressure:
            self._ledger.pressure = pressure
            self._happened(Waited())

    def task(self, work: Work) -> tuple[bytes, Priority]:
        """A piece of work as it travels: its payload, and its class; `CorruptSlot` if it is none."""
        request = self._ledger.requests.get(work.request)
        payload = kept_payload(bytes(self._arenas.read(work.source)), work.keep)
        return payload, request.priority if request else "batch"

    def result(self, work: Work, payload: bytes) -> SlotRef:
        """Write what a peer answered where the worker would have; `TooLarge` where it does not fit."""
        return self._arenas.write_result(work.target, payload)
