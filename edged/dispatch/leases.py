"""Who computes now and on how many cores, where stages run on the same silicon: pure.

A group is the workers whose core sets overlap. Its policy has three modes:

- `together`: all at once, each on every core that is free; the kernel shares them out.
- `turns`: one at a time, on every free core, the first token before the next one: batches go before running
  streams, so that many answers are decoded together. A batch is not interrupted, so streams that it stops go
  on beside it for `TURN_S` after every `PAUSE_S`; streams that stop others give way after `TURN_S`.
- `single`: no more workers at once than cores are free, and so a core each under load: batches in hand, then
  token workers that owe a first token, then new batches; what is left goes to a batch that can spread over
  more cores (and gives them back when somebody comes), else to the other token workers for `TURN_S` each.
  For token stages with a worker for every core.
- `split`: all at once, each on a share of the free cores, at least one; a worker alone gets all.

A batch that takes no longer than `SHORT_S` (a question to embed) is no reason to take cores from anybody:
except in `together`, it goes first, beside whatever runs, on one core; where nothing else runs, on its share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

import msgspec

from edged.backend import cores_of, is_cpu

Mode = Literal["together", "turns", "single", "split"]

DEFAULT_MODE: Mode = "split"
"""Where no plan says otherwise; measured: docs/decisions/0013-core-leases.md."""

TURN_S = 0.05
"""How long a token worker keeps the cores while others wait."""
PAUSE_S = 0.2
"""How long a batch may stop running streams: with a tick of the dispatcher and a step, it bounds the gap."""
STANDSTILL_S = 0.8
"""The same in `single`, where a batch under load has one thread and takes the longer: streams beside it would
only slow it, and with it first tokens that others wait for. Measured: docs/decisions/0013-core-leases.md."""
SHORT_S = 0.05
"""A batch as short as this costs streams less than a turn. Embedding takes twice as long beside others as
alone, and a question waits for a core once that counts as long."""
PATIENCE_S = 2.0
"""Whoever has waited this long goes first, whatever the others do, for one batch or first token: no class of
work starves."""

_MODES: Mapping[str, Mode] = {mode: mode for mode in get_args(Mode)}


def chosen(asked: Mode | Literal["auto"], planned: str = "") -> Mode:
    """The mode in force: the operator's, else the plan's, else the default."""
    return _MODES.get(planned if asked == "auto" else asked, DEFAULT_MODE)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of a group that has work, as the policy sees it."""

    worker: str
    streaming: bool
    holding: bool
    """A batch is in its hands (which nothing can stop), or it has live streams."""
    lanes: int = 1
    """Cores that it can use while it runs, and gives back when told; 1: it keeps those it began on."""
    urgent: bool = True
    """Interactive work is among what it holds or could take."""
    owes_since: float | None = None
    """When the oldest question was asked that waits for a first token from this worker; None: none does."""
    predicted_s: float = 0.0
    """Seconds of its next batch, or of a token step; 0 while nothing was measured."""
    waits_since: float = 0.0
    """Since when its oldest waiting work waits; of a batch stage, at most since it was last given any."""

    @property
    def awaited(self) -> bool:
        """Whether it owes a first token."""
        return self.owes_since is not None

    @property
    def short(self) -> bool:
        """Whether it is over before anybody notices."""
        return not self.streaming and 0.0 < self.predicted_s <= SHORT_S


class Spell(msgspec.Struct, frozen=True, kw_only=True):
    """What a token worker has done in `single`, and since when."""

    worker: str
    state: Literal["runs", "waits", "beside"]
    since: float

    def next(self, now: float, *, chosen: bool) -> Spell:
        """Run when chosen; else wait, and for a while go on beside the others."""
        if chosen:
            return self if self.state == "runs" else Spell(worker=self.worker, state="runs", since=now)
        stays_s = {"runs": 0.0, "waits": STANDSTILL_S, "beside": TURN_S}[self.state]
        if now - self.since < stays_s:
            return self
        then: Literal["waits", "beside"] = "beside" if self.state == "waits" else "waits"
        return Spell(worker=self.worker, state=then, since=now)


class Turn(msgspec.Struct, frozen=True):
    """Who has the cores of a group, and since when."""

    worker: str = ""
    since: float = 0.0
    stopped_at: float | None = None
    """Since when running streams stand still, or, with `beside`, go on; None while none are stopped."""
    beside: bool = False
    """They stood still for too long: they go on beside whoever has the turn, for a while."""
    spells: tuple[Spell, ...] = ()
    """In `single`, by token worker."""


class Grant(msgspec.Struct, frozen=True):
    """Cores by worker, 0 for a pause, and whose turn it is."""

    cores: dict[str, int]
    turn: Turn = Turn()


