"""Simulated devices that compute with another adapter's session: real answers, declared costs and faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edged.backend import Array, Sampling, TensorSession, TokenEvent, TokenSession
from edged_backends.simulated_costs import Costs
from edged_backends.simulated_faults import Saboteur


class BorrowedTensors:
    """A `TensorSession` in front of a real one; of the faults it commits those that end or stop a process."""

    def __init__(self, session: TensorSession, costs: Costs, saboteur: Saboteur) -> None:
        self._session = session
        self._costs = costs
        self._saboteur = saboteur
        self.inputs, self.outputs = session.inputs, session.outputs
        self.lanes, self.lone_rows = session.lanes, session.lone_rows

    def run(self, feeds: Mapping[str, Array], /) -> dict[str, Array]:
        """Run one batch, unless the device is gone; takes its declared cost on top."""
        self._suffer(feeds)
        return self._session.run(feeds)

    def run_each(self, runs: Sequence[Mapping[str, Array]], /) -> list[dict[str, Array]]:
        """Do independent runs as the real session does."""
        for feeds in runs:
            self._suffer(feeds)
        return self._session.run_each(runs)

    def attend(self, look: Callable[[], None], /) -> None:
        """See `TensorSession.attend`."""
        self._session.attend(look)

    def set_threads(self, count: int, /) -> bool:
        """See `TensorSession.set_threads`."""
        return self._session.set_threads(count)

    def close(self) -> None:
        """End both sessions; idempotent."""
        self._session.close()

    def _suffer(self, feeds: Mapping[str, Array]) -> None:
        first = next(iter(feeds.values()))
        items, width = int(first.shape[0]), int(first.shape[1]) if first.ndim > 1 else 1
        self._saboteur.working(items, lambda faults: not faults.on_text and not faults.on_tokens)
        self._costs.spend(self._costs.batch_ms(items, width), self._saboteur.slow_factor())


class BorrowedTokens:
    """A `TokenSession` in front of a real one; as `BorrowedTensors`."""

    def __init__(self, session: TokenSession, costs: Costs, saboteur: Saboteur) -> None:
        self._session = session
        self._costs = costs
        self._saboteur = saboteur
        self.vocabulary = session.vocabulary
        self.context_tokens, self.max_sequences = session.context_tokens, session.max_sequences
        self.exact_resume = session.exact_resume

    @property
    def free_sequences(self) -> int:
        """How many more sequences `admit` takes now."""
        return self._session.free_sequences

    def admit(self, sequence: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int, /) -> None:
        """See `TokenSession.admit`."""
        self._session.admit(sequence, prompt, sampling, max_tokens)

    def step(self) -> list[TokenEvent]:
        """Advance, unless the device is gone; takes its declared cost on top."""
        self._saboteur.working(1, lambda faults: not faults.on_text and not faults.on_tokens)
        events = self._session.step()
        self._costs.spend(self._costs.step_ms(len(events), 0), self._saboteur.slow_factor())
        return events

    def cancel(self, sequence: int, /) -> None:
        """See `TokenSession.cancel`."""
        self._session.cancel(sequence)

    def prefix_counters(self) -> tuple[int, int, int]:
        """See `TokenSession.prefix_counters`."""
        return self._session.prefix_counters()

    def clear_prefixes(self) -> None:
        """See `TokenSession.clear_prefixes`."""
        self._session.clear_prefixes()

    def set_threads(self, count: int, /) -> bool:
        """See `TokenSession.set_threads`."""
        return self._session.set_threads(count)

    def close(self) -> None:
        """End both sessions; idempotent."""
        self._session.close()
