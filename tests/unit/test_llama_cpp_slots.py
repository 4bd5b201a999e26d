"""The slots of the KV cache: nothing is lent that is not there, and live sequences never want for room."""

from __future__ import annotations

import pytest
from edged_backends import llama_cpp as adapter
from edged_backends.llama_cpp_slots import MINIMUM_SHARED, Slots, common
from hypothesis import given, settings
from hypothesis import strategies as st

LIVE = 3
LIMIT_TOKENS = 120

prompts = st.builds(
    lambda start, length, end: [*([start] * length), *end],
    st.integers(0, 2),
    st.integers(0, 60),
    st.lists(st.integers(5, 7), min_size=1, max_size=20),
)


@settings(max_examples=300)
@given(
    steps=st.lists(st.tuples(prompts, st.integers(0, LIVE - 1), st.booleans()), max_size=40),
    spare=st.integers(0, 1),
)
def test_random_histories(steps: list[tuple[list[int], int, bool]], spare: int):
    slots = Slots(LIVE + spare, LIMIT_TOKENS * 2, token_bytes=2)
    live: dict[int, list[int]] = {}
    memory: dict[int, list[int]] = {slot: [] for slot in range(LIVE + spare)}
    for prompt, victim, ends in steps:
        if ends or len(live) == LIVE:
            if live:
                slot = sorted(live)[victim % len(live)]
                for empty in slots.keep(slot, live.pop(slot)):
                    memory[empty] = []
            continue
        claim = slots.claim(prompt, dict(live))
        assert claim.slot not in live
        assert claim.shared < len(prompt)
        assert claim.shared == 0 or claim.shared >= MINIMUM_SHARED
        if claim.shared:
            assert memory[claim.source][: claim.shared] == prompt[: claim.shared]
        live[claim.slot] = memory[claim.slot] = prompt
        assert slots.held_bytes <= LIMIT_TOKENS * 2
    slots.clear()
    assert slots.held_bytes == 0


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_is_the_longest_shared_beginning(first: list[int], second: list[int]):
    length = common(first, second)
    assert first[:length] == second[:length]
    assert first[length : length + 1] != second[length : length + 1] or length == min(len(first), len(second))


def test_the_least_recently_used_goes_first():
    slots = Slots(3, 10_000, token_bytes=1)
    texts = [[number] * 30 for number in range(3)]
    for text in texts[:2]:
        slots.keep(slots.claim(text, {}).slot, text)
    taken = [slots.claim([*texts[0], 9], {}), slots.claim(texts[2], {})]
    assert taken[0].shared == 30
    assert taken[1].slot == 1


@pytest.mark.parametrize(("sequences", "slots"), [(8, 9), (255, 256), (256, 256)])
def test_a_spare_slot_is_no_sequence_more_than_the_runtime_takes(variant, sequences: int, slots: int):
    settings = adapter.Options(max_sequences=sequences)
    weights = variant("smollm2-135m-instruct", "q4_1")
    assert adapter._shape(settings, weights, exact=True, accelerated=False).slots == slots
    assert slots <= adapter.runtime.llama_max_parallel_sequences()
