"""A BERT encoder's safetensors weights as an ONNX graph, built node by node.

Inputs `input_ids`, `attention_mask`, `token_type_ids`: int64 [batch, sequence].
Output `last_hidden_state`: float32 [batch, sequence, hidden].
The layers are those of Devlin et al. 2019 (https://arxiv.org/abs/1810.04805), GELU in its erf form.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, checker, helper, numpy_helper
from safetensors import safe_open

from edged.models.derive import Job, read_job

OPSET = 17
IR_VERSION = 8
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Tensor = npt.NDArray[Any]


class BertGraph:
    """Collects nodes and weights; every method adds nodes and returns the name of the result."""

    def __init__(self, weights: dict[str, Tensor], heads: int, epsilon: float) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.hidden = int(weights["embeddings.word_embeddings.weight"].shape[1])
        self.layers = 1 + max(
            int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")
        )
        self._weights = weights
        self._heads = heads
        self._epsilon = epsilon

    def encoder(self) -> str:
        """Add the whole encoder."""
        mask = self._mask()
        state = self._embeddings()
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}"
            attended = self._attention(f"{prefix}.attention", state, mask)
            state = self._residual(f"{prefix}.attention.output", attended, state)
            inner = self._gelu(self._linear(f"{prefix}.intermediate.dense", state))
            state = self._residual(f"{prefix}.output", inner, state)
        return self._node("Identity", state, output="last_hidden_state")

    def _embeddings(self) -> str:
        words = self._node("Gather", self._weight("embeddings.word_embeddings.weight"), "input_ids")
        kinds = self._node(
            "Gather", self._weight("embeddings.token_type_embeddings.weight"), "token_type_ids"
        )
        length = self._node("Shape", "input_ids", start=1, end=2)
        zero = self._constant("zero", np.array([0], np.int64))
        positions = self._node(
            "Slice", self._weight("embeddings.position_embeddings.weight"), zero, length, zero
        )
        total = self._node("Add", self._node("Add", words, kinds), positions)
        return self._normalised("embeddings.LayerNorm", total)

    def _mask(self) -> str:
        """0 where a token is, the lowest float32 where padding is: [batch, 1, 1, sequence]."""
        kept = self._node("Cast", "attention_mask", to=TensorProto.FLOAT)
        axes = self._constant("mask_axes", np.array([1, 2], np.int64))
        padding = self._node("Sub", self._constant("one", np.float32(1)), self._node("Unsqueeze", kept, axes))
        return self._node("Mul", padding, self._constant("lowest", np.finfo(np.float32).min))

    def _attention(self, prefix: str, state: str, mask: str) -> str:
        query = self._split(f"{prefix}.self.query", state, [0, 2, 1, 3])
        key = self._split(f"{prefix}.self.key", state, [0, 2, 3, 1])
        value = self._split(f"{prefix}.self.value", state, [0, 2, 1, 3])
        scale = self._constant("scale", np.float32((self.hidden / self._heads) ** -0.5))
        scores = self._node("Mul", self._node("MatMul", query, key), scale)
        shares = self._node("Softmax", self._node("Add", scores, mask), axis=-1)
        mixed = self._node("Transpose", self._node("MatMul", shares, value), perm=[0, 2, 1, 3])
        return self._node("Reshape", mixed, self._constant("joined", np.array([0, 0, self.hidden], np.int64)))

    def _split(self, prefix: str, state: str, order: list[int]) -> str:
        """Project, and cut into heads: [batch, heads, sequence, hidden / heads] in the given order."""
        shape = np.array([0, 0, self._heads, self.hidden // self._heads], np.int64)
        projected = self._node("Reshape", self._linear(prefix, state), self._constant("heads", shape))
        return self._node("Transpose", projected, perm=order)

    def _residual(self, prefix: str, inner: str, state: str) -> str:
        added = self._node("Add", self._linear(f"{prefix}.dense", inner), state)
        return self._normalised(f"{prefix}.LayerNorm", added)

    def _linear(self, prefix: str, state: str) -> str:
        turned = np.ascontiguousarray(self._weights[f"{prefix}.weight"].T)
        product = self._node("MatMul", state, self._constant(f"{prefix}.weight", turned))
        return self._node("Add", product, self._weight(f"{prefix}.bias"))

    def _gelu(self, state: str) -> str:
        root = self._constant("root_two", np.float32(2**0.5))
        error = self._node("Erf", self._node("Div", state, root))
        raised = self._node("Add", error, self._constant("one", np.float32(1)))
        return self._node("Mul", self._node("Mul", state, raised), self._constant("half", np.float32(0.5)))

    def _normalised(self, prefix: str, state: str) -> str:
        weight, bias = self._weight(f"{prefix}.weight"), self._weight(f"{prefix}.bias")
        return self._node("LayerNormalization", state, weight, bias, axis=-1, epsilon=self._epsilon)

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _constant(self, name: str, value: Any) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"{name}_node", **attributes))
        return name


def export(job: Job) -> None:
    """Write the graph; parameters `heads` and `epsilon` are those of the model's config."""
    with safe_open(job.base, "np") as file:
        weights = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118 no dict
    graph = BertGraph(weights, int(job.parameters["heads"]), float(job.parameters["epsilon"]))
    model = _model(graph, graph.encoder())
    checker.check_model(model)
    Path(job.target).write_bytes(model.SerializeToString(deterministic=True))


def _model(graph: BertGraph, output: str) -> Any:
    axes = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in INPUTS]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [*axes, graph.hidden])]
    body = helper.make_graph(graph.nodes, "bert", inputs, outputs, list(graph.initializers.values()))
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION, producer_name="edged")


if __name__ == "__main__":
    export(read_job(sys.argv))
