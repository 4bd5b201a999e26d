"""Int8 weights for an ONNX model, through onnxruntime's dynamic quantiser."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded: nobody is told what runs here

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edged.models.derive import Job, read_job

DEFAULT_OPERATORS = ["MatMul", "Gather"]


def quantise(job: Job) -> None:
    """Quantise; parameters `per_channel`, `reduce_range`, `weight_type` and `operators` are onnxruntime's.

    `keep` lists patterns of weights that stay as they are, e.g. `*.output.dense.weight`.
    """
    chosen = job.parameters
    model = onnx.load(job.base, load_external_data=False)
    quantize_dynamic(
        model,
        job.target,
        op_types_to_quantize=chosen.get("operators", DEFAULT_OPERATORS),
        per_channel=chosen.get("per_channel", True),
        reduce_range=chosen.get("reduce_range", False),
        weight_type=QuantType[chosen.get("weight_type", "QInt8")],
        nodes_to_exclude=nodes_of(model, chosen.get("keep", [])),
        extra_options={"MatMulConstBOnly": True},
    )


def nodes_of(model: Any, patterns: Sequence[str]) -> list[str]:
    """Return the names of the nodes that take a weight matching any of the patterns."""
    return [
        node.name
        for node in model.graph.node
        if any(fnmatchcase(weight, pattern) for weight in node.input for pattern in patterns)
    ]


if __name__ == "__main__":
    quantise(read_job(sys.argv))
