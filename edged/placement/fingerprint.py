"""What decides the price of work here: the machine, the versions of its runtimes, the weights.

Cheap on purpose, and imports no runtime: the daemon asks too. Accelerators are therefore what sysfs lists,
not what a runtime does. Not /dev either: a confined service sees fewer nodes than the shell in which
`edgectl calibrate` runs, and NVIDIA's driver makes some only when they are first used.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edged.errors import NotFound
from edged.governor.sensors import total_memory_bytes
from edged.models.store import ModelStore
from edged.placement.staleness import PACKAGES
from edged.placement.table import Fingerprint, Plan, Table


def take(models: Mapping[str, str], root: Path = Path("/")) -> Fingerprint:
    """The fingerprint of this machine with these weights: digest by `model/variant`."""
    return Fingerprint(
        cpu=_cpu(root),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=total_memory_bytes(),
        accelerators=_accelerators(root),
        kernel=platform.release(),
        packages=_packages(),
        models=dict(models),
    )


def known_fingerprint(table: Table | Plan, store: ModelStore) -> Fingerprint:
    """The fingerprint of the machine with the weights that a table or a plan knows.

    Reads no weights and loads no runtime; weights that are no longer here are left out.
    """
    return take({name: digest for name in table.fingerprint.models if (digest := _digest(store, name))})


def _digest(store: ModelStore, name: str) -> str:
    model, _, variant = name.partition("/")
    try:
        return store.recorded_digest(model, variant)
    except NotFound:  # its manifest is gone
        return ""


def _cpu(root: Path) -> str:
    """Model name as the kernel gives it; on ARM, which has none, the part numbers."""
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    part = f"{facts.get('CPU implementer', '')} {facts.get('CPU part', '')}".strip()
    return facts.get("model name") or f"{platform.machine()} {part}".strip()


def _accelerators(root: Path) -> tuple[str, ...]:
    nodes = [*root.glob("sys/class/drm/renderD*"), *root.glob("sys/class/accel/accel*")]
    named = [f"{node.name} {_identity(node / 'device')}".strip() for node in nodes]
    cards = sorted(root.glob("sys/bus/pci/drivers/nvidia/*:*:*.*"))
    named += [f"nvidia{number} {_identity(card)}".strip() for number, card in enumerate(cards)]
    return tuple(sorted(named))


def _identity(device: Path) -> str:
    try:
        return ":".join((device / name).read_text().strip() for name in ("vendor", "device"))
    except OSError:
        return ""


def _packages() -> dict[str, str]:
    names = ["edged", *(name for group in PACKAGES.values() for name in group)]
    return {name: found for name in names if (found := _version(name))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
