"""The layer pipeline keeps the contract of a token session, and promises of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from edged_backends.torch_pipeline import TorchPipelineBackend

from edged.backend import Variant
from edged.testing.token_contract import TokenContract

OPTIONS = {"max_sequences": 4, "context_tokens": 512, "devices": ["cpu", "cpu"]}


@pytest.fixture(scope="session")
def backend():
    return TorchPipelineBackend()


class TestTorchPipeline(TokenContract):
    @pytest.fixture(scope="class")
    @classmethod
    def variant(cls, variant: Callable[[str, str], Variant]) -> Variant:
        return variant("smollm2-135m-instruct", "q4_1")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls):
        return OPTIONS

    @pytest.fixture(scope="class")
    @classmethod
    def stopping_prompt(cls, session) -> list[int]:
        text = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
        return session.vocabulary.encode(text, special=True)
