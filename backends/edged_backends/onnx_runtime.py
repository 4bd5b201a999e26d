"""The runtime itself, without its telemetry: the only importer of onnxruntime here.

Released builds (1.29 and later) report sessions and model names to an analytics service unless this variable
is set before the library is loaded. A gateway tells nobody outside what it runs.
"""

import os
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort
from onnxruntime.capi import (
    onnxruntime_pybind11_state as _state,  # pyright: ignore[reportAttributeAccessIssue] (no stubs)
)

native: Any = _state
__all__ = ["native", "ort"]
