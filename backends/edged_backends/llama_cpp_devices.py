"""Which devices llama.cpp offers, and how they are called here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edged.backend import Capabilities, Device
from edged.layers.planning.llama_split import MAX_SEQUENCES
from edged_backends.llama_cpp_runtime import Accelerator, accelerators

BACKEND = "llama_cpp"
NODES = Path("/dev")
_DTYPES = ("f32", "f16", "q8_0", "q4_0", "q4_1")


def cpu() -> Device:
    """Describe the CPU."""
    return Device(
        id="cpu",
        kind="cpu",
        name=_processor(),
        backend=BACKEND,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        capabilities=Capabilities(dtypes=_DTYPES, max_sequences=MAX_SEQUENCES),
    )


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text("utf-8", "replace") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else "CPU"


def gpu(accelerator: Accelerator) -> Device:
    """Describe an accelerator under edged's name for it: `cuda:0`, `igpu`, `gpu:1`."""
    number = re.sub(r"\D", "", accelerator.name) or "0"
    cuda = accelerator.name.startswith("CUDA")
    kind = "cuda" if cuda else "igpu" if accelerator.integrated else "gpu"
    return Device(
        id="igpu" if kind == "igpu" and number == "0" else f"{kind}:{number}",
        kind=kind,  # type: ignore[arg-type] # one of the three above
        name=f"{accelerator.description} ({accelerator.name})",
        backend=BACKEND,
        memory_bytes=accelerator.memory_bytes,
        capabilities=Capabilities(dtypes=_DTYPES, max_sequences=MAX_SEQUENCES),
    )


def found_under(device: str) -> Accelerator | None:
    """Return the accelerator that edged calls `device`; None when llama.cpp sees none."""
    return next((each for each in accelerators() if gpu(each).id == device), None)


def without_support(usable: set[str], nodes: Path) -> list[Device]:
    """List GPUs whose device nodes exist while llama.cpp was built without their API."""
    missing = []
    if "cuda" not in usable and (nodes / "nvidia0").exists():
        missing.append(_unusable("cuda:0", "cuda", "GGML_CUDA"))
    if not usable and any(nodes.glob("dri/renderD*")) and not missing:
        missing.append(_unusable("gpu:0", "gpu", "GGML_VULKAN"))
    return missing


def _unusable(identity: str, kind: Any, flag: str) -> Device:
    remedy = (
        f"CMAKE_ARGS=-D{flag}=on pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
    )
    return Device(
        id=identity,
        kind=kind,
        name="a GPU that this build cannot use",
        backend=BACKEND,
        unusable=f"llama-cpp-python was built without {flag}: {remedy}",
    )
