"""How much of a layer pipeline can be asked for, wherever that is asked. Pure."""

from __future__ import annotations

MOST_SEQUENCES = 1024
"""Of all micro-batches together."""
CONTEXT_TOKENS = 2048
"""Context where nothing else is asked for, if the model has as much."""
