"""The passages of a task whose reranker was passed by: as many as it would have kept."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edged.messages import ChatTask, decoder, encode

_decode: Callable[[bytes | memoryview], ChatTask] = decoder(ChatTask)


def kept(task: ChatTask, keep: int) -> ChatTask:
    """The task with its first passages; `keep` as in `Work.keep`, what the task itself says goes first."""
    most = (task.keep or keep) if keep else 0
    if not task.grounded or not most or len(task.passages) <= most:
        return task
    return msgspec.structs.replace(task, passages=task.passages[:most])


def kept_payload(payload: bytes, keep: int) -> bytes:
    """The same of a packed task, for who is not told `keep`; 0: as it is. `ProtocolError` if it is none."""
    return encode(kept(_decode(payload), keep)) if keep else payload
