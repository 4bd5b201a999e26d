"""How a token engine reads prompts while it answers others: pure, for adapters and for the simulator.

A step reads a bounded number of prompt tokens, so that running answers do not stall. Half of them go to the
prompt that came first, which therefore never starves; the rest, and what it leaves, to the shortest first,
which keeps the mean time to the first token low: of two prompts alike the older is through in half of the
time, where equal shares would keep both until the end, and a short one does not wait for a long one.
"""

from __future__ import annotations

from collections.abc import Sequence


def least_tokens(block: int) -> int:
    """The smallest step in which the oldest and the shortest prompt both have a part."""
    return 2 * block if block > 1 else 1


def shares(unread: Sequence[int], budget: int, block: int = 1) -> list[int]:
    """Divide the prompt tokens of a step among prompts, in order of arrival; some get nothing yet.

    A part that does not end its prompt is whole blocks; `budget` is one at least.

    >>> shares([900, 900, 20], 128), shares([900, 900, 20], 128, block=32), shares([90, 80, 70], 64, block=32)
    ([108, 0, 20], [96, 0, 20], [32, 0, 32])
    """
    if not unread:
        return []
    takes, left = [0] * len(unread), budget
    shortest_first = sorted(range(len(unread)), key=lambda place: unread[place])
    for place, most in [(0, max(budget // 2, block)), *((place, budget) for place in shortest_first)]:
        room, rest = min(most, left), unread[place] - takes[place]
        more = rest if rest <= room else room // block * block
        takes[place] += more
        left -= more
    return takes
