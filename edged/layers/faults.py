"""torch's exceptions as edged's, with the stage named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edged.errors import BackendError, DeviceLost
from edged.layers.stage import Runner
from edged.layers.wire import Job

NO_MEMORY = (
    "no memory left on its device; give it fewer layers, lower context_tokens or max_sequences, or keep its "
    "weights outside (option overlap)"
)


@contextmanager
def explained(stage: int) -> Iterator[None]:
    """Translate what torch raises: a device that is gone to `DeviceLost`, all else to `BackendError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BackendError(f"stage {stage}: {NO_MEMORY} ({_first_line(error)})") from error
    except torch.AcceleratorError as error:
        raise DeviceLost(f"stage {stage}: its device failed: {_first_line(error)}") from error
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        if "DefaultCPUAllocator" in str(error):
            raise BackendError(f"stage {stage}: {NO_MEMORY} ({_first_line(error)})") from error
        raise BackendError(f"stage {stage}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class Explained:
    """A runner whose exceptions are edged's."""

    def __init__(self, runner: Runner, stage: int) -> None:
        self._runner = runner
        self._stage = stage

    @property
    def copy_s(self) -> float:
        """See `Runner.copy_s`."""
        return self._runner.copy_s

    def run(self, job: Job, tensor: torch.Tensor, /) -> torch.Tensor:
        """See `Runner.run`."""
        with explained(self._stage):
            return self._runner.run(job, tensor)

    def close(self) -> None:
        """See `Runner.close`."""
        self._runner.close()
