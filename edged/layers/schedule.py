"""What the first stage does next: start a micro-batch's turn, or wait for tokens. Pure.

The other stages have no choice: they take what comes, in order, and pass it on. In every mode but `seed` a
send is posted and not waited for, only receives are; micro-batches bound what is outstanding. In `seed`, the
classic order of pairwise blocking calls, the first stage receives and then sends, the others send and then
receive; with more micro-batches than stages every stage would end in a send that nobody takes, so that is
refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec.structs import replace

from edged.errors import ConfigError

Mode = Literal["ring", "flush", "seed", "naive"]
Act = Literal["start", "receive", "rest"]


class Turns(msgspec.Struct, frozen=True, kw_only=True):
    """Where the first stage stands."""

    mode: Mode
    in_flight: int = 0
    """Jobs started whose tokens have not come back."""
    filling: bool = True
    """`flush`: whether this token's turns are still being started."""

    def act(self, due: int) -> Act:
        """Say what comes next, where so many micro-batches have work and no turn in flight.

        >>> Turns(mode="ring", in_flight=2).act(due=1)
        'start'
        >>> Turns(mode="naive", in_flight=1).act(due=1)
        'receive'
        """
        if due and self._may_start():
            return "start"
        return "receive" if self.in_flight else "rest"

    def _may_start(self) -> bool:
        if self.mode == "naive":
            return self.in_flight == 0
        return self.mode != "flush" or self.filling or self.in_flight == 0

    def started(self) -> Turns:
        """Return the state behind a start."""
        return replace(self, in_flight=self.in_flight + 1, filling=True)

    def received(self) -> Turns:
        """Return the state behind tokens that came back."""
        return replace(self, in_flight=self.in_flight - 1, filling=False)


def check(mode: Mode, stages: int, micro_batches: int) -> None:
    """Refuse what cannot work: `ConfigError` for `seed` with more micro-batches than stages."""
    if micro_batches < 1:
        raise ConfigError(f"micro_batches = {micro_batches} is below 1", param="micro_batches")
    if mode == "seed" and micro_batches > stages:
        raise ConfigError(
            f"mode 'seed' (blocking receive-then-send on the first stage) hangs with more micro-batches "
            f"than stages: micro_batches = {micro_batches}, stages = {stages}; take at most {stages} or mode "
            "'ring'",
            param="micro_batches",
        )


def next_lane(due: Collection[int], last: int, lanes: int) -> int:
    """Pick the micro-batch whose turn it is: round and round, behind the `last` one.

    >>> next_lane({0, 3}, last=1, lanes=4)
    3
    """
    return min(due, key=lambda lane: (lane - last - 1) % lanes)
