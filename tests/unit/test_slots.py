"""Arenas and descriptors: what the kernel refuses, what the checks catch, and a fuzz of every decoder."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edged.dispatch.ledger import Slots
from edged.errors import ConfigError, CorruptSlot, ProtocolError, TooLarge
from edged.messages import (
    ChatTask,
    Done,
    EmbedTask,
    FromWorker,
    RerankTask,
    SlotRef,
    ToWorker,
    Work,
    decoder,
    encode,
)
from edged.transport.slots import (
    CHECKED_BYTES,
    END_BYTES,
    PAGE_BYTES,
    Arena,
    Geometry,
    checksum_of,
    create,
    read_only,
)

GEOMETRY = Geometry(slots=4, slot_bytes=5000)
REF = SlotRef(arena=7, slot=2, generation=1)
WORD = st.integers(0, 0xFFFFFFFF)


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = create("test", GEOMETRY)
    yield made
    os.close(made)


@pytest.fixture
def producer(descriptor: int) -> Iterator[Arena]:
    arena = Arena(descriptor, GEOMETRY, writable=True)
    yield arena
    arena.close()


@pytest.fixture
def consumer(descriptor: int) -> Iterator[Arena]:
    opened = read_only(descriptor)
    arena = Arena(opened, GEOMETRY, writable=False)
    os.close(opened)
    yield arena
    arena.close()


# -------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("change", [-PAGE_BYTES, +PAGE_BYTES])
def test_the_kernel_holds_the_size_of_an_arena(descriptor: int, change: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, GEOMETRY.total_bytes + change)
    assert os.fstat(descriptor).st_size == GEOMETRY.total_bytes


def test_the_seals_cannot_be_taken_off_or_added_to(descriptor: int) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_consumer_cannot_map_an_arena_writable(descriptor: int) -> None:
    opened = read_only(descriptor)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(opened, GEOMETRY.total_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(opened, b"x")
    finally:
        os.close(opened)


def test_a_consumers_mapping_cannot_be_made_writable_later(consumer: Arena) -> None:
    with pytest.raises(TypeError, match="read-only"):
        consumer.slot(0)[0] = 1


def test_an_arena_has_no_name(descriptor: int) -> None:
    assert str(Path(f"/proc/self/fd/{descriptor}").readlink()) == "/memfd:edged:test (deleted)"
    assert os.fstat(descriptor).st_nlink == 0


def test_too_little_memory_is_a_sentence_and_leaks_nothing() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ConfigError, match=r"no memory for the \d+ MiB arena of 'big'.*queue\.slots") as error:
        create("big", Geometry(slots=1 << 16, slot_bytes=1 << 30))  # 64 TiB
    assert error.value.param == "queue.slots"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_size_limit_is_a_sentence_too() -> None:
    """What RLIMIT_FSIZE refuses, in a process of its own: the limit is the whole process's."""
    script = (
        "import resource, signal; from edged.transport.slots import *; from edged.errors import ConfigError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: create('big', Geometry(4, 1 << 20))\n"
        "except ConfigError as error: print(error.message)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("no memory for the 4 MiB arena of 'big'")


def test_closing_with_live_views_keeps_their_bytes(descriptor: int) -> None:
    arena = Arena(descriptor, GEOMETRY, writable=True)
    view = arena.read(arena.write(REF, b"still here"))
    arena.close()
    assert bytes(view) == b"still here"
    with pytest.raises(ValueError, match="released"):
        arena.slot(0)


def test_a_closed_arena_gives_its_mapping_back(descriptor: int) -> None:
    arena = Arena(descriptor, GEOMETRY, writable=True)
    arena.close()
    with Path("/proc/self/maps").open() as maps:
        assert not any("memfd:edged:test" in line for line in maps)


# ------------------------------------------------------------------------------------ payloads


@given(
    parts=st.lists(st.binary(max_size=2000), max_size=5),
    kind=st.sampled_from([bytes, memoryview, bytearray]),
    slot=st.integers(0, GEOMETRY.slots - 1),
)
@example(parts=[b"x" * 5000], kind=bytes, slot=3)
@example(parts=[], kind=bytes, slot=0)
def test_what_is_written_in_parts_is_read_in_one_piece(
    parts: list[bytes], kind: type, slot: int, shared: tuple[Arena, Arena]
) -> None:
    writer, reader = shared
    whole = b"".join(parts)
    assume(len(whole) <= GEOMETRY.slot_bytes)
    ref = writer.write(SlotRef(7, slot, 9), [memoryview(kind(part)) for part in parts])
    assert ref == SlotRef(7, slot, 9, len(whole), checksum_of(whole))
    assert writer.write(SlotRef(7, slot, 9), whole) == ref
    view = reader.read(ref)
    assert view == whole
    assert view.readonly


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Arena, Arena]]:
    """One memory for all examples of a property: a writer and a reader of it."""
    made = create("property", GEOMETRY)
    opened = read_only(made)
    pair = Arena(made, GEOMETRY, writable=True), Arena(opened, GEOMETRY, writable=False)
    yield pair
    for arena in pair:
        arena.close()
    os.close(made)
    os.close(opened)


