"""Work for ever, whatever happens: who looks after peers must not end unheard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def kept_up(
    work: Callable[[], Coroutine[Any, Any, None]], broken: Callable[[BaseException], None]
) -> None:
    """Run, and run again each time that an exception ends it, after `broken` was told of that."""
    while True:
        task = asyncio.ensure_future(work())
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        broken(error)