@dataclass(slots=True)
class Leases:
    """What the dispatcher knows about cores; part of the ledger."""

    mode: Mode = DEFAULT_MODE
    cores: frozenset[int] = frozenset()
    """Cores that this process may use; empty: there is nothing to share out."""
    most: int = 0
    """The operator's limit; 0 means none."""
    taken: int = 0
    """Cores that other processes keep busy."""
    turns: dict[str, Turn] = field(default_factory=dict)
    """By the first worker of a group."""
    idle: set[str] = field(default_factory=set)
    """Workers without a claim when the cores of their group were shared out: their lease is an older one."""


@lru_cache
def core_set(device: str, machine: frozenset[int]) -> frozenset[int]:
    """The cores of a device id; empty for silicon that is not the CPU.

    >>> sorted(core_set("cpu:1-2", frozenset({0, 1})))
    [1]
    """
    if not is_cpu(device):
        return frozenset()
    named = cores_of(device)
    return machine if named is None else machine.intersection(named)


def groups(sets: Mapping[str, frozenset[int]]) -> list[tuple[tuple[str, ...], frozenset[int]]]:
    """Join workers whose core sets overlap, also through a third one; with the cores of each group.

    >>> [workers for workers, _ in groups({"a": frozenset({0}), "b": frozenset({1}), "c": frozenset({1, 2})})]
    [('a',), ('b', 'c')]
    """
    found: list[tuple[tuple[str, ...], frozenset[int]]] = []
    for worker, cores in sets.items():
        if not cores:
            continue
        touching = [group for group in found if group[1] & cores]
        found = [group for group in found if not group[1] & cores]
        members = tuple(name for names, _ in touching for name in names)
        found.append(((*members, worker), cores.union(*(theirs for _, theirs in touching))))
    return found


def free_cores(group: frozenset[int], leases: Leases) -> int:
    """How many cores of a group are left: neighbours are taken to sit outside of it as long as they can.

    >>> free_cores(frozenset({0, 1}), Leases(cores=frozenset({0, 1, 2, 3}), taken=3))
    1
    """
    left = min(len(group), len(leases.cores) - leases.taken)
    return max(1, min(left, leases.most) if leases.most else left)


def assign(claims: Sequence[Claim], cores: int, mode: Mode, turn: Turn, now: float) -> Grant:
    """Share out `cores` cores among the workers of a group that have work."""
    if mode != "together" and all(claim.short for claim in claims):
        shares = _shared([claim.worker for claim in claims], cores)
        return Grant({worker: max(1, count) for worker, count in shares.items()})
    match mode:
        case "together":
            return Grant({claim.worker: cores for claim in claims})
        case "split":
            return Grant(_split(claims, cores))
        case "turns":
            return _turns(claims, cores, turn, now)
        case "single":
            return _single(claims, cores, turn, now)


def _split(claims: Sequence[Claim], cores: int) -> dict[str, int]:
    """At least one core each; what is left over goes to those that are predicted to need it longest."""
    heavy = sorted((claim for claim in claims if not claim.short), key=lambda claim: -claim.predicted_s)
    shares = {worker: max(1, count) for worker, count in _shared([c.worker for c in heavy], cores).items()}
    return shares | {claim.worker: 1 for claim in claims if claim.short}


def _turns(claims: Sequence[Claim], cores: int, turn: Turn, now: float) -> Grant:
    heavy = [claim for claim in claims if not claim.short]
    turn = _next_turn(heavy, turn, now)
    granted = {claim.worker: cores if claim.worker == turn.worker else 0 for claim in heavy}
    stopped = [
        claim.worker for claim in heavy if claim.streaming and claim.holding and not granted[claim.worker]
    ]
    turn = _patience(turn, now, stopped=bool(stopped))
    if turn.beside:
        granted |= dict.fromkeys(stopped, 1)
    return Grant(granted | {claim.worker: 1 for claim in claims if claim.short}, turn)


