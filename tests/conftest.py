"""Fixtures that every kind of test uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edged.backend import Variant

MODELS = Path(__file__).parents[1] / ".edged" / "models"


@pytest.fixture(scope="session")
def variant() -> Callable[[str, str], Variant]:
    """Give a model's variant with real weights: `variant("bge-small-en-v1.5", "int8")`."""

    def find(model: str, name: str) -> Variant:
        folder = MODELS / model / name
        generator = (folder / "model.gguf").exists()
        details: dict[str, object] = {}
        if model.startswith("bge"):
            prefix = "Represent this sentence for searching relevant passages: "
            details = {"pooling": "cls", "query_prefix": prefix, "dimension": 384}
        elif model.startswith("all-minilm"):
            details = {"pooling": "mean", "dimension": 384}
        return Variant(
            model=model,
            name=name,
            task="generate" if generator else "rerank" if "marco" in model else "embed",
            format="gguf" if generator else "onnx",
            path=folder / ("model.gguf" if generator else "model.onnx"),
            tokenizer=None if generator else folder / "tokenizer.json",
            context_tokens=8192 if generator else 256 if "minilm-l6" in model else 512,
            details=details,
        )

    return find
