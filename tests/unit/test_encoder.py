"""Tokenizer files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.backend import Variant
from edged.errors import ModelError
from edged.stages.encoder import open_tokenizer


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xfe", b"{}", b'{"version": "1.0", "model": 7}'])
def test_a_file_that_is_no_tokenizer_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    variant = Variant(
        model="m", name="int8", task="embed", path=tmp_path / "model.onnx", format="onnx", tokenizer=path
    )
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer: .*; pull 'm' again"):
        open_tokenizer(variant)


def test_a_model_without_a_tokenizer_is_to_be_pulled_again(tmp_path: Path) -> None:
    variant = Variant(model="m", name="int8", task="embed", path=tmp_path / "model.onnx", format="onnx")
    with pytest.raises(ModelError, match="pull the model again"):
        open_tokenizer(variant)
