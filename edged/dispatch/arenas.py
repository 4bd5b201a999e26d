"""The memory that slots lie in: an arena for the entry and one behind every stage."""

from __future__ import annotations

import os
from collections.abc import Iterator

from edged.errors import TooLarge
from edged.messages import SlotRef
from edged.transport.slots import Arena, Geometry, create, read_only
from edged.workers.spec import ArenaSpec

PROBE = b"edged self-test"


class Arenas:
    """The daemon's side of every arena: made once, inherited by workers, closed at the end."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.descriptors: dict[int, tuple[int, int]] = {}
        """By arena: writable, and read-only."""
        self._arenas: dict[int, Arena] = {}
        self._written: dict[int, Arena] = {}
        """Arenas of stages that peers work for, mapped a second time when the first result comes."""

    def make(self, arena: int, name: str, *, writable: bool) -> None:
        """Commit the memory of an arena; `writable` by the daemon itself."""
        descriptor = create(name, self.geometry)
        self.descriptors[arena] = (descriptor, read_only(descriptor))
        self._arenas[arena] = Arena(descriptor, self.geometry, writable=writable)

    def check_room(self, length: int) -> None:
        """Raise `TooLarge` for a payload that no slot holds."""
        if length > self.geometry.slot_bytes:
            most = self.geometry.slot_bytes
            raise TooLarge(f"the request takes {length} bytes; a slot holds {most} (queue.slot_bytes)")

    def write(self, ref: SlotRef, payload: bytes) -> SlotRef:
        """Write into a leased slot; return the descriptor of what was written."""
        return self._arenas[ref.arena].write(ref, payload)

    def write_result(self, ref: SlotRef, payload: bytes) -> SlotRef:
        """Write into a slot that a peer's answer leased: the daemon is that worker's hand."""
        if ref.arena not in self._written:
            descriptor = self.descriptors[ref.arena][0]
            self._written[ref.arena] = Arena(descriptor, self.geometry, writable=True)
        return self._written[ref.arena].write(ref, payload)

    def read(self, ref: SlotRef) -> memoryview:
        """Read in place; `CorruptSlot` where the checksum does not match."""
        return self._arenas[ref.arena].read(ref)

    def intact(self, ref: SlotRef) -> bool:
        """Whether a leased slot gives back what is written into it."""
        return bytes(self.read(self.write(ref, PROBE))) == PROBE

    def inherited(self, own: int) -> Iterator[ArenaSpec]:
        """What a worker gets: its own stage's arena writable, the others not."""
        for arena, (writable, readable) in self.descriptors.items():
            yield ArenaSpec(arena, writable if arena == own else readable, self.geometry, arena == own)

    def close(self) -> None:
        """Give the memory back."""
        for arena in (*self._arenas.values(), *self._written.values()):
            arena.close()
        for pair in self.descriptors.values():
            for descriptor in pair:
                os.close(descriptor)