def test_items_wider_than_a_byte_count_in_bytes(producer: Arena) -> None:
    numbers = memoryview(bytes(range(16))).cast("I")
    assert producer.read(producer.write(REF, [numbers])) == bytes(range(16))


def test_slots_do_not_overlap(producer: Arena) -> None:
    refs = [
        producer.write(SlotRef(7, slot, 1), bytes([slot]) * GEOMETRY.slot_bytes)
        for slot in range(GEOMETRY.slots)
    ]
    for slot, ref in enumerate(refs):
        assert bytes(producer.read(ref)) == bytes([slot]) * GEOMETRY.slot_bytes


@pytest.mark.parametrize("parts", [b"x" * 5001, [b"x" * 5000, b"x"]])
def test_a_payload_that_does_not_fit_is_refused_before_a_byte_is_written(
    producer: Arena, parts: bytes | list[bytes]
) -> None:
    before = producer.write(REF, b"y" * 5000)
    with pytest.raises(TooLarge, match="5001 bytes exceeds the slot of 5000") as error:
        producer.write(REF, parts)
    assert error.value.param == "queue.slot_bytes"
    assert bytes(producer.read(before)) == b"y" * 5000


@pytest.mark.parametrize("slot", [-1, 4, 2**31])
def test_a_slot_outside_the_arena_is_a_protocol_error(producer: Arena, slot: int) -> None:
    with pytest.raises(ProtocolError, match="outside the arena of 4"):
        producer.read(SlotRef(7, slot, 1))
    with pytest.raises(ProtocolError, match="outside the arena of 4"):
        producer.write(SlotRef(7, slot, 1), b"x")


@pytest.mark.parametrize("length", [-1, 5001, 2**40])
def test_a_length_beyond_the_slot_is_a_protocol_error(producer: Arena, length: int) -> None:
    with pytest.raises(ProtocolError, match="exceeds the slot"):
        producer.read(SlotRef(7, 2, 1, length))


@given(payload=st.binary(min_size=1, max_size=400), place=WORD, bit=st.integers(0, 7))
def test_every_flipped_bit_is_caught(
    payload: bytes, place: int, bit: int, shared: tuple[Arena, Arena]
) -> None:
    writer, reader = shared
    ref = writer.write(REF, payload)
    writer.slot(REF.slot)[place % len(payload)] ^= 1 << bit
    with pytest.raises(CorruptSlot):
        reader.read(ref)


@given(
    payload=st.binary(max_size=400),
    slot=st.none() | st.integers(-2, 6),
    length=st.none() | st.integers(-2, 6000),
    checksum=st.none() | WORD,
)
def test_a_mutated_descriptor_is_refused_or_gives_exactly_what_it_describes(
    payload: bytes, slot: int | None, length: int | None, checksum: int | None, shared: tuple[Arena, Arena]
) -> None:
    writer, reader = shared
    true = writer.write(REF, payload)
    mutant = SlotRef(
        true.arena,
        true.slot if slot is None else slot,
        true.generation,
        true.length if length is None else length,
        true.checksum if checksum is None else checksum,
    )
    try:
        view = reader.read(mutant)
    except ProtocolError:
        assert mutant != true
        return
    assert (len(view), checksum_of(view)) == (mutant.length, mutant.checksum)
    if (mutant.slot, mutant.length) == (true.slot, true.length):
        assert view == payload


# ------------------------------------------------------------------------------------- decoders

KINDS = (SlotRef, ToWorker, FromWorker, ChatTask, EmbedTask, RerankTask)
_ref = st.builds(SlotRef, *[WORD] * 5)
_done = st.builds(Done, WORD, WORD, _ref, st.floats(0, 9), st.integers(1, 9))
_work = st.builds(Work, WORD, WORD, st.text(max_size=9), _ref, _ref, WORD, st.tuples(WORD, WORD), WORD)


@given(data=st.binary(max_size=300), kind=st.sampled_from(KINDS))
@example(b"\x91" * 100_000, ToWorker)
@example(b"\xa4\xff\xff\xff\xff", FromWorker)
def test_random_bytes_are_protocol_errors_or_messages(data: bytes, kind: type) -> None:
    try:
        decoder(kind)(data)
    except ProtocolError as error:
        assert error.code == "protocol"  # noqa: PT017 (success is allowed as well)


