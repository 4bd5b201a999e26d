"""Arenas: fixed-size slots in a sealed memfd.

An arena is anonymous memory with no name to guess, squat or leak, whose size the kernel itself
holds fixed. It keeps bytes and nothing else: who may write or read a slot is decided by the
dispatcher's ledger alone and travels in descriptors (`SlotRef`), so there is no flag, counter or
lock in shared memory that a crash could tear or a weakly ordered CPU could reorder.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from xxhash import xxh3_64_intdigest

from edged.errors import ConfigError, CorruptSlot, ProtocolError, TooLarge
from edged.messages import SlotRef

PAGE_BYTES = mmap.PAGESIZE
CHECKED_BYTES = 256 << 10
"""A payload up to this size, which is the default slot, is checked to its last byte."""
END_BYTES = 32 << 10
"""Checked at either end of a larger one: a slot that was written anew, or is being written, differs there."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Geometry(msgspec.Struct, frozen=True):
    """Number and size of the slots of an arena; each slot starts on a page."""

    slots: int
    slot_bytes: int

    @property
    def stride(self) -> int:
        """Distance between slots in bytes.

        >>> Geometry(4, 5000).stride % PAGE_BYTES
        0
        """
        return -(-self.slot_bytes // PAGE_BYTES) * PAGE_BYTES

    @property
    def total_bytes(self) -> int:
        """Size of the memfd."""
        return self.slots * self.stride


def check_memory(geometry: Geometry, arenas: int) -> None:
    """Raise `ConfigError` when so many arenas do not fit, before the first of them takes what is there."""
    wanted, available = arenas * geometry.total_bytes, _available_bytes()
    if wanted > available:
        raise ConfigError(
            f"no memory for {arenas} arenas of {geometry.total_bytes >> 20} MiB: {available >> 20} MiB are "
            "available; lower queue.slots or queue.slot_bytes",
            param="queue.slots",
        )


def create(name: str, geometry: Geometry) -> int:
    """Make the memory of an arena and return its writable descriptor.

    Memory is committed now, so that a full machine is a sentence at start and not a SIGBUS later.
    Raises `ConfigError` when there is not enough.
    """
    if geometry.total_bytes > (available := _available_bytes()):
        raise _no_memory(name, geometry, f"{available >> 20} MiB are available")
    descriptor = os.memfd_create(f"edged:{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, geometry.total_bytes)
    except OSError as error:
        os.close(descriptor)
        raise _no_memory(name, geometry, str(error.strerror)) from error
    os.fchmod(descriptor, 0o400)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def _no_memory(name: str, geometry: Geometry, why: str) -> ConfigError:
    return ConfigError(
        f"no memory for the {geometry.total_bytes >> 20} MiB arena of {name!r}: {why}; "
        "lower queue.slots or queue.slot_bytes",
        param="queue.slots",
    )


def _available_bytes() -> int:
    """`MemAvailable` of /proc/meminfo: beyond it the kernel does not refuse, it ends processes."""
    with Path("/proc/meminfo").open() as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def read_only(descriptor: int) -> int:
    """Open the same memory again for reading: what a consumer inherits cannot be mapped writable."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def checksum_of(payload: bytes | memoryview) -> int:
    """XXH3, 64 bits, of a payload; of one beyond `CHECKED_BYTES`, of its length and its two ends.

    Against torn and stale bytes and tired memory, not against an attacker: who can write a slot can write
    its descriptor. Bounded, so that a hop of many MiB costs what copying them costs and no more.

    >>> checksum_of(b"abc") == checksum_of(b"abd")
    False
    """
    if len(payload) <= CHECKED_BYTES:
        return xxh3_64_intdigest(payload)
    return xxh3_64_intdigest(payload[-END_BYTES:], xxh3_64_intdigest(payload[:END_BYTES], len(payload)))


class Arena:
    """A mapping of an arena: the producer's is writable, everybody else's is not."""

    def __init__(self, descriptor: int, geometry: Geometry, *, writable: bool) -> None:
        self.geometry = geometry
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(
            descriptor, geometry.total_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=protection
        )
        self._view = memoryview(self._map)
        self._stride = geometry.stride

    def slot(self, index: int) -> memoryview:
        """The whole of a slot; read-only where the mapping is."""
        if not 0 <= index < self.geometry.slots:
            raise ProtocolError(f"slot {index} is outside the arena of {self.geometry.slots}")
        start = index * self._stride
        return self._view[start : start + self.geometry.slot_bytes]

    def write(self, ref: SlotRef, payload: bytes | Sequence[bytes | memoryview]) -> SlotRef:
        """Write a payload once and return its descriptor; `TooLarge` when it does not fit."""
        parts = (payload,) if isinstance(payload, bytes) else [memoryview(part).cast("B") for part in payload]
        length = sum(map(len, parts))
        self._check_room(length)
        slot, position = self.slot(ref.slot), 0
        for part in parts:
            slot[position : position + len(part)] = part
            position += len(part)
        return SlotRef(ref.arena, ref.slot, ref.generation, length, checksum_of(slot[:length]))

    def describe(self, ref: SlotRef, length: int) -> SlotRef:
        """The descriptor of a payload that its producer computed in the slot itself (see `slot`)."""
        self._check_room(length)
        checksum = checksum_of(self.slot(ref.slot)[:length])
        return SlotRef(ref.arena, ref.slot, ref.generation, length, checksum)

    def _check_room(self, length: int) -> None:
        if length > self.geometry.slot_bytes:
            raise TooLarge(
                f"a payload of {length} bytes exceeds the slot of {self.geometry.slot_bytes} bytes",
                param="queue.slot_bytes",
            )

    def read(self, ref: SlotRef) -> memoryview:
        """A read-only view of a payload in place; `CorruptSlot` when its bytes are not those described."""
        if not 0 <= ref.length <= self.geometry.slot_bytes:
            raise ProtocolError(f"length {ref.length} exceeds the slot of {self.geometry.slot_bytes}")
        view = self.slot(ref.slot)[: ref.length].toreadonly()
        if checksum_of(view) != ref.checksum:
            raise CorruptSlot(f"slot {ref.slot} of arena {ref.arena} does not match its checksum")
        return view

    def close(self) -> None:
        """Unmap; views that are still held keep the memory until they go."""
        self._view.release()
        try:
            self._map.close()
        except BufferError:  # a payload is still being read: the process's exit unmaps it
            return
