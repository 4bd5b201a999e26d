"""Declared costs, spent as real time."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec

Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What work costs on the simulated device."""

    load_ms: Milliseconds = 0.0
    """Opening a session."""
    fixed_ms: Milliseconds = 0.0
    """Every run of a tensor session."""
    per_item_ms: Milliseconds = 0.0
    """Every row of a batch; for generators, every sequence that a step gives a token."""
    per_token_ms: Milliseconds = 0.0
    """Every token of an encoder's row, padding included; every prompt token of a generator."""
    decode_ms: Milliseconds = 0.0
    """Every step of a generator, however many sequences it advances."""
    busy: bool = False
    """Burn a core instead of sleeping."""

    def batch_ms(self, items: int, width: int) -> float:
        """Cost of one run over `items` rows of `width` tokens.

        >>> Costs(fixed_ms=2, per_item_ms=1, per_token_ms=0.5).batch_ms(4, 10)
        26.0
        """
        return self.fixed_ms + items * (self.per_item_ms + width * self.per_token_ms)

    def step_ms(self, sequences: int, prompt_tokens: int) -> float:
        """Cost of one step of a generator."""
        return self.decode_ms + sequences * self.per_item_ms + prompt_tokens * self.per_token_ms

    def spend(self, cost_ms: float, factor: float = 1.0) -> None:
        """Wait, or burn, `cost_ms` times `factor`."""
        seconds = cost_ms * factor / 1e3
        if seconds and self.busy:
            _burn(seconds)
        elif seconds:
            time.sleep(seconds)


def _burn(seconds: float) -> None:
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        pass
