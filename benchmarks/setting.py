"""What the measurements share: the sample documents, ingested once, and questions about them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measurement import say

ROOT = Path(__file__).parents[1]
STATE = ROOT / ".edged"
"""Models and caches, shared with the demo and the tests."""

_TOPICS = (
    "How long must the reset button be held to restore the factory settings?",
    "What does a blinking amber NET LED mean?",
    "Which TCP port does the Modbus bridge listen on?",
    "What is the default address of the LAN port?",
    "How many clients can the Modbus bridge serve at once?",
    "At which silicon temperature does the gateway switch itself off?",
    "How much power does the gateway draw under full load?",
    "Which fuse protects the supply line?",
    "How long does the CR2032 cell last?",
    "When must the storage card be replaced?",
    "What does alarm A310 mean?",
    "What was the cause when pump 2 stopped answering?",
    "Which firmware version must an update from 3.x to 5.x go through?",
    "How long may antenna cables be?",
    "What is the permitted ambient temperature?",
    "Which DIP switch turns on the termination resistor?",
    "How often should terminal screws be checked?",
    "What happens after 15 minutes without registration?",
    "Who did the yearly inspection?",
    "Which account is used for the first login?",
    "How much free space is needed above the gateway?",
    "What is the range of addresses of the DHCP server?",
    "How tight should SMA connectors be?",
    "What does a steady red SYS LED mean?",
)
QUESTIONS = _TOPICS


def sample_state() -> Path:
    """A state folder with the default models and a library of the sample documents."""
    environment = os.environ | {
        "EDGED_DAEMON__STATE_DIR": str(STATE),
        "EDGED_DAEMON__RUNTIME_DIR": str(STATE / "run"),
    }
    for command in (["models", "pull"], ["ingest", str(ROOT / "examples" / "documents")]):
        say(f"edgectl {' '.join(command)}")
        subprocess.run(
            [sys.executable, "-m", "edged.cli", *command],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return STATE


def real_config(state: Path, more: str = "") -> str:
    """The built-in pipeline on real models, with `more` TOML behind it."""
    return f"[daemon]\nstate_dir = '{state}'\n{more}"
