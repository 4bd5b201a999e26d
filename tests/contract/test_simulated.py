"""The simulated adapter keeps both contracts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edged_backends.simulated import SimulatedBackend

from edged.backend import Variant
from edged.testing.tensor_contract import TensorContract
from edged.testing.token_contract import TokenContract

IDS = np.array([[2, 7, 8, 3, 7, 8, 3], [2, 7, 8, 3, 9, 10, 3], [2, 5, 6, 3, 5, 9, 3]])
TYPES = np.array([[0, 0, 0, 0, 1, 1, 1]] * 3)
MASK = np.array([[1] * 7, [1] * 7, [1] * 6 + [0]])


def made(task: str) -> Variant:
    return Variant(
        model="simulated", name="none", task=task, format="none", path=Path("/dev/null"), context_tokens=2048
    )


@pytest.fixture(scope="session")
def backend():
    return SimulatedBackend()


class TestSimulatedGenerator(TokenContract):
    new_tokens = 40

    @pytest.fixture(scope="class")
    @classmethod
    def variant(cls):
        return made("generate")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls):
        return {"max_sequences": 4, "end_one_in": 60, "batch_tokens": 16}

    @pytest.fixture(scope="class")
    @classmethod
    def prompts(cls, session) -> list[list[int]]:
        return [session.vocabulary.encode(f"text {number}", special=False) for number in (2, 6, 8)]

    @pytest.fixture(scope="class")
    @classmethod
    def stopping_prompt(cls, session) -> list[int]:
        return session.vocabulary.encode("text 3", special=False)


class _EncoderContract(TensorContract):
    # The simulated runtime reads no weights, `none` is the format that it does open, its CPU has no cores.
    test_a_corrupt_file_is_a_backend_error = None
    test_a_format_that_it_does_not_open_is_refused = None
    test_a_set_of_cores_is_a_device = None

    @pytest.fixture
    def feeds(self):
        return {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}


class TestSimulatedEmbedder(_EncoderContract):
    @pytest.fixture
    def variant(self) -> Variant:
        return made("embed")


class TestSimulatedReranker(_EncoderContract):
    @pytest.fixture
    def variant(self) -> Variant:
        return made("rerank")
