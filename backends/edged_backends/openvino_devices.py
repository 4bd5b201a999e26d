"""What OpenVINO sees on this machine, and what it does not see although it is there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.backend import Capabilities, Device, Kind
from edged.errors import BackendError, DeviceLost

BACKEND = "openvino"
ERRORS = (RuntimeError, TypeError, ValueError)
"""What the runtime's Python bindings raise."""
_LOST = (
    "DEVICE_LOST",
    "DEVICE_REQUIRES_RESET",
    "device lost",
    "CL_DEVICE_NOT_AVAILABLE",
    "CL_OUT_OF_RESOURCES",
    "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST",
    "NPU device is not available",
)
"""What the GPU plugin (OpenCL) and the NPU plugin (Level Zero) say of a device that hung, was reset or left.

After CL_OUT_OF_RESOURCES the plugin itself warns that no later call can be relied on, whatever the cause.
Taken from reports of the plugins' users; never seen on hardware here.
"""
_NUMBERED = re.compile(r"\[GPU\] \w+, error code: -(?:2|5|14)\b")
"""The same where the plugin gives the OpenCL error by number only (before 2025.1)."""
_DTYPES = {"FP32": "f32", "FP16": "f16", "BF16": "bf16", "INT8": "i8"}
_INTEL = "0x8086"
Accessible = Callable[[Path], bool]


def list_devices(core: Any, root: Path) -> list[Device]:
    """List the devices of the runtime, then the accelerators under `root` that it cannot use."""
    seen = list(_visible(core).values())
    families = {_family(device) for device in seen}
    hidden = hidden_accelerators(root, accessible)
    return seen + [device for device in hidden if _family(device) not in families]


def translated(error: Exception, what: str) -> BackendError:
    """Turn an exception of the runtime to ours; a vanished device is told by the driver's own words."""
    lost = any(sign in str(error) for sign in _LOST) or _NUMBERED.search(str(error)) is not None
    return (DeviceLost if lost else BackendError)(f"{what}: {error}")


def runtime_name(core: Any, device: Device) -> str:
    """Return OpenVINO's name of a device (`CPU`, `GPU.1`, `NPU`); `DeviceLost` when it is gone."""
    if device.kind == "cpu":
        return "CPU"
    for name, seen in _visible(core).items():
        if seen.id == device.id:
            return name
    raise DeviceLost(f"openvino no longer sees the device {device.id}")


def _visible(core: Any) -> dict[str, Device]:
    """Describe every device that the runtime can use, by the runtime's name."""
    return {name: describe(name, _reader(core, name)) for name in core.available_devices}


def _reader(core: Any, name: str) -> Callable[[str], Any]:
    def read(key: str) -> Any:
        try:
            return core.get_property(name, key)
        except ERRORS:
            return None

    return read


def describe(name: str, read: Callable[[str], Any]) -> Device:
    """Describe a device from its properties; `read` gives None for what the device does not tell."""
    kind = _kind(name, str(read("DEVICE_TYPE")))
    number = name.partition(".")[2] or "0"
    abilities = read("OPTIMIZATION_CAPABILITIES") or ()
    return Device(
        id=f"gpu:{number}" if kind == "gpu" else kind,
        kind=kind,
        name=str(read("FULL_DEVICE_NAME") or name),
        backend=BACKEND,
        memory_bytes=_memory_bytes(kind, read),
        capabilities=_capabilities(kind, tuple(_DTYPES[key] for key in _DTYPES if key in abilities)),
    )


def _kind(name: str, device_type: str) -> Kind:
    if name.startswith("GPU"):
        return "gpu" if "DISCRETE" in device_type.upper() else "igpu"
    return "npu" if name.startswith("NPU") else "cpu"


def _memory_bytes(kind: Kind, read: Callable[[str], Any]) -> int:
    if kind == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    key = "NPU_DEVICE_TOTAL_MEM_SIZE" if kind == "npu" else "GPU_DEVICE_TOTAL_MEM_SIZE"
    return int(read(key) or 0)


def _capabilities(kind: Kind, dtypes: tuple[str, ...]) -> Capabilities:
    if kind == "npu":
        return Capabilities(dtypes=dtypes, static_shapes=True, max_batch=1, max_sequences=1)
    return Capabilities(dtypes=dtypes)


def accessible(node: Path) -> bool:
    """Say whether this process may use a device node."""
    return os.access(node, os.R_OK | os.W_OK)


def hidden_accelerators(root: Path, usable: Accessible) -> list[Device]:
    """List Intel GPUs and NPUs that have a device node under `root`, with why they are not seen."""
    found = [
        _hidden("igpu", "GPU", root / "dev/dri", "renderD*", root / "sys/class/drm", usable),
        _hidden("npu", "NPU", root / "dev/accel", "accel*", root / "sys/class/accel", usable),
    ]
    return [device for device in found if device]


def _hidden(
    kind: Kind, label: str, folder: Path, pattern: str, classes: Path, usable: Accessible
) -> Device | None:
    nodes = [node for node in sorted(folder.glob(pattern)) if _vendor(classes / node.name) in {"", _INTEL}]
    if not nodes:
        return None
    denied = [node for node in nodes if not usable(node)]
    driver = "intel-opencl-icd" if kind == "igpu" else "the intel NPU user-space driver (level-zero)"
    reason = (
        f"no permission on {denied[0]}: add the user to the group that owns it (render)"
        if denied
        else f"openvino finds no driver for {nodes[0]}: install {driver}"
    )
    return Device(id=kind, kind=kind, name=f"Intel {label}", backend=BACKEND, unusable=reason)


def _vendor(entry: Path) -> str:
    path = entry / "device/vendor"
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def _family(device: Device) -> str:
    return "gpu" if device.kind == "igpu" else device.kind
