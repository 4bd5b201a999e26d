"""Write a GGUF file anew with other tensor types, through llama.cpp."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

from edged.models.derive import Job, read_job


def requantise(job: Job) -> None:
    """Requantise to the file type in `job.parameters["type"]`, e.g. `Q4_0` or `Q2_K`."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type(job.parameters["type"])
    parameters.allow_requantize = True
    parameters.pure = bool(job.parameters.get("pure", False))
    status = llama_cpp.llama_model_quantize(
        job.base.encode(), job.target.encode(), ctypes.pointer(parameters)
    )
    if status:
        raise SystemExit(f"llama.cpp refused {job.base}: status {status}")


def file_type(name: str) -> int:
    """Return llama.cpp's number of a file type."""
    prefix = "LLAMA_FTYPE_MOSTLY_"
    known = {
        key.removeprefix(prefix): getattr(llama_cpp, key) for key in dir(llama_cpp) if key.startswith(prefix)
    }
    if name not in known:
        raise SystemExit(f"unknown file type {name!r}; known: {', '.join(sorted(known))}")
    return int(known[name])


if __name__ == "__main__":
    requantise(read_job(sys.argv))
