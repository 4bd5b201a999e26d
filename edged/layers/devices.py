"""How devices of a split model are written. Pure: whether there is such a device is asked elsewhere."""

from __future__ import annotations

import re

_NUMBER = "[0-9]{1,5}"
_CORES = rf"{_NUMBER}(-{_NUMBER})?"
_CPU = rf"cpu(:{_CORES}(,{_CORES})*)?"
_CUDA = f"cuda:{_NUMBER}"

HERE = re.compile(f"{_CPU}|{_CUDA}")
"""Of a stage of `torch_pipeline` on this host."""
TORCH = re.compile(rf"{HERE.pattern}|tcp://[^\s/]+:{_NUMBER}")
"""Of any stage of `torch_pipeline`."""
LLAMA = re.compile(f"{HERE.pattern}|gpu:{_NUMBER}|igpu(:{_NUMBER})?")
"""Of `llama_cpp`, which other hosts' devices are not for."""