def _single(claims: Sequence[Claim], cores: int, turn: Turn, now: float) -> Grant:
    """Batches in hand, then first tokens, new batches, and on what is left the other streams by turns.

    An interactive batch that can has what is left before the streams, for `PATIENCE_S`: it gives it back as
    soon as it is told.
    """
    heavy = [claim for claim in claims if not claim.short]
    streams = [claim for claim in heavy if claim.streaming and claim.holding]
    lined_up = [claim for claim in heavy if claim.awaited or claim not in streams]
    lined_up.sort(key=lambda claim: _place(claim, now))
    first, left = lined_up[:cores], max(0, cores - len(lined_up))
    wide = next((claim for claim in first if _spreads(claim, now)), None)
    more = min(left, wide.lanes - 1) if wide else 0
    names = [claim.worker for claim in first]
    spells = _spells(streams, names, left - more, turn, now)
    names += [spell.worker for spell in spells if spell.state == "runs" and spell.worker not in names]
    beside = [spell.worker for spell in spells if spell.state == "beside"]
    granted = dict.fromkeys((claim.worker for claim in heavy), 0)
    if wide and more:
        names.remove(wide.worker)
        most = 1 + more if names else cores
        granted |= _shared(names, cores - most) | {wide.worker: max(1, most - len(beside))}
    else:
        granted |= _shared(names, cores)
    granted |= dict.fromkeys(beside, 1)
    return Grant(granted | {claim.worker: 1 for claim in claims if claim.short}, Turn(spells=spells))


def _spreads(claim: Claim, now: float) -> bool:
    """Whether it may have more than a core: not for long, since streams stand still meanwhile."""
    return claim.lanes > 1 and claim.urgent and now - claim.waits_since < PATIENCE_S


def _place(claim: Claim, now: float) -> tuple[bool, bool, bool, bool, float]:
    """A reranked question goes on to its first token: cores divided among all questions serve nobody soon.

    The impatient come in the order in which they have waited, whatever they are.
    """
    in_hand = claim.holding and not claim.streaming
    since = claim.waits_since if claim.owes_since is None else claim.owes_since
    patient = now - since < PATIENCE_S
    return not in_hand, patient, patient and not claim.urgent, patient and not claim.awaited, since


def _spells(
    streams: Sequence[Claim], first: Sequence[str], room: int, turn: Turn, now: float
) -> tuple[Spell, ...]:
    """Who of the streams runs: those in `first`, and on the cores that are left the others for `TURN_S` each.

    Whoever has stood still for `STANDSTILL_S` goes on beside the others for `TURN_S`: no stream starves.
    """
    known = {spell.worker: spell for spell in turn.spells}
    before = {
        c.worker: known.get(c.worker, Spell(worker=c.worker, state="waits", since=now)) for c in streams
    }

    def rank(worker: str) -> tuple[int, float]:
        spell = before[worker]
        if spell.state != "runs":
            return 1, spell.since
        return (0 if now - spell.since < TURN_S else 2), spell.since

    others = sorted((worker for worker in before if worker not in first), key=rank)
    chosen = {*first, *others[:room]}
    return tuple(before[claim.worker].next(now, chosen=claim.worker in chosen) for claim in streams)


def _shared(workers: Sequence[str], cores: int) -> dict[str, int]:
    """Whole cores, as equal as they can be, the first workers more."""
    share, rest = divmod(cores, max(1, len(workers)))
    return {worker: share + (place < rest) for place, worker in enumerate(workers)}


def _patience(turn: Turn, now: float, *, stopped: bool) -> Turn:
    """Count how long streams stand still; from the end of `PAUSE_S` to that of `TURN_S` they go on."""
    if not stopped:
        return Turn(turn.worker, turn.since)
    since = now if turn.stopped_at is None else turn.stopped_at
    if turn.beside and now - since >= TURN_S:
        return Turn(turn.worker, turn.since, now)
    if not turn.beside and now - since >= PAUSE_S:
        return Turn(turn.worker, turn.since, now, beside=True)
    return Turn(turn.worker, turn.since, since, turn.beside)


def _pass_on(turn: Turn, worker: str, now: float) -> Turn:
    return Turn(worker, now, turn.stopped_at, turn.beside)


def _next_turn(heavy: Sequence[Claim], turn: Turn, now: float) -> Turn:
    """Who goes now: a batch in hand to its end, a token worker for its time, then whoever is due."""
    running = [claim for claim in heavy if claim.holding and not claim.streaming]
    if running:
        keeps = any(claim.worker == turn.worker for claim in running)
        return turn if keeps else _pass_on(turn, running[0].worker, now)
    others = [claim for claim in heavy if claim.worker != turn.worker]
    holder = next((claim for claim in heavy if claim.worker == turn.worker), None)
    if holder and holder.streaming and now - turn.since < TURN_S:
        return turn
    if not others:
        return turn if holder and holder.streaming else _pass_on(turn, holder.worker if holder else "", now)
    return _pass_on(turn, min(others, key=lambda claim: _precedence(claim, now)).worker, now)


def _precedence(claim: Claim, now: float) -> tuple[bool, bool, bool, float]:
    """Running streams come last and are never impatient: they are let on beside the others."""
    runs = claim.streaming and claim.holding
    patient = runs or now - claim.waits_since < PATIENCE_S
    return patient, not claim.urgent, runs, claim.waits_since
