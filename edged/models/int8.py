"""Int8 weights for an ONNX model, through onnxruntime's dynamic quantiser."""

from __future__ import annotations

import sys

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edged.models.derive import Job, read_job

DEFAULT_OPERATORS = ["MatMul", "Gather"]


def quantise(job: Job) -> None:
    """Quantise; parameters `per_channel`, `reduce_range`, `weight_type` and `operators` are onnxruntime's."""
    chosen = job.parameters
    quantize_dynamic(
        onnx.load(str(job.base), load_external_data=False),
        job.target,
        op_types_to_quantize=chosen.get("operators", DEFAULT_OPERATORS),
        per_channel=chosen.get("per_channel", True),
        reduce_range=chosen.get("reduce_range", False),
        weight_type=QuantType[chosen.get("weight_type", "QInt8")],
        extra_options={"MatMulConstBOnly": True},
    )


if __name__ == "__main__":
    quantise(read_job(sys.argv))
