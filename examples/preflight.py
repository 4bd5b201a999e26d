"""Say in one sentence what this machine lacks, before or after a step of the Makefile fails.

Runs on any Python 3, without edged: `python3 examples/preflight.py python|network|compiler`.
"""

import importlib.util
import shutil
import sys

MINIMUM = (3, 11)


def check_python():
    """Stop unless this Python can make the environment."""
    if sys.version_info < MINIMUM:
        return "edged needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.11 demo" % sys.version_info[:2]
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        return "this Python has no venv module; on Debian and Ubuntu: apt install python3-venv"
    return ""


def check_compiler():
    """Stop unless llama-cpp-python can be compiled, or is there already."""
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        return ""
    return "the tests compile llama-cpp-python and found no C++ compiler; on Debian and Ubuntu: apt install g++"


def after_failed_install():
    """Explain the usual cause of a failed pip install."""
    return (
        "the installation failed; pip's last lines above say why. If they name a connection: a package index must be "
        "reachable (set PIP_INDEX_URL, or a proxy in HTTPS_PROXY). Run the same make target again afterwards."
    )


def main():
    """Print the sentence and exit 1 when there is one."""
    checks = {"python": check_python, "compiler": check_compiler, "network": after_failed_install}
    problem = checks[sys.argv[1]]()
    if problem:
        sys.exit("error: " + problem)


if __name__ == "__main__":
    main()
