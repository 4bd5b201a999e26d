"""How large a micro-batch may be: raised and lowered between 1 and `max_batch` by what was observed: pure.

Without a reason the limit is `max_batch`. There are three reasons, and the strictest counts:

- memory: less than `RESERVE_BYTES` is free, or a larger batch than ever before would eat into that;
- latency (`target_ms`): of the limits that keep the bound with what waits now, the largest; where none
  keeps it, the one that comes nearest;
- speed: smaller batches take less time per item. Times at low load say nothing about times under load, so
  this is tried for `TRIAL_BATCHES` full batches under load, and kept only if it proves true.

Limits are powers of two and `max_batch`. Raising needs more than lowering does, and time in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

ENOUGH = 8
"""Observations of a size before it is compared with another."""
SMOOTHING = 0.2
DWELL_S = 2.0
"""Between two changes for the sake of latency."""
ROOM = 0.8
"""A limit is raised only where the prediction is below this share of the bound."""
BETTER = 0.9
"""What is called faster takes at most this share of the time: less is noise."""
SUSPICIOUS = 0.8
"""A trial costs something: it is made where smaller batches seem to take at most this share per item."""
TRIAL_BATCHES = 8
TRIAL_PAUSE_S = 60.0
LONGEST_PAUSE_S = 960.0
RESERVE_BYTES = 256 << 20
"""Memory that is left to the rest of the machine."""
MEMORY_PAUSE_S = 10.0
"""Memory must have been plentiful for so long before a limit is raised again."""
MIB = 1 << 20
CONTENT = "max_batch: nothing speaks against it"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What bears on a stage when its limit is decided."""

    most: int
    """`max_batch`."""
    queue: int
    workers: int
    target_s: float = 0.0
    """0: no bound on the latency."""
    available_bytes: int | None = None


@lru_cache
def steps(most: int) -> tuple[int, ...]:
    """The limits there are.

    >>> steps(6), steps(1)
    ((1, 2, 4, 6), (1,))
    """
    return (*(1 << power for power in range(max(most - 1, 0).bit_length())), most)


def step_of(size: float, most: int) -> int:
    """The largest limit that a batch of this size reaches."""
    return max((step for step in steps(most) if step <= size), default=1)


