"""One direction of the link between two stages, whatever carries it."""

from __future__ import annotations

import queue
import threading
import time
from typing import Protocol

import torch
from msgspec.structs import replace

from edged.errors import BackendError
from edged.layers.wire import Header, Job

CLOSED_S = 0.05
"""How soon a send that waits hears that its channel is closed."""
Message = tuple[Header, torch.Tensor | None]


class HopTimeout(BackendError):
    """A neighbour neither sent nor took a message in time."""


class Incoming(Protocol):
    """The receiving end."""

    @property
    def copy_s(self) -> float:
        """Seconds so far spent on copying tensors to where they are needed."""
        ...

    def receive(self, timeout_s: float | None, /) -> Message:
        """Take the next message, in order; `HopTimeout` names stage and neighbour when it does not come.

        `timeout_s` None waits for ever: a stage without work is no fault.
        """
        ...

    def close(self) -> None:
        """Close; idempotent."""
        ...


class Outgoing(Protocol):
    """The sending end."""

    @property
    def copy_s(self) -> float:
        """Seconds so far spent on copying tensors to where they can be sent from."""
        ...

    def send(self, header: Header, tensor: torch.Tensor | None = None, /, *, wait: bool = False) -> None:
        """Post a message; with `wait`, come back when the neighbour has taken it (mode `seed`)."""
        ...

    def close(self) -> None:
        """Close; idempotent."""
        ...


def described(header: Header, tensor: torch.Tensor | None) -> Header:
    """Write the tensor's shape and dtype into a job's header."""
    if not isinstance(header, Job) or tensor is None:
        return header
    return replace(header, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


class _Posted:
    """A message in a channel, and whether it was taken."""

    def __init__(self, header: Header, tensor: torch.Tensor | None) -> None:
        self.header = header
        self.tensor = tensor
        self.taken = threading.Event()
        self.computed = _mark(tensor)


def _mark(tensor: torch.Tensor | None) -> torch.cuda.Event | None:
    """Note the point of the sender's stream behind which the tensor is computed."""
    if tensor is None or not tensor.is_cuda:
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call] # the library's own
    event.record(torch.cuda.current_stream(tensor.device))
    return event


class Channel:
    """Both ends of a link between threads of one process; tensors pass without a copy."""

    copy_s = 0.0

    def __init__(self, name: str, timeout_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._messages: queue.SimpleQueue[_Posted | None] = queue.SimpleQueue()
        self._closed = False

    def receive(self, timeout_s: float | None, /) -> Message:
        """See `Incoming.receive`."""
        try:
            posted = self._messages.get(timeout=timeout_s)
        except queue.Empty as error:
            raise HopTimeout(f"{self._name}: nothing came for {timeout_s:g} s") from error
        if posted is None:
            self._messages.put(None)
            raise HopTimeout(f"{self._name} is closed")
        posted.taken.set()
        if posted.computed is not None and posted.tensor is not None:
            stream = torch.cuda.current_stream(posted.tensor.device)
            stream.wait_event(posted.computed)
            posted.tensor.record_stream(stream)
        return posted.header, posted.tensor

    def send(self, header: Header, tensor: torch.Tensor | None = None, /, *, wait: bool = False) -> None:
        """See `Outgoing.send`."""
        posted = _Posted(described(header, tensor), tensor)
        self._messages.put(posted)
        until_s = time.monotonic() + self._timeout_s
        while wait and not posted.taken.wait(CLOSED_S):
            if self._closed or time.monotonic() > until_s:
                raise HopTimeout(f"{self._name}: nobody took {_named(header)} for {self._timeout_s:g} s")

    def close(self) -> None:
        """See `Incoming.close`; whoever waits on it is told."""
        self._closed = True
        self._messages.put(None)


def _named(header: Header) -> str:
    return f"job {header.number}" if isinstance(header, Job) else "a message"
