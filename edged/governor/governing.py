"""The governor at work: it hears samples and the operator, decides, and has its decisions carried out.

`feel`, `pin`, `offer` and the rest are called on the daemon's event loop; all of them return at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edged.config import Config
from edged.config.tables import Rung
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.requests import Submission
from edged.errors import BadRequest, NotFound, Shed
from edged.governor.account import Account
from edged.governor.bands import TEMPERATURE, Policy, policy_of
from edged.governor.effects import settings
from edged.governor.events import (
    AnyEvent,
    Command,
    Confirmed,
    GoTo,
    Offered,
    Pinned,
    Refused,
    Released,
    Report,
)
from edged.governor.force import InForce
from edged.governor.heard import heard
from edged.governor.history import History
from edged.governor.ladder import State, carried, decide
from edged.governor.reach import lacking, only_swaps, unbuilt
from edged.governor.readings import Senses
from edged.governor.senses import Sensing
from edged.governor.shedding import check, load
from edged.governor.variants import Variants
from edged.governor.wishes import wishes
from edged.report import Decision, GovernorStatus

LOOK_AGAIN_S = 10.0
"""Which rungs can be taken is found out anew so often: weights come and go without a word."""


class Governing:
    """Holds the rung in force. Construct, `begin` on the running loop, `feel` every sample, `close`."""

    def __init__(
        self, config: Callable[[], Config], dispatcher: Dispatcher, variants: Variants, history: History
    ) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._variants = variants
        self._account = Account(history)
        self._tally = self._account.tally
        self._policy: Policy = policy_of(config().governor)
        self._state = State()
        self._going: GoTo | None = None
        """What was begun and is not in force as a whole yet."""
        self._begun = False
        self._offers: dict[str, str] = {"peer": "there is no peer"}
        self._unavailable: dict[str, str] = {}
        self._looked_at_s = -math.inf
        ladder = config().governor.ladder
        self.force = InForce(0, ladder[0].name, ladder[0])

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        """Read the history and find out which rungs can be taken."""
        self._account.history.read()
        self._tally.on(self.force.name, self._dispatcher.now())
        self._begun = True
        self._look(told=False)

    def close(self) -> None:
        """Change nothing more."""
        self._variants.close()

    def adopt(self) -> None:
        """Go on under the configuration that was just read: on the rung of the same name, with the pin."""
        before, self._policy = self._policy, policy_of(self._config().governor)
        self._state = carried(self._state, before, self._policy)
        self._going, self._unavailable = None, {}
        self._variants.forget()
        self._take(self._state.rung)  # the rung in force is looked up in the new ladder from here on
        self._look(told=False)
        self._take(self._state.rung)
        self._seek_variants()

    # ---------------------------------------------------------------- events

    def feel(self, sensing: Sensing, senses: Senses) -> None:
        """Take a sample of the machine."""
        now, horizon_s = senses.readings.at_s, self._config().governor.horizon_s
        taken = load(self._dispatcher.ledger, self.force.settings.busy_share)
        stirred = self._variants.stirred()
        if stirred or now - self._looked_at_s >= LOOK_AGAIN_S:
            self._looked_at_s = now
            self.look_again()
        if stirred:
            self._seek_variants()
        self._wait_no_longer(now)
        self._hear_whole(heard(sensing, senses, horizon_s=horizon_s, load=taken))

    def _wait_no_longer(self, now: float) -> None:
        """A way down whose variants load for longer than a dwell counts as gone: heat does not wait."""
        going = self._going
        if going and going.rung > going.before and now - going.at_s >= self._policy.dwell_s:
            self._arrived(whole=False)

    def offer(self, what: str, *, available: bool, why: str = "") -> None:
        """Say that something a rung does can be done, or cannot, and why not. Idempotent.

        `what` is a field of `Rung`, such as `peer` or `bypass_rerank`. Rungs that do nothing else can be
        taken, or not, from now on.
        """
        before = self._offers.get(what)
        if available:
            self._offers.pop(what, None)
        else:
            self._offers[what] = why or "it cannot be done now"
        if self._offers.get(what) != before:
            self.look_again()

    def look_again(self) -> None:
        """Find out which rungs can be taken: after a change of what is offered or of how stages run."""
        if self._begun:
            self._look(told=True)

    def _look(self, *, told: bool) -> None:
        found = self._lacking()
        changed = [name for name in self._policy.rungs if (name in found) != (name in self._unavailable)]
        self._unavailable = found
        for name in changed:
            rung, why = self._policy.rungs.index(name), found.get(name, "")
            self._hear(Offered(at_s=self._dispatcher.now(), rung=rung, available=not why))
            if told:
                self._account.noted("offered", name, why or "it can be taken from now on")
        if any(self._policy.rungs.index(name) <= self.force.rung for name in changed):
            self._take(self.force.rung)
            self._seek_variants()

    def pin(self, name: str) -> None:
        """Stay on a rung, whatever the readings say, until `release` or the next start.

        `NotFound` for a rung that the ladder lacks, `BadRequest` for one below the floor or one that cannot
        be taken here.
        """
        if name not in self._policy.rungs:
            known = ", ".join(self._policy.rungs)
            raise NotFound(f"there is no rung {name!r}; from best to worst: {known}", param="rung")
        rung = self._policy.rungs.index(name)
        if rung > self._policy.floor:
            floor = self._policy.rungs[self._policy.floor]
            raise BadRequest(f"rung {name!r} is below governor.floor = {floor!r}", param="rung")
        self.look_again()
        if why := self._unavailable.get(name):
            raise BadRequest(f"rung {name!r} cannot be taken: {why}", param="rung")
        self._account.noted("pinned", name, "by the operator")
        self._hear_whole(Pinned(at_s=self._dispatcher.now(), rung=rung))

    def release(self) -> None:
        """Leave it to the readings again. Idempotent."""
        if self._state.pin is not None:
            self._account.noted("released", self.force.name, "by the operator")
        self._hear(Released(at_s=self._dispatcher.now()))

    def _hear(self, event: AnyEvent) -> None:
        self._state, commands = decide(self._policy, self._state, event)
        for command in commands:
            self._carry_out(command)

    def _hear_whole(self, event: AnyEvent) -> None:
        """Hear of it; what was refused and is tried again now is done on the rung in force, too."""
        before = self._state.barred
        self._hear(event)
        if any(rung <= self.force.rung for rung in before - self._state.barred):
            self._take(self.force.rung)
            self._seek_variants()

    # ------------------------------------------------------------- admission

    def check(self, asked: Submission) -> None:
        """Let a request in, or raise `Shed` with the time after which to try again."""
        ledger, why = self._dispatcher.ledger, self._account.why
        try:
            check(self.force, ledger, asked, why=why, climb_s=self._climb_s())
        except Shed as error:
            ledger.count_rejection(error.code)
            raise

    def _climb_s(self) -> float:
        """The soonest that a better rung can be taken."""
        since_s, now = self._state.calm_since_s, self._dispatcher.now()
        return self._policy.climb_after_s - (now - since_s if since_s is not None else 0.0)

    # --------------------------------------------------------------- effects

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Report):
            self._account.reported(command, self.force.name, self._state.standings)
        elif command != self._going:  # else it was said again: it is on its way
            self._going = command
            self._account.changed(command, self._policy, self._state.standings)
            self._take(command.rung)
            self._seek_variants()

    def _take(self, rung: int) -> None:
        """Do all of a rung that takes no time; what cannot be done is left out."""
        name = self._policy.rungs[rung]
        doing = settings(self._ladder, rung, without=self._state.barred)
        self.force = InForce(rung, name, doing)
        self._dispatcher.ledger.duty.share = doing.busy_share
        self._tally.on(name, self._dispatcher.now())
        if rung == 0:
            self._variants.leave_none_alone()

    @property
    def _ladder(self) -> Sequence[Rung]:
        return self._config().governor.ladder

    def _seek_variants(self) -> None:
        wanted = wishes(self.force.settings)
        if self._variants.at(wanted):
            self._arrived()
        else:
            self._variants.aim(wanted, self._variants_ended)

    def _variants_ended(self, why: str) -> None:
        if why:
            self._without_variants(why)
        else:
            self._arrived()
        self.look_again()

    def _arrived(self, *, whole: bool = True) -> None:
        """All is as the rung in force wants it; or, not `whole`, all but what loads for long."""
        rung = self._going.rung if self._going else self.force.rung
        self._going = None
        self._hear(Confirmed(at_s=self._dispatcher.now(), rung=rung, whole=whole))

    def _without_variants(self, why: str) -> None:
        """Rungs that ask for variants are refused; what the rung in force does besides stands.

        One that does nothing besides is not taken, and a better one not where its variants do not come back.
        """
        going, rung, now = self._going, self.force.rung, self._dispatcher.now()
        climbs = going is not None and going.before > rung
        refused = [rung] if climbs else self._asking_for_variants(rung)
        for each in refused:
            self._hear(Refused(at_s=now, rung=each, why=why))
        if climbs or (going is not None and only_swaps(self._ladder[rung])):
            self._going, rung = None, self._state.rung
        self._take(rung)
        if refused:
            self._seek_variants()
        else:
            self._arrived()

    def _asking_for_variants(self, rung: int) -> list[int]:
        """Rungs so far down whose variants are in force or on their way."""
        barred = self._state.barred
        return [n for n in range(rung + 1) if wishes(self._ladder[n]) and n not in barred]

    # ----------------------------------------------------------------- words

    def _lacking(self) -> dict[str, str]:
        missing = unbuilt(self._config()) | self._offers
        pairs = zip(self._ladder, self._variants.lacking(self._ladder), strict=True)
        found = {rung.name: lacking(rung, missing | stages) for rung, stages in pairs}
        return {name: why for name, why in found.items() if why}

    def _left_out(self) -> dict[str, str]:
        state = self._state
        refused = state.barred - state.unavailable
        return {self._policy.rungs[rung]: state.refusals[rung].why for rung in sorted(refused)}

    def history(self, count: int) -> list[Decision]:
        """The newest decisions, oldest first."""
        return self._account.history.newest(count)

    def status(self) -> GovernorStatus:
        """The rung in force, and why."""
        state, policy, now = self._state, self._policy, self._dispatcher.now()
        return GovernorStatus(
            rung=self.force.rung,
            name=self.force.name,
            why=self._account.why,
            since_s=now - (self._tally.since_s or now),
            under_way=self._going is not None or self._variants.pursuing,
            pin="" if state.pin is None else policy.rungs[state.pin],
            floor=policy.rungs[policy.floor],
            ladder=tuple(self._ladder),
            unavailable=dict(self._unavailable),
            left_out=self._left_out(),
            thermal=any(name.startswith(f"{TEMPERATURE}.") for name in state.standings),
            unknown={name: each.unknown for name, each in state.standings.items() if each.unknown},
            changes=self._tally.by_direction(),
            refused=self._tally.refused,
            on_rung_s=self._tally.spent_s(now),
            settings=self.force.settings,
        )
