"""Three stages that do nothing, on mosec: `python mosec_empty.py PORT`; batch size from the environment."""

from __future__ import annotations

import os
from typing import Any

from mosec import Server, Worker


class Pass(Worker):
    """Hands on what it gets."""

    def deserialize(self, data: bytes) -> Any:
        return data

    def serialize(self, data: Any) -> bytes:
        return bytes(data)

    def forward(self, data: Any) -> Any:
        return data


class Second(Pass):
    """The second stage: mosec wants a class for each."""


class Third(Pass):
    """The third stage."""


def main() -> None:
    """Serve until killed."""
    server = Server()
    batch = int(os.environ.get("MAX_BATCH", "1"))
    for stage in (Pass, Second, Third):
        server.append_worker(stage, num=1, max_batch_size=batch, max_wait_time=1)
    server.run()


if __name__ == "__main__":
    main()
