"""A governor on its own: samples in, commands out, confirmed at once unless a test says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

from edged.config import Governor
from edged.governor.bands import Policy, Reading, policy_of
from edged.governor.events import AnyEvent, Command, Confirmed, GoTo, Report, Sampled
from edged.governor.ladder import State, decide

POLICY = policy_of(Governor())
CPU = POLICY.scales["temperature.cpu"]


def sampled(at_s: float, celsius: float | None, predicted: float | None = None, **more: Reading) -> Sampled:
    return Sampled(at_s=at_s, temperatures={"cpu": Reading(celsius, predicted)}, **more)


@dataclass
class World:
    policy: Policy = POLICY
    confirms: bool = True
    state: State = field(default_factory=State)
    said: list[Command] = field(default_factory=list)
    now: float = 0.0

    def hear(self, event: AnyEvent) -> tuple[Command, ...]:
        self.state, commands = decide(self.policy, self.state, event)
        self.said += commands
        for command in commands:
            if self.confirms and isinstance(command, GoTo):
                self.state, _ = decide(self.policy, self.state, Confirmed(at_s=event.at_s, rung=command.rung))
        return commands

    def feel(
        self, celsius: float | None, seconds: int = 1, predicted: float | None = None, step: int = 1
    ) -> None:
        for _ in range(0, seconds, step):
            self.now += step
            self.hear(sampled(self.now, celsius, predicted))

    @property
    def rung(self) -> str:
        return self.policy.rungs[self.state.rung]

    @property
    def steps(self) -> list[GoTo]:
        return [command for command in self.said if isinstance(command, GoTo)]

    @property
    def reports(self) -> list[Report]:
        return [command for command in self.said if isinstance(command, Report)]
