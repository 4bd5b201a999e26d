"""What a pipeline with stages on other hosts cannot be. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edged.errors import ConfigError
from edged.layers.remote.messages import MOST_TOKENS
from edged.layers.spec import is_elsewhere

if TYPE_CHECKING:
    from edged.layers.assembly import Settings


def check_elsewhere(settings: Settings, devices: Sequence[str]) -> None:
    """Raise `ConfigError` for a combination that has no meaning."""
    if not any(map(is_elsewhere, devices)):
        return
    if is_elsewhere(devices[0]):
        raise ConfigError(
            f"the first stage computes where the pipeline is started, not at {devices[0]}; put a device of "
            "this host first",
            param="devices",
        )
    if settings.transport not in {"auto", "zeromq"} or settings.mode == "seed":
        what = "mode 'seed'" if settings.mode == "seed" else f"transport {settings.transport!r}"
        raise ConfigError(
            f"{what} cannot reach a stage on another host; leave mode and transport as they are by default",
            param="transport",
        )
    if settings.prefill_tokens > MOST_TOKENS:
        raise ConfigError(
            f"prefill_tokens = {settings.prefill_tokens} is more than the {MOST_TOKENS} that a stage on "
            "another host takes in one message",
            param="prefill_tokens",
        )
