"""Fixtures of the adapters' contract tests."""

from __future__ import annotations

import numpy as np
import pytest

from edged.backend import Array


@pytest.fixture(scope="session")
def token_feeds() -> dict[str, Array]:
    """Four items of different length, padded to the longest, for models with token ids and a mask."""
    generator = np.random.default_rng(3)
    lengths = (5, 12, 9, 1)
    mask = np.array([[column < length for column in range(max(lengths))] for length in lengths], np.int64)
    return {"input_ids": generator.integers(1, 50, mask.shape) * mask, "attention_mask": mask}


@pytest.fixture(scope="session")
def encoder_feeds(token_feeds: dict[str, Array]) -> dict[str, Array]:
    """The same for BERT, with token types."""
    return {**token_feeds, "token_type_ids": np.zeros_like(token_feeds["input_ids"])}
