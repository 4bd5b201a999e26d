"""The rung in force of the scripted daemon, and what an operator makes of it."""

from __future__ import annotations

from edged.config.tables import Rung
from edged.errors import NotFound
from edged.report import Decision, GovernorStatus

LADDER = (Rung(name="full"), Rung(name="tight", candidates=5, keep=1, answer_tokens=9))
GOVERNOR = GovernorStatus(
    rung=1,
    name="tight",
    why="temperature.cpu reached 72 °C (73)",
    since_s=3.0,
    floor="tight",
    ladder=LADDER,
    thermal=True,
    changes={"down": {"temperature": 1}, "up": {}},
    on_rung_s={"full": 5.0, "tight": 3.0},
    settings=LADDER[1],
)
DECISION = Decision(at=1.0, what="down", rung="tight", before="full", why=GOVERNOR.why)


class FakeGoverning:
    """Remembers what it was told."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def status(self) -> GovernorStatus:
        return GOVERNOR

    def pin(self, name: str, /) -> None:
        if name == "attic":
            raise NotFound("there is no rung 'attic'", param="rung")
        self._calls.append(f"pin {name}")

    def release(self) -> None:
        self._calls.append("release")

    def history(self, count: int, /) -> list[Decision]:
        return [DECISION] * min(count, 3)
