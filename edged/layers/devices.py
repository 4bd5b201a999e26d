"""How devices of a split model are written. Pure: whether there is such a device is asked elsewhere."""

from __future__ import annotations

import re

from edged.backend import names_no_core

_NUMBER = "[0-9]{1,5}"
_CORES = rf"{_NUMBER}(-{_NUMBER})?"
_CPU = rf"cpu(:{_CORES}(,{_CORES})*)?"
_CUDA = f"cuda:{_NUMBER}"

_HERE = re.compile(f"{_CPU}|{_CUDA}")
_TORCH = re.compile(rf"{_HERE.pattern}|tcp://[^\s/]+:{_NUMBER}")
_LLAMA = re.compile(f"{_HERE.pattern}|gpu:{_NUMBER}|igpu(:{_NUMBER})?")


def of_here(device: str) -> bool:
    """Whether a stage of `torch_pipeline` on this host may name it.

    >>> of_here("cpu:0-1"), of_here("cpu:5-1"), of_here("tcp://box-b:7701")
    (True, False, False)
    """
    return _is(_HERE, device)


def of_torch(device: str) -> bool:
    """Whether any stage of `torch_pipeline` may name it."""
    return _is(_TORCH, device)


def of_llama(device: str) -> bool:
    """Whether `llama_cpp` may name it, which other hosts' devices are not for."""
    return _is(_LLAMA, device)


def _is(grammar: re.Pattern[str], device: str) -> bool:
    return bool(grammar.fullmatch(device)) and not names_no_core(device)
