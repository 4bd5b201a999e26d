"""How the prompt tokens of a step are divided."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edged.prefill import shares

BLOCK = 32
prompts = st.lists(st.integers(1, 2000), min_size=1, max_size=16)
blocks = st.sampled_from((1, BLOCK))
budgets = st.integers(BLOCK, 600)


def steps_to_the_end(unread: list[int], budget: int, block: int = 1) -> list[int]:
    """In which step each prompt is through."""
    left, ends, step = list(unread), [0] * len(unread), 0
    while any(left):
        step += 1
        assert step <= sum(unread), "nothing gets on"
        waiting = [place for place, rest in enumerate(left) if rest]
        for place, take in zip(
            waiting, shares([left[place] for place in waiting], budget, block), strict=True
        ):
            left[place] -= take
            ends[place] = ends[place] or (step if not left[place] else 0)
    return ends


@given(prompts, budgets, blocks)
def test_a_step_reads_what_it_may_and_no_more_than_there_is(unread, budget, block):
    takes = shares(unread, budget, block)
    assert all(0 <= take <= rest for take, rest in zip(takes, unread, strict=True))
    assert min(budget, sum(unread)) - block < sum(takes) <= budget
    assert all(not take % block or take == rest for take, rest in zip(takes, unread, strict=True))


@given(prompts, budgets, blocks)
def test_the_oldest_prompt_gets_half_of_every_step(unread, budget, block):
    oldest = shares(unread, budget, block)[0]
    assert oldest > min(unread[0], budget // 2) - block
    assert oldest >= min(unread[0], block)


def test_nobody_is_nothing_to_share():
    assert shares([], 64) == []


@given(st.integers(1, 900), st.integers(2, 8), st.integers(64, 512))
def test_of_prompts_alike_one_after_the_other_is_through(tokens, count, budget):
    ends = steps_to_the_end([tokens] * count, budget)
    assert ends == sorted(ends)
    assert ends[0] <= -(-tokens // budget)
    assert ends[-1] == -(-tokens * count // budget)


def test_a_short_prompt_does_not_wait_for_a_long_one():
    assert steps_to_the_end([8000, 90], 64, BLOCK) == [127, 3]


def test_a_long_prompt_gets_on_while_short_ones_keep_coming():
    long, steps = 800, 0
    while long > 0:
        long -= shares([long, 64, 64], 64, BLOCK)[0]
        steps += 1
    assert steps == 24  # half of each step, and all of the last
