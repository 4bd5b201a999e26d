"""The first stage: which sequences stand in which micro-batch, and whose turn it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import torch
from msgspec.structs import replace

from edged.backend import Sampling, TokenEvent
from edged.errors import BackendError, DeviceLost
from edged.layers.links.hops import HopTimeout, Message
from edged.layers.links.opening import Links
from edged.layers.meter import Meter
from edged.layers.schedule import Mode, Turns, next_lane
from edged.layers.stage import Runner
from edged.layers.wire import Broken, End, Job, Opened, Row, Timing
from edged.prefill import shares


class HeadShape(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions of a running pipeline."""

    stages: int
    micro_batches: int
    micro_batch: int
    """Sequences of one micro-batch at most."""
    prefill_tokens: int
    """Prompt tokens of one turn at most, all sequences of the micro-batch together."""
    running_prefill_tokens: int
    """The same while answers run anywhere: smaller keeps them smoother."""
    mode: Mode
    timeout_s: float
    """How long tokens that are on their way may take."""


class _Sequence(msgspec.Struct, eq=False):
    number: int
    slot: int
    lane: int
    sampling: Sampling
    unread: list[int]
    """Tokens that no stage has read: of the prompt, or the one chosen last."""
    left: int
    """New tokens that it may still have."""
    position: int = 0
    opened: bool = False
    chosen: bool = False
    """Whether it has a token of its own: the prompt is read."""


class _Flight(NamedTuple):
    lane: int
    emitting: list[_Sequence]


