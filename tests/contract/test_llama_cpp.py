"""The llama.cpp adapter keeps the contract of a token session, and promises of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edged.backend import Variant
from edged.testing.token_contract import TokenContract

adapter = pytest.importorskip("edged_backends.llama_cpp", reason="llama-cpp-python is not installed")

OPTIONS = {"max_sequences": 4, "context_tokens": 512, "threads": 1, "batch_tokens": 32}


@pytest.fixture(scope="session")
def backend():
    return adapter.LlamaCppBackend()


class TestLlamaCpp(TokenContract):
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
