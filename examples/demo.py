"""The main job, visibly: pull models, ingest the sample documents, ask three questions, stop cleanly.

Started by `make demo`; it types the commands that an operator would type.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
QUESTIONS = (
    "How long must the reset button be held to restore the factory settings?",
    "Which TCP port does the Modbus bridge listen on?",
    "Which firmware version must an update from 3.x to 5.x go through?",
)


def environment(state: Path) -> dict[str, str]:
    """Point daemon and client at folders of their own under the checkout."""
    return os.environ | {
        "EDGED_DAEMON__STATE_DIR": str(state),
        "EDGED_DAEMON__RUNTIME_DIR": str(state / "run"),
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def run(command: list[str], env: dict[str, str]) -> None:
    """Show a command, run it, and stop the demo when it fails."""
    print(f"\n\033[1m$ {shlex.join(command)}\033[0m" if sys.stdout.isatty() else f"\n$ {shlex.join(command)}", flush=True)
    status = subprocess.run(command, env=env, check=False).returncode
    if status:
        sys.exit(f"the demo stopped: {command[0]} {command[1]} exited with status {status}")


def refuse_company(env: dict[str, str]) -> None:
    """Stop when a daemon of an earlier `make demo KEEP=1` still runs: its answers would be shown as ours."""
    answer = subprocess.run(["edgectl", "status", "--json"], env=env, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        pid = json.loads(answer.stdout)["pid"]
        sys.exit(f"a daemon of an earlier demo runs already (pid {pid}); stop it first: kill {pid}")


def start_daemon(env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `edged` and wait until it answers that it is ready."""
    print(f"\n$ edged   (log: {os.path.relpath(log)})", flush=True)
    with log.open("wb") as output:
        daemon = subprocess.Popen(["edged"], env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        run(["edgectl", "status", "--wait", "120"], env)
    except (SystemExit, KeyboardInterrupt):
        print(f"the daemon's log ends with:\n{log.read_text(errors='replace')[-2000:]}")
        stop_daemon(daemon)
        raise
    return daemon


def stop_daemon(daemon: subprocess.Popen[bytes]) -> None:
    """SIGTERM: the daemon drains and exits 0."""
    daemon.send_signal(signal.SIGTERM)
    print(f"\nthe daemon stopped with status {daemon.wait(timeout=60)}", flush=True)


def main() -> None:
    """Run the demo."""
    state = Path(os.environ.get("EDGED_DEMO_STATE") or HERE.parent / ".edged")
    keep = os.environ.get("KEEP", "") not in {"", "0"}
    state.mkdir(parents=True, exist_ok=True)
    env = environment(state)
    refuse_company(env)
    run(["edgectl", "models", "pull"], env)
    run(["edgectl", "ingest", str(HERE / "documents")], env)
    daemon = start_daemon(env, state / "demo.log")
    try:
        for question in QUESTIONS:
            run(["edgectl", "ask", question], env)
    except (SystemExit, KeyboardInterrupt):
        stop_daemon(daemon)
        raise
    print(
        "\nThe answers come from smollm2-135m-instruct, the smallest model that works at all. For better ones:\n"
        "  edgectl models pull qwen2.5-coder-1.5b-instruct     (1.1 GB)\n"
        "  edged --set stages.generator.model=qwen2.5-coder-1.5b-instruct"
    )
    if not keep:
        stop_daemon(daemon)
        return
    print(f"\nThe daemon runs on (pid {daemon.pid}). Talk to it:")
    for name in ("EDGED_DAEMON__STATE_DIR", "EDGED_DAEMON__RUNTIME_DIR"):
        print(f"  export {name}={shlex.quote(env[name])}")
    print(f"  {BIN}/edgectl ask 'Your question'\n  {BIN}/edgectl status\nStop it: kill {daemon.pid}")


if __name__ == "__main__":
    main()
