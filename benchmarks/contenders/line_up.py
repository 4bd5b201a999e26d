"""Who takes part, and the settings with which each does best here.

The settings were found by hand on two cores. They may differ by the number of clients, which is more than an
operator would tune.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One way to serve the pipeline."""

    name: str
    module: str
    """Below `benchmarks.contenders`."""
    packages: tuple[str, ...] = ()
    """What its virtual environment has; none means that it runs in the project's."""
    address: Literal["unix", "tcp"] = "unix"
    streams: bool = True
    best: dict[int, dict[str, Any]]
    """Settings by number of clients; for another number the nearest one above counts, or the last."""

    def settings(self, clients: int) -> dict[str, Any]:
        """The best settings for a number of clients."""
        return self.best[min((n for n in self.best if n >= clients), default=max(self.best))]


_ALONE: dict[str, Any] = {"threads": 2, "rerank_rows": 1}
_LANES: dict[str, Any] = {"replicas": 2, "threads": 1, "rerank_rows": 1}

CONTENDERS = (
    Contender(
        name="sequential",
        module="sequential",
        streams=True,
        best={16: _ALONE | {"sequences": 1}},
    ),
    Contender(
        name="threads",
        module="threads",
        best={
            1: _ALONE,
            16: {"threads": 1, "front_workers": 1, "rerank_rows": 1, "sequences": 16},
        },
    ),
    Contender(
        name="mosec",
        module="mosec_stages",
        packages=("mosec==0.9.8",),
        address="tcp",
        best={
            1: _ALONE | {"front_workers": 0},
            4: _LANES | {"front_workers": 0, "sequences": 2, "wait_s": 0.01},
            16: _LANES | {"front_workers": 0, "sequences": 8, "wait_s": 0.05},
        },
    ),
    Contender(
        name="litserve",
        module="litserve_batch",
        packages=("litserve==0.2.19",),
        address="tcp",
        streams=False,
        best={
            1: _ALONE | {"sequences": 1},
            4: _LANES | {"sequences": 2, "wait_s": 0.05},
            16: _LANES | {"sequences": 8, "wait_s": 0.05},
        },
    ),
    Contender(
        name="litserve-stream",
        module="litserve_batch",
        packages=("litserve==0.2.19",),
        address="tcp",
        best={
            1: _ALONE | {"wait_s": -1.0},
            4: _LANES | {"sequences": 2, "wait_s": -1.0},
            16: _LANES | {"sequences": 8, "wait_s": -1.0},
        },
    ),
    Contender(
        name="ray",
        module="ray_lanes",
        packages=("ray[serve]==2.60.0",),
        address="tcp",
        best={
            1: _ALONE,
            4: _LANES | {"sequences": 4},
            16: _LANES | {"sequences": 8},
        },
    ),
    Contender(
        name="lanes",
        module="lanes",
        best={
            1: _ALONE,
            4: _LANES | {"sequences": 2},
            16: _LANES | {"sequences": 8},
        },
    ),
)
BY_NAME = {contender.name: contender for contender in CONTENDERS}
