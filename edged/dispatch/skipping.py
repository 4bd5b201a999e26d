"""Which requests pass a stage by, and what is learnt from those that do not: pure.

A request that passes a stage by keeps its input slot: the next stage reads what the stage before has written.
No slot is leased or given back for it, so the books of the ledger are as for any request that waits.
"""

from __future__ import annotations

from edged.dispatch.events import Command, SkippingAsked
from edged.dispatch.ledger import Ledger, Request
from edged.dispatch.passing import Judged
from edged.messages import Judgement


def join(ledger: Ledger, request: Request, now: float) -> None:
    """Queue a request where it is, or at the first stage from there that it does not pass by."""
    while _passes(ledger, request):
        _pass_by(ledger, request)
    request.queued_at = now
    ledger.stages[request.stage].queue.put(request)


def _passes(ledger: Ledger, request: Request) -> bool:
    """Whether a request passes by the stage where it is; of those whose margin allows it, some do not."""
    passing = ledger.stages[request.stage].passing
    rule = passing.rule
    if rule is None or not may_pass(request.route, request.position, request.operation):
        return False
    if rule.everything:
        return True
    margin, own = request.grounds.margin, request.grounds.generation == rule.own_generation != 0
    if margin is None or not margin >= (rule.own_from_margin if own else rule.from_margin):
        return False
    passing.eligible += 1
    return passing.eligible % rule.sample_every != 0


def may_pass(route: tuple[str, ...], position: int, operation: str) -> bool:
    """Whether the stage at `position` gives what it takes (a chat's task), and another stage follows."""
    return operation == "chat" and position + 1 < len(route)


def _pass_by(ledger: Ledger, request: Request) -> None:
    stage, grounds = ledger.stages[request.stage], request.grounds
    stage.passing.skipped += 1
    stage.passing.judged.append(Judged(grounds.generation, grounds.margin, None))
    grounds.skipped = (*grounds.skipped, stage.name)
    grounds.keep = stage.passing.rule.keep if stage.passing.rule else 0
    request.position += 1


def change(ledger: Ledger, event: SkippingAsked, now: float) -> list[Command]:
    """Let requests pass a stage by under another rule; who waits in front of it goes on at once if it may."""
    stage = ledger.stages[event.stage]
    stage.passing.rule = event.rule
    if event.rule is None or not event.rule.everything:
        return []
    for number in list(stage.queue):
        request = ledger.requests[number]
        if may_pass(request.route, request.position, request.operation):
            stage.queue.remove(number)
            request.suspicion = request.attempts_here = 0
            join(ledger, request, now)
    return []


def note(ledger: Ledger, request: Request, variant: str, judgement: Judgement | None) -> None:
    """Count a request that did not pass its stage by, and remember what the stage thinks of its result."""
    grounds, passing = request.grounds, ledger.stages[request.stage].passing
    passing.stayed += may_pass(request.route, request.position, request.operation)
    if judgement is None:
        return
    if judgement.margin is not None:
        grounds.margin, grounds.generation = judgement.margin, judgement.generation
    if judgement.missed is not None:
        passing.judged.append(Judged(grounds.generation, grounds.margin, judgement.missed, variant))


def needed(ledger: Ledger, route: tuple[str, ...], operation: str) -> tuple[str, ...]:
    """The stages of a route that not everybody passes by: what an answer depends on."""
    return tuple(
        name
        for position, name in enumerate(route)
        if not ((rule := ledger.stages[name].passing.rule) and rule.everything)
        or not may_pass(route, position, operation)
    )
