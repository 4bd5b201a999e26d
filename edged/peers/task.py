"""What a peer may ask a generator for, and what it may answer: pure.

A task of our own came through the API, which has checked it; a peer's came through a peer, which may lie.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.errors import ProtocolError
from edged.messages import Answer, ChatTask, decoder

MOST_MESSAGES = 4096
MOST_TOKENS = 1 << 20
MOST_PASSAGES = 1000
MOST_STOPS = 4

_decode: Callable[[bytes], ChatTask] = decoder(ChatTask)
read_answer: Callable[[bytes], Answer] = decoder(Answer)
"""What a peer made of a task; `ProtocolError` where that is no answer."""


def check_task(payload: bytes) -> None:
    """`ProtocolError` for a task that no node sends."""
    task = _decode(payload)
    numbers = (task.max_tokens, task.ceiling.answer_tokens)
    counts = (task.candidates, task.keep, task.ceiling.candidates, task.ceiling.keep, len(task.passages))
    fine = (
        0 < len(task.messages) <= MOST_MESSAGES
        and all(0 <= number <= MOST_TOKENS for number in numbers)
        and all(0 <= count <= MOST_PASSAGES for count in counts)
        and len(task.stop) <= MOST_STOPS
        and all(task.stop)
    )
    if not fine:
        raise ProtocolError("a task of a peer is outside the limits that every node keeps")


def answer_tokens(payload: bytes, default: int) -> int:
    """Most tokens of the answer to a task of our own; `default`: where it names no limit (0: not known)."""
    task = _decode(payload)
    limits = (task.max_tokens or default, task.ceiling.answer_tokens)
    return min((limit for limit in limits if limit), default=MOST_TOKENS)
