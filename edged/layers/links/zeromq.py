"""Hops between processes over ZeroMQ: edged's own link, for stages of one machine and of unlike devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from edged.errors import BackendError
from edged.layers.links.hops import HopTimeout, Message, described
from edged.layers.links.pipes import Inlet, Outlet
from edged.layers.wire import Header, Job, decode, encode

Watch = Callable[[], None]


class ZeromqIncoming:
    """Binds an address; `watched` are descriptors of other processes, and `look` says what became of them."""

    def __init__(
        self, address: str, neighbour: str, watched: Sequence[int] = (), look: Watch = lambda: None
    ) -> None:
        self.copy_s = 0.0
        self._inlet = Inlet(address)
        self._neighbour = neighbour
        self._look = look
        self._wait = self._inlet.watch(watched)

    def receive(self, timeout_s: float | None, /) -> Message:
        """See `Incoming.receive`."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._inlet.pending():
            left_ms = None if until_s is None else max(0, round((until_s - time.monotonic()) * 1000))
            if not self._wait(left_ms) or left_ms == 0:
                raise HopTimeout(f"nothing came from {self._neighbour} for {timeout_s:g} s")
            self._look()
        return self._taken()

    def _taken(self) -> Message:
        first, *rest = self._inlet.take()
        header = decode(first)
        if not rest or not isinstance(header, Job):
            return header, None
        began_s = time.monotonic()
        tensor = _tensor(rest[0], header)
        self.copy_s += time.monotonic() - began_s
        return header, tensor

    def close(self) -> None:
        """See `Incoming.close`."""
        self._inlet.close()


class ZeromqOutgoing:
    """Connects to an address."""

    def __init__(self, address: str, neighbour: str) -> None:
        self.copy_s = 0.0
        self._outlet = Outlet(address)
        self._neighbour = neighbour

    def send(self, header: Header, tensor: torch.Tensor | None = None, /, *, wait: bool = False) -> None:
        """See `Outgoing.send`; ZeroMQ cannot wait for the other side."""
        if wait:
            raise BackendError(
                "mode 'seed' needs sends that wait to be taken: transport 'threads' or 'gloo', not 'zeromq'"
            )
        header = described(header, tensor)
        if tensor is None:
            self._outlet.send(encode(header))
            return
        began_s = time.monotonic()
        payload = _bytes(tensor)
        self.copy_s += time.monotonic() - began_s
        self._outlet.send(encode(header), payload)

    def close(self) -> None:
        """See `Outgoing.close`; what is posted has a second to leave."""
        self._outlet.close()


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def _tensor(payload: memoryview, job: Job) -> torch.Tensor:
    dtype = getattr(torch, job.dtype)
    if not payload.nbytes:
        return torch.empty(job.shape, dtype=dtype)
    return torch.frombuffer(bytearray(payload), dtype=dtype).reshape(job.shape)
