"""What every worker of a daemon is told at birth, besides its stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from edged.workers.spec import ArenaSpec, StageSpec, WorkerSpec

LogFormat = Literal["auto", "text", "json"]


class Births(msgspec.Struct, frozen=True):
    """Where workers report to, and how they log."""

    endpoint: Path
    log_level: str
    log_format: LogFormat

    def spec(
        self,
        incarnation: str,
        stage: StageSpec,
        arenas: tuple[ArenaSpec, ...],
        trial: Literal["", "warm", "guarded"],
    ) -> WorkerSpec:
        """Everything that a worker needs to know."""
        return WorkerSpec(
            incarnation=incarnation,
            endpoint=self.endpoint,
            parent=os.getpid(),
            stage=stage,
            trial=trial,
            arenas=arenas,
            log_level=self.log_level,
            log_format=self.log_format,
        )
