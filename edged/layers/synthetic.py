"""A stage that takes its time and computes nothing: the schedule alone is measured with it."""

from __future__ import annotations

import time

import torch

from edged.layers.spec import Synthetic
from edged.layers.wire import Job


class SyntheticStage:
    """Waits for `stage_s`; passes zeros of the right shape on, and chooses token 0."""

    copy_s = 0.0

    def __init__(self, synthetic: Synthetic, *, last: bool) -> None:
        self._synthetic = synthetic
        self._last = last

    def run(self, job: Job, tensor: torch.Tensor, /) -> torch.Tensor:
        """See `Runner.run`."""
        time.sleep(self._synthetic.stage_s)
        if self._last:
            return torch.zeros(sum(row.emit for row in job.rows), dtype=torch.int64)
        return torch.zeros((*tensor.shape[:2], self._synthetic.hidden))

    def close(self) -> None:
        """See `Runner.close`."""
