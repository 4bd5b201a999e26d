"""Which device a temperature sensor sits on, by the name that its driver gives: pure.

Names are those of the kernel's drivers (Documentation/hwmon, Documentation/driver-api/thermal) and of the
thermal zones in common device trees.
"""

from __future__ import annotations

import re

_DEVICES = (
    ("npu", r"npu|intel_vpu|ivpu|hailo|apex|edgetpu"),
    ("gpu", r"amdgpu|radeon|nouveau|nvidia"),
    ("igpu", r"i915|xe$|gpu|gfx|mali|graphics"),
    (
        "cpu",
        r"coretemp|k\d+temp|zenpower|x86_pkg|via_cpu|cpu|tcpu|b0d4|soc|package|bigcore|littlecore|cluster|peci",
    ),
    ("nvme", r"nvme"),
    ("disk", r"drivetemp"),
    ("wifi", r"iwlwifi|ath\d+k|mt7\d+|wifi|wlan|rtw"),
    ("memory", r"jc42|spd5118|ddr|dimm|dram"),
    ("battery", r"bat\d*$|battery"),
    ("network", r"r8169|igc|igb|ixgbe|i40e|ice$|mlx|tg3|bnxt|enp|eth\d|sfp|phy|atlantic"),
    (
        "board",
        r"acpitz|pch|sen\d|int340|thinkpad|dell|asus|nct\d|it8\d|w83|f718|lm\d\d|tmp\d|board|ambient|case",
    ),
)
_PART = re.compile(r"^(core|ccd|tccd|sensor|gpu core|edge|mem)\b.*\d|bigcore|littlecore|cluster|^cpu\d")
DIES = frozenset({"cpu", "igpu", "gpu", "npu"})
"""Sensors in the silicon itself, which follow the load within a second."""


def device_of(chip: str, label: str = "", unit: str = "") -> str:
    """The device behind a chip or zone; its own name when nobody knows it. `unit`: the kernel's, as `nvme0`.

    >>> device_of("coretemp", "Core 0"), device_of("npu-thermal"), device_of("nvme", "Composite", "nvme1")
    ('cpu', 'npu', 'nvme1')
    """
    text = chip.lower()
    device = next((name for name, pattern in _DEVICES if re.match(pattern, text)), "")
    if not device or device == "board":
        by_label = next((name for name, pattern in _DEVICES[:4] if re.match(pattern, label.lower())), "")
        device = by_label or device or text
    return unit if unit.startswith(device) and unit[len(device) :].isdecimal() else device


def is_part(chip: str, label: str) -> bool:
    """Whether a sensor feels one spot of its device only.

    >>> is_part("coretemp", "Core 3"), is_part("coretemp", "Package id 0"), is_part("bigcore0-thermal", "")
    (True, False, True)
    """
    return bool(_PART.search((label or chip).lower()))
