"""Hops over torch.distributed: Gloo between CPUs (or staged through the host), NCCL between GPUs.

Headers go over Gloo in frames of fixed size, so that a receiver needs no knowledge of what comes; payloads
over the backend of their device. Sends are posted and kept until they are done; receives are waited for. The
window is wider than what micro-batches can have on its way: it bounds memory, and never makes a stage wait.
"""

from __future__ import annotations

import os
import time
from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from edged.errors import BackendError, ConfigError
from edged.layers.links.hops import HopTimeout, Message, described
from edged.layers.wire import Header, Job, decode, encode

FRAME_BYTES = 1024
"""Of a header in one message; a longer one (sampling of many new sequences) has its rest in a second."""
LENGTH_BYTES = 8
LOOPBACK = "lo"
MEET = timedelta(seconds=60)
"""For all stages to find each other, once they have loaded."""
EVER = timedelta(days=3650)
"""A stage without work waits; the death of a neighbour ends the wait at once."""


def join(rank: int, stages: int, meeting: str, *, nccl: bool, device: torch.device) -> None:
    """Meet the other stages; `ConfigError` where NCCL cannot serve."""
    if nccl and device.type != "cuda":
        raise ConfigError("transport 'nccl' needs a CUDA device for every stage", param="transport")
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.putenv(name, LOOPBACK)  # all stages are on this machine, and nobody else is to reach them
    try:
        dist.init_process_group(
            backend, init_method=f"file://{meeting}/torch", rank=rank, world_size=stages, timeout=MEET
        )
    except RuntimeError as error:
        raise BackendError(f"the stages of the layer pipeline did not meet: {_brief(error)}") from error


def leave() -> None:
    """Leave the group; idempotent."""
    if dist.is_initialized():
        dist.destroy_process_group()


class DistributedIncoming:
    """The receiving end from one rank."""

    def __init__(self, rank: int, device: torch.device, *, nccl: bool) -> None:
        self.copy_s = 0.0
        self._rank = rank
        self._device = device if nccl else torch.device("cpu")

    def receive(self, timeout_s: float | None, /) -> Message:
        """See `Incoming.receive`."""
        frame = torch.empty(FRAME_BYTES, dtype=torch.uint8)
        self._wait(frame, timeout_s)
        data = frame.numpy().tobytes()
        length = int.from_bytes(data[:LENGTH_BYTES], "little")
        data = data[LENGTH_BYTES : LENGTH_BYTES + length]
        if length > len(data):
            rest = torch.empty(length - len(data), dtype=torch.uint8)
            self._wait(rest, timeout_s)
            data += rest.numpy().tobytes()
        header = decode(data)
        if not isinstance(header, Job) or not header.dtype:
            return header, None
        tensor = torch.empty(header.shape, dtype=getattr(torch, header.dtype), device=self._place(header))
        if tensor.numel():
            self._wait(tensor, timeout_s)
        return header, tensor

    def _place(self, header: Job) -> torch.device:
        return torch.device("cpu") if header.dtype == "int64" else self._device

    def _wait(self, tensor: torch.Tensor, timeout_s: float | None) -> None:
        try:
            work: Any = dist.irecv(tensor, self._rank)
            work.wait(EVER if timeout_s is None else timedelta(seconds=timeout_s))
        except RuntimeError as error:
            if "timed out" in str(error).lower() or "timeout" in str(error).lower():
                raise HopTimeout(f"nothing came from stage {self._rank} for {timeout_s} s") from error
            raise BackendError(f"the link from stage {self._rank} broke: {_brief(error)}") from error

    def close(self) -> None:
        """See `Incoming.close`."""


class DistributedOutgoing:
    """The sending end to one rank; at most `window` messages are outstanding."""

    def __init__(self, rank: int, device: torch.device, *, nccl: bool, window: int, timeout_s: float) -> None:
        self.copy_s = 0.0
        self._rank = rank
        self._device = device if nccl else torch.device("cpu")
        self._window = 3 * window
        self._timeout_s = timeout_s
        self._posted: deque[tuple[Any, torch.Tensor]] = deque()

    def send(self, header: Header, tensor: torch.Tensor | None = None, /, *, wait: bool = False) -> None:
        """See `Outgoing.send`."""
        data = encode(described(header, tensor))
        framed = len(data).to_bytes(LENGTH_BYTES, "little") + data
        self._post(torch.frombuffer(bytearray(framed[:FRAME_BYTES].ljust(FRAME_BYTES)), dtype=torch.uint8))
        if len(framed) > FRAME_BYTES:
            self._post(torch.frombuffer(bytearray(framed[FRAME_BYTES:]), dtype=torch.uint8))
        if tensor is not None and tensor.numel():
            self._post(self._placed(tensor))
        while self._posted and (wait or len(self._posted) > self._window):
            self._finish(*self._posted.popleft())

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        began_s = time.monotonic()
        place = torch.device("cpu") if tensor.dtype == torch.int64 else self._device
        placed = tensor.detach().to(place).contiguous()
        self.copy_s += time.monotonic() - began_s
        return placed

    def _post(self, tensor: torch.Tensor) -> None:
        try:
            self._posted.append((dist.isend(tensor, self._rank), tensor))
        except RuntimeError as error:
            raise BackendError(f"the link to stage {self._rank} broke: {_brief(error)}") from error

    def _finish(self, work: Any, _kept_alive: torch.Tensor) -> None:
        try:
            work.wait(timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            raise HopTimeout(
                f"stage {self._rank} took nothing for {self._timeout_s:g} s ({_brief(error)})"
            ) from error

    def close(self) -> None:
        """See `Outgoing.close`: what is posted is delivered, or its receiver is gone."""
        while self._posted:
            try:
                self._finish(*self._posted.popleft())
            except HopTimeout:
                self._posted.clear()


def _brief(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
