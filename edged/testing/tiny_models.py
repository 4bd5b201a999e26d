"""Tiny ONNX models made on the spot, for tests of tensor sessions. Needs the package `onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edged.backend import Variant

OPSET = 17
VOCABULARY, WIDTH = 50, 4


def affine_model(folder: Path) -> Variant:
    """Make `y = x W + b` over float32 [batch, 3] -> [batch, 2]."""
    weights = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    return _variant(_save(_affine_graph(weights), folder / "affine.onnx"), "tensor")


def encoder_model(folder: Path) -> Variant:
    """Make an encoder: `last_hidden_state` [b, s, 4] is the masked embedding plus its masked mean.

    Inputs `input_ids` and `attention_mask`, int64 [b, s]. Each token's vector depends on the unmasked
    tokens of its own item only, as in a real encoder, so padding must not show.
    """
    table = np.random.default_rng(7).normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["total"], keepdims=1),
        helper.make_node("ReduceSum", ["column", "middle"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Add", ["masked", "mean"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "column"], ["last_hidden_state"]),
    ]
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    hidden = helper.make_tensor_value_info(
        "last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", WIDTH]
    )
    constants = {"table": table, "last": np.array([-1]), "middle": np.array([1])}
    initialisers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "encoder", tokens, [hidden], initialisers)
    return _variant(_save(graph, folder / "encoder.onnx"), "embed")


def external_model(folder: Path, location: str) -> Variant:
    """Make the affine model with its weights in the file that `location` names, which is not written."""
    graph = _affine_graph(np.ones((3, 2), np.float32))
    tensor = graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "24"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return _variant(_save(graph, folder / "external.onnx"), "tensor")


def _affine_graph(weights: np.ndarray[Any, Any]) -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    initialisers = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([0.5, -0.5], np.float32), "bias"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    return helper.make_graph(nodes, "affine", [x], [y], initialisers)


def _save(graph: Any, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def _variant(path: Path, task: Any) -> Variant:
    return Variant(model=path.stem, name="fp32", task=task, format="onnx", path=path, context_tokens=64)
