"""How requests end: exactly one terminal event, every slot given back: pure."""

from __future__ import annotations

from edged.dispatch.events import Command, Refuse, Send
from edged.dispatch.ledger import Ledger, Request
from edged.errors import EdgedError
from edged.messages import Cancel


def end(ledger: Ledger, request: Request) -> None:
    """Give back every slot of a request that no worker holds, and forget it."""
    ledger.release(request.source)
    if request.target is not None:
        ledger.release(request.target)
    request.phase = "ended"
    del ledger.requests[request.id]


def requeue(ledger: Ledger, request: Request, now: float) -> None:
    """Put a request that no worker holds any more back to its place in the queue of its stage."""
    if request.target is not None:
        ledger.release(request.target)
    request.target, request.worker, request.phase, request.recalled = None, "", "queued", False
    request.queued_at = now
    ledger.stages[request.stage].queue.put(request)


def refuse(ledger: Ledger, request: Request, error: EdgedError) -> list[Command]:
    """End a request that no worker holds; its client hears once, and only if it has not yet."""
    told = request.phase == "leaving"
    end(ledger, request)
    if told:
        return []
    ledger.count_rejection(error.code)
    return [Refuse(request.id, error)]


def abandon(ledger: Ledger, number: int, error: EdgedError, *, told: bool = False) -> list[Command]:
    """End a request for its client now; a worker that holds it is told, and its slots wait for that."""
    request = ledger.requests.get(number)
    if request is None or request.phase == "leaving":
        return []
    ledger.count_rejection(error.code)
    commands: list[Command] = [] if told else [Refuse(number, error)]
    if request.phase == "queued":
        ledger.stages[request.stage].queue.remove(number)
        end(ledger, request)
        return commands
    request.phase = "leaving"
    return [*commands, Send(request.worker, Cancel(number, request.attempt))]


def abandon_all(ledger: Ledger, error: EdgedError) -> list[Command]:
    """End every request: the drain ran out of time."""
    return [command for number in list(ledger.requests) for command in abandon(ledger, number, error)]