class Head:
    """Sequences by micro-batch, the order of turns, and the meter. `ends` knows end-of-generation tokens.

    Not thread-safe: its owner calls `turn` again and again.
    """

    def __init__(
        self, runner: Runner, links: Links, shape: HeadShape, ends: Callable[[int], bool], meter: Meter
    ) -> None:
        self._runner = runner
        self._links = links
        self.shape = shape
        self._ends = ends
        self.meter = meter
        self._live: dict[int, _Sequence] = {}
        self._lanes: list[dict[int, _Sequence]] = [{} for _ in range(shape.micro_batches)]
        self._flights: deque[_Flight] = deque()
        self._turns = Turns(mode=shape.mode)
        self._just_read = [False] * shape.micro_batches
        self._last_lane = -1
        self._number = 0
        self._held: tuple[Job, torch.Tensor] | None = None
        """`seed`: what is computed and not sent, since the first stage receives before it sends."""
        self._copied_s = 0.0
        self._sending_s = 0.0

    @property
    def live(self) -> int:
        """Sequences that have not ended."""
        return len(self._live)

    @property
    def flying(self) -> int:
        """Jobs whose tokens are on their way."""
        return len(self._flights)

    @property
    def busy_lanes(self) -> int:
        """Micro-batches that have sequences, or tokens on their way."""
        flying = {flight.lane for flight in self._flights}
        return len(flying | {number for number, lane in enumerate(self._lanes) if lane})

    def start(self, number: int, prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> None:
        """Begin a sequence in the emptiest micro-batch."""
        lane = min(range(len(self._lanes)), key=lambda each: len(self._lanes[each]))
        first = lane * self.shape.micro_batch
        slot = next(
            slot for slot in range(first, first + self.shape.micro_batch) if slot not in self._lanes[lane]
        )
        sequence = _Sequence(number, slot, lane, sampling, list(prompt), max_tokens)
        self._live[number] = self._lanes[lane][slot] = sequence

    def drop(self, number: int) -> None:
        """Forget a sequence; unknown numbers are ignored."""
        sequence = self._live.pop(number, None)
        if sequence is not None:
            del self._lanes[sequence.lane][sequence.slot]

    def turn(self) -> list[TokenEvent] | None:
        """Do the next thing: compute a micro-batch's turn, or wait for tokens; None when there is no work.

        Raises `BackendError` or `DeviceLost` with the stage's number when a stage failed, `HopTimeout`
        when tokens do not come back.
        """
        match self._turns.act(len(self._due())):
            case "start":
                self._start_turn()
                return []
            case "receive":
                return self._receive()
            case "rest":
                self.meter.rest(time.monotonic())
                return None

    def finish(self) -> None:
        """Tell the other stages that no more jobs come, once nothing is on its way."""
        self._links.outgoing.send(End())

    def _due(self) -> set[int]:
        flying = {flight.lane for flight in self._flights}
        return {number for number, lane in enumerate(self._lanes) if lane and number not in flying}

    def _start_turn(self) -> None:
        self._flush_held()
        lane = next_lane(self._due(), self._last_lane, len(self._lanes))
        job, ids, emitting = self._job(lane)
        began_s = time.monotonic()
        self.meter.begin(began_s)
        computed = self._runner.run(job, ids)
        copy_s = self._runner.copy_s + self._links.outgoing.copy_s
        timing = Timing(0, began_s, began_s, time.monotonic(), copy_s - self._copied_s, self._sending_s, 0)
        self._copied_s, self._sending_s = copy_s, 0.0
        self._last_lane = lane
        self._flights.append(_Flight(lane, emitting))
        self._turns = self._turns.started()
        self._send(replace(job, timings=(timing,)), computed)

    def _send(self, job: Job, computed: torch.Tensor) -> None:
        if self.shape.mode == "seed" and self.shape.stages > 1:
            self._held = job, computed
            return
        began_s = time.monotonic()
        self._links.outgoing.send(job, computed)
        self._sending_s += time.monotonic() - began_s

    def _flush_held(self) -> None:
        if self._held is not None:
            job, computed = self._held
            self._held = None
            began_s = time.monotonic()
            self._links.outgoing.send(job, computed, wait=True)
            self._sending_s += time.monotonic() - began_s

    def _job(self, lane: int) -> tuple[Job, torch.Tensor, list[_Sequence]]:
        """Make the next job of a micro-batch: prompts and answers take turns, so that neither stalls."""
        reading = [each for each in self._live.values() if each.lane == lane and not each.chosen]
        answering = [each for _, each in sorted(self._lanes[lane].items()) if each.chosen]
        read = bool(reading) and not (answering and self._just_read[lane])
        self._just_read[lane] = read
        if read:
            running = any(each.chosen for each in self._live.values())
            most = self.shape.running_prefill_tokens if running else self.shape.prefill_tokens
            takes = shares([len(each.unread) for each in reading], most)
            taking = [(each, take) for each, take in zip(reading, takes, strict=True) if take]
            return self._made(lane, [each for each, _ in taking], [take for _, take in taking])
        return self._made(lane, answering, [1] * len(answering))

    def _made(
        self, lane: int, sequences: list[_Sequence], counts: list[int]
    ) -> tuple[Job, torch.Tensor, list[_Sequence]]:
        rows, emitting, taken = [], [], []
        for sequence, count in zip(sequences, counts, strict=True):
            tokens = sequence.unread[:count]
            del sequence.unread[:count]
            rows.append(Row(sequence.slot, sequence.position, len(tokens), not sequence.unread))
            sequence.position += len(tokens)
            taken.append(tokens)
            emitting += [] if sequence.unread else [sequence]
        opened = tuple(Opened(each.slot, each.sampling) for each in sequences if not each.opened)
        for sequence in sequences:
            sequence.opened = True
        self._number += 1
        width = max(map(len, taken))
        ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in taken], dtype=torch.int64)
        return Job(self._number, lane, tuple(rows), opened), ids, emitting

    def _receive(self) -> list[TokenEvent]:
        if self._held is not None and len(self._flights) == 1:
            self._flush_held()  # nothing else can come
        began_s = time.monotonic()
        header, tensor = self._awaited()
        self.meter.stages[0].wait_receive_s += time.monotonic() - began_s
        if isinstance(header, Broken):
            kind = DeviceLost if header.code == "device_lost" else BackendError
            raise kind(f"stage {header.stage} of {self.shape.stages} failed: {header.why}")
        if not isinstance(header, Job) or tensor is None:
            raise BackendError("the last stage of the layer pipeline ended while jobs were on their way")
        flight = self._flights.popleft()
        self._turns = self._turns.received()
        self.meter.stages[0].received_bytes += tensor.nbytes
        self.meter.add(header, len(flight.emitting))
        pairs = zip(flight.emitting, tensor.tolist(), strict=True)
        events = [self._chosen(each, token) for each, token in pairs if self._live.get(each.number) is each]
        if not self._flights and not any(self._lanes):
            self.meter.rest(time.monotonic())
        return events

    def _awaited(self) -> Message:
        try:
            return self._links.incoming.receive(self.shape.timeout_s)
        except HopTimeout as error:
            lane = self._flights[0].lane
            raise HopTimeout(
                f"micro-batch {lane} (job {self._number - len(self._flights) + 1}) did not come back: one of "
                f"the stages 1 to {self.shape.stages - 1} is stuck, or timeout_s = {self.shape.timeout_s:g} "
                f"is too short for this model ({error.message})"
            ) from error

    def _chosen(self, sequence: _Sequence, token: int) -> TokenEvent:
        sequence.chosen = True
        sequence.left -= 1
        if self._ends(token):
            self.drop(sequence.number)
            return TokenEvent(sequence.number, finish="stop")
        if not sequence.left:
            self.drop(sequence.number)
            return TokenEvent(sequence.number, (token,), "length")
        sequence.unread = [token]
        return TokenEvent(sequence.number, (token,))