@dataclass(slots=True)
class Trial:
    """Full batches of another limit, to see how they do under the same load."""

    limit: int
    before: int
    before_s: float
    """Seconds per item at the limit before."""
    batches: int = 0
    items: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Controller:
    """What was observed of a stage's batches, and the limit that follows from it."""

    reason: str = CONTENT
    item_s: dict[int, float] = field(default_factory=dict)
    """Smoothed seconds per item, by limit reached."""
    seen: dict[int, int] = field(default_factory=dict)
    resident: dict[int, int] = field(default_factory=dict)
    """Most resident bytes of a worker, by the largest limit that it had reached."""
    queue: float = 0.0
    latency_cap: int | None = None
    latency_at: float = float("-inf")
    memory_cap: int | None = None
    memory_at: float = float("-inf")
    speed_cap: int | None = None
    trial: Trial | None = None
    next_trial_at: float = 0.0
    pause_s: float = TRIAL_PAUSE_S

    def limit(self, most: int) -> int:
        """How many items at once now."""
        speed = self.trial.limit if self.trial else self.speed_cap
        if speed is None and self.latency_cap is None and self.memory_cap is None:
            return most
        caps = [cap for cap in (self.latency_cap, self.memory_cap, speed) if cap is not None]
        return max(1, min(most, *caps))

    def observe(self, size: float, seconds: float, most: int) -> None:
        """Note a finished batch; for a token stage, an answer and its company on average."""
        step = step_of(size, most)
        count = self.seen[step] = self.seen.get(step, 0) + 1
        weight = max(SMOOTHING, 1 / count)
        known = self.item_s.get(step, 0.0)
        self.item_s[step] = known + weight * (seconds / size - known)
        if self.trial and step == self.trial.limit:
            self.trial.batches += 1
            self.trial.items += size
            self.trial.seconds += seconds

    def observe_memory(self, largest: int, resident_bytes: int, most: int) -> None:
        """Note the memory of a worker whose largest batch so far had `largest` items."""
        step = step_of(largest, most)
        self.resident[step] = max(self.resident.get(step, 0), resident_bytes)

    def decide(self, load: Load, now: float) -> None:
        """Set the limit and the reason for it."""
        self.queue += 0.3 * (load.queue - self.queue)
        reasons = {
            "memory": self._for_memory(load, now),
            "latency": self._for_latency(load, now),
            "speed": self._for_speed(load, now),
        }
        speed = self.trial.limit if self.trial else self.speed_cap
        caps = {"memory": self.memory_cap, "latency": self.latency_cap, "speed": speed}
        strict = [name for name, cap in caps.items() if cap is not None and cap <= self.limit(load.most)]
        self.reason = reasons[strict[0]] if strict else reasons["latency"] or CONTENT

    # -------------------------------------------------------------- memory

    def growth_bytes(self) -> float:
        """What one more item takes, by workers that have run smaller and larger batches; 0 while unknown."""
        low, high = min(self.resident, default=0), max(self.resident, default=0)
        return max(0.0, (self.resident[high] - self.resident[low]) / (high - low)) if high > low else 0.0

    def _for_memory(self, load: Load, now: float) -> str:
        if load.available_bytes is None:
            self.memory_cap = None
            return ""
        spare = load.available_bytes - RESERVE_BYTES
        limit, growth = self.limit(load.most), self.growth_bytes() * load.workers
        tried = max(self.resident, default=load.most)
        fitting = [step for step in steps(load.most) if growth * max(0, step - tried) <= max(spare, 0)]
        if spare < 0:
            if now - self.memory_at >= 1.0:
                self.memory_cap, self.memory_at = step_of(limit - 1, load.most), now
        elif fitting[-1] < limit:
            self.memory_cap, self.memory_at = fitting[-1], now
        elif self.memory_cap is not None and now - self.memory_at >= MEMORY_PAUSE_S and spare > RESERVE_BYTES:
            above = [step for step in fitting if step > self.memory_cap]
            self.memory_cap, self.memory_at = (above[0] if above else self.memory_cap), now
            if self.memory_cap >= load.most:
                self.memory_cap = None
        each = f", and one more item takes {growth / MIB:.0f}" if growth else ""
        free = f"{load.available_bytes / MIB:.0f} MiB of memory were free"
        return f"memory: {free} when it was lowered or held, {RESERVE_BYTES // MIB} are kept back{each}"

    # ------------------------------------------------------------- latency

    def estimate_s(self, step: int) -> float:
        """Seconds per item at a limit: measured, or between its measured neighbours, or as the nearest."""
        if step in self.item_s or not self.item_s:
            return self.item_s.get(step, 0.0)
        low = max((known for known in self.item_s if known < step), default=None)
        high = min((known for known in self.item_s if known > step), default=None)
        if low is None or high is None:
            return self.item_s[low if low is not None else high]  # type: ignore[index]  # one of them is
        low_s, high_s = low * self.item_s[low], high * self.item_s[high]
        return (low_s + (high_s - low_s) * (step - low) / (high - low)) / step

    def predicted_s(self, step: int, workers: int) -> float:
        """Time in the stage of who joins now: what waits, then a batch of its own."""
        return (self.queue / max(workers, 1) + step) * self.estimate_s(step)

    def _for_latency(self, load: Load, now: float) -> str:
        if not load.target_s or not self.item_s:
            self.latency_cap = None
            return ""
        current = min(self.latency_cap or load.most, load.most)
        predicted = {step: self.predicted_s(step, load.workers) for step in (*steps(load.most), current)}
        wanted = self._wanted(predicted, current, load.target_s)
        if wanted != current and now - self.latency_at >= DWELL_S:
            current, self.latency_at = wanted, now
        self.latency_cap = current
        verb = "keeps" if predicted[current] <= load.target_s else "comes nearest to"
        bound, waiting = f"target_ms = {load.target_s * 1000:g}", f"{self.queue:.0f} waiting"
        return (
            f"latency: {current} {verb} {bound} with {waiting}: {predicted[current] * 1000:.0f} ms predicted"
        )

    @staticmethod
    def _wanted(predicted: dict[int, float], current: int, target_s: float) -> int:
        """The largest that keeps the bound, or else the quickest; no change for little."""
        keeping = [step for step, needed_s in predicted.items() if needed_s <= target_s]
        if not keeping:
            quickest = min(predicted, key=lambda step: (predicted[step], -step))
            return quickest if predicted[quickest] < BETTER * predicted[current] else current
        if current not in keeping:
            return max(keeping)
        return max(step for step in keeping if predicted[step] <= ROOM * target_s or step == current)

    # --------------------------------------------------------------- speed

    def _for_speed(self, load: Load, now: float) -> str:
        if self.trial:
            return self._follow(self.trial, load, now)
        unbound = self.memory_cap is None and self.latency_cap is None
        if unbound and load.queue >= self.limit(load.most) and now >= self.next_trial_at:
            self._begin(load)
        if self.trial:
            return f"speed: trying {self.trial.limit} instead of {self.trial.before}"
        return self._comparison(load.most) if self.speed_cap else ""

    def _comparison(self, most: int) -> str:
        cap = self.speed_cap or most
        return (
            f"speed: in batches of {cap} an item takes {self.estimate_s(cap) * 1000:.3g} ms,"
            f" in larger ones {self.estimate_s(most) * 1000:.3g} ms"
        )

    def _begin(self, load: Load) -> None:
        """Try smaller batches that seem faster, or whether those that were given up still are slower."""
        current = step_of(self.limit(load.most), load.most)
        if self.seen.get(current, 0) < ENOUGH:
            return
        known = {step: self.item_s[step] for step, count in self.seen.items() if count >= ENOUGH}
        faster = [step for step in known if step < current and known[step] < SUSPICIOUS * known[current]]
        if self.speed_cap:
            self.trial = Trial(load.most, current, known[current])
        elif faster:
            self.trial = Trial(min(faster, key=known.__getitem__), current, known[current])

    def _follow(self, trial: Trial, load: Load, now: float) -> str:
        """End a trial when it has shown enough, or when the load that it needs is gone."""
        unbound = self.memory_cap is None and self.latency_cap is None
        shown = trial.batches >= TRIAL_BATCHES
        if not shown and load.queue > 0 and unbound:
            return f"speed: trying {trial.limit} instead of {trial.before}"
        self.trial = None
        if shown:
            self._conclude(trial)
        self.next_trial_at = now + self.pause_s
        return self._comparison(load.most) if self.speed_cap else ""

    def _conclude(self, trial: Trial) -> None:
        """The smaller batches are kept where they are clearly faster; else the next trial is further off."""
        trial_s = trial.seconds / trial.items
        shrinks = trial.limit < trial.before
        small_s, large_s = (trial_s, trial.before_s) if shrinks else (trial.before_s, trial_s)
        faster = small_s <= BETTER * large_s
        self.speed_cap = min(trial.limit, trial.before) if faster else None
        confirmed = faster == (not shrinks)
        self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S) if confirmed else TRIAL_PAUSE_S