@given(message=_done | _work, cut=WORD, place=WORD, byte=st.integers(0, 255))
def test_damaged_messages_are_protocol_errors_or_messages(
    message: Done | Work, cut: int, place: int, byte: int
) -> None:
    data = bytearray(encode(message))
    data[place % len(data)] = byte
    for damaged in (bytes(data), bytes(data[: cut % len(data)]), bytes(data) + b"\0"):
        try:
            decoder(type(message))(damaged)
        except ProtocolError:
            continue


@given(ref=_ref)
def test_a_descriptor_survives_its_codec_and_stays_small(ref: SlotRef) -> None:
    packed = encode(ref)
    assert decoder(SlotRef)(packed) == ref
    assert len(packed) <= 26


# --------------------------------------------------------------------------------------- leases


class Leases(RuleBasedStateMachine):
    """Any order of leases and releases, right and wrong ones."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(arena=3, count=3)
        self.live: dict[int, SlotRef] = {}
        self.seen: set[tuple[int, int]] = set()
        self.past: list[SlotRef] = []

    @rule()
    def lease(self) -> None:
        ref = self.slots.lease()
        assert (ref is None) == (len(self.live) == 3)
        if ref is None:
            return
        assert ref.arena == 3
        assert ref.slot not in self.live
        assert (ref.slot, ref.generation) not in self.seen
        self.live[ref.slot] = ref
        self.seen.add((ref.slot, ref.generation))

    @precondition(lambda self: self.live)
    @rule(index=st.integers(0, 9))
    def release(self, index: int) -> None:
        slot = sorted(self.live)[index % len(self.live)]
        ref = self.live.pop(slot)
        self.slots.release(SlotRef(*[ref.arena, ref.slot, ref.generation], length=5, checksum=6))
        self.past.append(ref)

    @precondition(lambda self: self.past)
    @rule(index=st.integers(0, 99))
    def release_twice(self, index: int) -> None:
        with pytest.raises(KeyError, match="not leased at generation"):
            self.slots.release(self.past[index % len(self.past)])

    @rule(slot=st.integers(-1, 5), ahead=st.integers(1, 3))
    def release_what_was_never_lent(self, slot: int, ahead: int) -> None:
        newest = max((generation for at, generation in self.seen if at == slot), default=0)
        with pytest.raises(KeyError):
            self.slots.release(SlotRef(3, slot, newest + ahead))

    @invariant()
    def none_is_lost(self) -> None:
        assert self.slots.used == len(self.live)
        assert self.slots.used <= self.slots.count

    def teardown(self) -> None:
        """Whatever happened, all slots can be lent again."""
        for ref in self.live.values():
            self.slots.release(ref)
        again = [self.slots.lease() for _ in range(3)]
        assert {ref.slot for ref in again if ref} == {0, 1, 2}


TestLeases = Leases.TestCase


def test_a_generation_wraps_without_meeting_itself() -> None:
    slots = Slots(arena=1, count=1)
    slots._generation[0] = 0xFFFFFFFE
    for expected in (0xFFFFFFFF, 0, 1):
        ref = slots.lease()
        assert ref is not None
        assert ref.generation == expected
        slots.release(ref)


@pytest.mark.parametrize("place", [0, END_BYTES - 1, -1, -END_BYTES])
def test_a_large_payload_is_checked_at_both_ends(place: int):
    payload = bytearray(4 * CHECKED_BYTES)
    whole = checksum_of(payload)
    payload[place] ^= 1
    assert checksum_of(payload) != whole


@given(st.binary(min_size=1, max_size=4096), st.data())
def test_a_small_payload_is_checked_to_its_last_byte(payload: bytes, data: st.DataObject):
    bent = bytearray(payload)
    bent[data.draw(st.integers(0, len(payload) - 1))] ^= 1
    assert checksum_of(bytes(bent)) != checksum_of(payload)


def test_a_payload_computed_in_its_slot_is_described_and_read_back():
    descriptor = create("place", GEOMETRY)
    arena = Arena(descriptor, GEOMETRY, writable=True)
    arena.slot(2)[:4] = b"abcd"
    ref = arena.describe(REF, 4)
    assert bytes(arena.read(ref)) == b"abcd"
    arena.slot(2)[3:4] = b"x"
    with pytest.raises(CorruptSlot):
        arena.read(ref)
    with pytest.raises(TooLarge):
        arena.describe(REF, GEOMETRY.slot_bytes + 1)
    arena.close()
    os.close(descriptor)
