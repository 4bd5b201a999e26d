"""L5: llama.cpp's own RPC servers as devices of the `llama_cpp` adapter: two local ones against one CPU.

The wheel is built without RPC. Its two files are fetched with the sources of the same version, compiled
beside the installed libraries, and loaded here. edged itself has no option for these servers, which know
neither keys nor encryption (`edgectl layers serve` has both) and must never be reachable by others.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from edged_backends.llama_cpp_devices import found_under
from edged_backends.llama_cpp_runtime import runtime

from benchmarks.measurement import Row, say
from benchmarks.setting import STATE, sample_models
from edged.backend import Detailed, TokenSession
from edged.catalogue import Catalogue
from edged.cli.layers_run import PROMPTS
from edged.models.store import ModelStore
from edged.plugins import load
from edged.testing.token_contract import generate

SERVERS = 2
LIBRARIES = Path(runtime.__file__).parent / "lib"
FOLDER = STATE / "cache" / "bench-rpc"


def compiled() -> Path:
    """The RPC library for the installed llama.cpp; made on first use, by pip and the C++ compiler."""
    found = FOLDER / f"libggml-rpc-{version('llama-cpp-python')}.so"
    if not found.exists():
        source = _source()
        rpc = source / "src" / "ggml-rpc"
        subprocess.run(
            ["g++", "-shared", "-fPIC", "-O2", "-std=c++17", "-DGGML_BACKEND_SHARED", "-DGGML_BACKEND_BUILD",
             f"-I{source / 'include'}", f"-I{source / 'src'}", rpc / "ggml-rpc.cpp", rpc / "transport.cpp",
             f"-L{LIBRARIES}", "-l:libggml-base.so.0", f"-Wl,-rpath,{LIBRARIES}", "-o", found],
            check=True,
        )  # fmt: skip
    return found


def _source() -> Path:
    """Sources of ggml of the version that is installed."""
    package = f"llama-cpp-python=={version('llama-cpp-python')}"
    say(f"fetching the sources of {package}")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            FOLDER,
            package,
        ],
        check=True,
    )
    (archive,) = FOLDER.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(FOLDER, filter="data")
    archive.unlink()
    return next(FOLDER.glob("llama_cpp_python-*")) / "vendor" / "llama.cpp" / "ggml"


def serve(endpoint: str) -> None:
    """Lend this process's CPU, on one thread, until killed."""
    rpc = ctypes.CDLL(os.fspath(compiled()))
    device = ctypes.c_void_p(_ggml().ggml_backend_dev_by_type(0))  # the CPU
    rpc.ggml_backend_rpc_start_server.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p),
    ]  # fmt: skip
    rpc.ggml_backend_rpc_start_server(endpoint.encode(), None, 1, 1, ctypes.byref(device))


def _ggml() -> ctypes.CDLL:
    ggml = ctypes.CDLL(os.fspath(LIBRARIES / "libggml.so.0"))
    ggml.ggml_backend_dev_by_type.argtypes, ggml.ggml_backend_dev_by_type.restype = (
        [ctypes.c_int],
        ctypes.c_void_p,
    )
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    return ggml


@contextmanager
def _servers(count: int) -> Iterator[list[str]]:
    """Processes on loopback; gives their endpoints once they listen."""
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    endpoints = [f"127.0.0.1:{each.getsockname()[1]}" for each in with_ports]
    for each in with_ports:
        each.close()
    command = [sys.executable, "-m", "benchmarks.rpc"]
    processes = [
        subprocess.Popen(
            [*command, endpoint], cwd=STATE.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for endpoint in endpoints
    ]
    try:
        for endpoint in endpoints:
            _wait(endpoint)
        yield endpoints
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait(endpoint: str) -> None:
    host, _, port = endpoint.partition(":")
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((host, int(port)), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _register(endpoints: Sequence[str]) -> None:
    """Have ggml know the servers as devices."""
    rpc = ctypes.CDLL(os.fspath(compiled()))
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    for endpoint in endpoints:
        _ggml().ggml_backend_register(rpc.ggml_backend_rpc_add_server(endpoint.encode()))


def _session(**options: Any) -> TokenSession:
    backend = load("llama_cpp")
    variant = ModelStore(STATE / "models", Catalogue.discover()).resolve("smollm2-135m-instruct", "q4_1")
    first = options.get("devices", ["cpu"])[0]
    device = next((each for each in backend.devices() if each.id == first), backend.devices()[0])
    settings = {"threads": 1, "context_tokens": 256, "max_sequences": 1, "exact": False, **options}
    return cast("TokenSession", backend.open(variant, device, settings))


def _answers(session: TokenSession, tokens: int) -> list[list[int]]:
    prompts = [session.vocabulary.encode(text, special=False) for text in PROMPTS]
    return [list(generate(session, prompt, tokens).tokens) for prompt in prompts]


def servers(quick: bool) -> tuple[float, dict[str, Any]]:
    """Share of the answers over two RPC servers that equal the CPU's."""
    tokens = 16 if quick else 48
    sample_models()
    FOLDER.mkdir(parents=True, exist_ok=True)
    compiled()
    with closing(_session()) as session:
        alone = _answers(session, tokens)
    with _servers(SERVERS) as endpoints:
        _register(endpoints)
        names = [f"gpu:{number}" for number in range(SERVERS)]
        missing = [name for name in names if found_under(name) is None]
        if missing:
            raise RuntimeError(f"llama.cpp does not show the RPC servers {missing}")
        with closing(_session(devices=names)) as session:
            where = cast("Detailed", session).details
            split = _answers(session, tokens)
    same = sum(a == b for a, b in zip(alone, split, strict=True))
    return same / len(alone), {
        "prompts": len(alone),
        "tokens": tokens,
        "layers": where.get("layers"),
        "servers": endpoints,
    }


ROWS = (
    Row(
        id="L5",
        what="llama.cpp over two of its own RPC servers, laid out by edged: answers equal to the CPU's",
        unit="share",
        gate=1.0,
        goal=1.0,
        better="higher",
        measure=servers,
    ),
)

if __name__ == "__main__":
    serve(sys.argv[1])
