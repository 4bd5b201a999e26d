"""What no source file may hold, whatever it does: rules that a reviewer would forget once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path.relative_to(ROOT) for folder in ("edged", "backends") for path in (ROOT / folder).rglob("*.py")
)
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
MAX_LINES = 400

UNSAFE_MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
) | {"multiprocessing"}
"""They rebuild objects by running code, or (multiprocessing) share memory and queues that a kill breaks."""
UNSAFE_CALLS = frozenset({"eval", "exec", "compile", "__import__"})
UNSAFE_METHODS = frozenset({"recv_pyobj", "send_pyobj", "load_pickle", "read_pickle", "to_pickle"})

PURE = (
    *(
        f"edged/dispatch/{name}.py"
        for name in (
            *("decide", "batching", "deaths", "endings", "ledger", "events", "leases", "losses", "sharing"),
            *(
                "admission",
                "controller",
                "forecast",
                "offload",
                "peer",
                "queues",
                "staffing",
                "trials",
                "usage",
            ),
        )
    ),
    *(
        f"edged/placement/{name}.py"
        for name in (
            *("agenda", "aim", "completeness", "contention", "estimates", "flow", "interference"),
            *("limits", "plan", "prices", "search", "staleness", "standing", "table", "verdicts", "watch"),
        )
    ),
    *(f"edged/placement/{name}.py" for name in ("curves", "rehearsal", "sequences", "silicon")),
    *(f"edged/governor/{name}.py" for name in ("bands", "devices", "events", "fitting", "ladder")),
    *(f"edged/governor/{name}.py" for name in ("acting", "effects", "heard", "plant", "simulate", "trace")),
    *(f"edged/governor/{name}.py" for name in ("reach", "shedding", "tally", "words")),
    *(f"edged/governor/{name}.py" for name in ("readings", "senses", "thermal", "trust")),
    *(f"edged/rungs/{name}.py" for name in ("agenda", "figures", "order", "record", "scores", "spending")),
    *(f"edged/rungs/{name}.py" for name in ("wording", "words", "worth")),
    *(f"edged/peers/{name}.py" for name in ("identity", "messages", "offers", "quota", "seat", "task")),
    *(f"edged/bypass/{name}.py" for name in ("calibration", "learner", "policy")),
    *(f"edged/dispatch/{name}.py" for name in ("passing", "skipping")),
    *(f"edged/layers/planning/{name}.py" for name in ("bubble", "costs", "llama_split")),
    *(f"edged/layers/planning/{name}.py" for name in ("partition", "plan", "prospects")),
    *(f"edged/layers/remote/{name}.py" for name in ("clocks", "elsewhere", "messages")),
    "edged/layers/links/silence.py",
    "edged/layers/schedule.py",
    "edged/prefill.py",
    "edged/dispatch/duty.py",
    "edged/documents/chunk.py",
    "edged/stages/citations.py",
)
IMPURE_MODULES = frozenset(
    {"logging", "time", "datetime", "os", "subprocess", "asyncio", "random", "secrets", "threading", "socket"}
    | {"signal", "sys", "pathlib", "io", "zmq", "psutil", "sqlite3", "faiss"}
)

ENVIRONMENT_READERS = {
    "edged/__main__.py": "hands the environment to the configuration and the daemon",
    "edged/config/loader.py": "the layer between file and flags",
    "edged/log.py": "how systemd wants lines: INVOCATION_ID, JOURNAL_STREAM",
    "edged/notify.py": "the service manager's protocol: NOTIFY_SOCKET, WATCHDOG_USEC",
    "edged/cli/root.py": "hands it to the session of a command",
    "edged/cli/output.py": "NO_COLOR",
    "edged/layers/__main__.py": "systemd names the folder of credentials, with the key for other hosts",
    "edged/models/store.py": "downloads obey the user's settings of pip, npm and hubs",
    "edged/testing/daemon.py": "what a started daemon inherits",
    "backends/edged_backends/onnx_runtime.py": "switches the runtime's telemetry off",
    "edged/models/int8.py": "the same, in the process that quantises",
    "backends/edged_backends/openai_key.py": "systemd names the folder of credentials: CREDENTIALS_DIRECTORY",
    "edged/birth.py": "OpenMP reads its settings when the library is loaded",
    "backends/edged_backends/llama_cpp_runtime.py": "the same, in a process that is no worker",
    "backends/edged_backends/torch_pipeline.py": "the same",
}
ONLY_IMPORTER = {
    "zmq": {"edged/transport/links.py", "edged/transport/curve.py", "edged/layers/links/pipes.py"},
    "psutil": {"edged/governor/sensors.py"},
    "openvino": {"backends/edged_backends/openvino_runtime.py"},
    "openvino_genai": {"backends/edged_backends/openvino_runtime.py"},
}


def tree(path: Path | str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imported(module: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that is imported anywhere in a file, in full, and the line."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno


def top(module: str) -> str:
    return module.partition(".")[0]


def dotted(node: ast.expr) -> str:
    """`np.load` for the expression that spells it; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def unsafe_call(call: ast.Call) -> bool:
    name = dotted(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    allowed = keywords.get("allow_pickle")
    return (
        name in UNSAFE_CALLS
        or name.rpartition(".")[2] in UNSAFE_METHODS
        or name == "torch.load"
        or (allowed is not None and not (isinstance(allowed, ast.Constant) and allowed.value is False))
    )


def handler_names(node: ast.ExceptHandler) -> set[str]:
    if node.type is None:
        return {"BaseException"}
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return {dotted(kind) for kind in kinds}


def test_there_is_something_to_check():
    assert len(SOURCES) > 100
    assert len(TESTS) > 50
    assert all((ROOT / path).is_file() for path in (*PURE, *ENVIRONMENT_READERS))


@pytest.mark.parametrize(
    "text",
    [
        "eval(data)",
        "builtins = exec(data)",
        "numpy.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=wanted)",
        "torch.load(path)",
        "socket.recv_pyobj()",
    ],
)
def test_the_check_finds_unsafe_calls(text):
    assert any(unsafe_call(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))


@pytest.mark.parametrize(
    "text", ["re.compile(p)", "np.load(path, allow_pickle=False)", "session.evaluate(x)"]
)
def test_the_check_lets_safe_calls_pass(text):
    assert not any(unsafe_call(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_unsafe_loader(path):
    module = tree(path)
    found = [f"line {line}: {name}" for name, line in imported(module) if top(name) in UNSAFE_MODULES]
    found += [
        f"line {node.lineno}: {dotted(node.func)}()"
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and unsafe_call(node)
    ]
    assert not found


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_touch_nothing(path):
    module = tree(path)
    found = [f"line {line}: {name}" for name, line in imported(module) if top(name) in IMPURE_MODULES]
    found += [
        f"line {node.lineno}: {dotted(node.func)}()"
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and dotted(node.func) in {"open", "print", "input"}
    ]
    assert not found


@pytest.mark.parametrize(("library", "allowed"), ONLY_IMPORTER.items())
def test_one_importer(library, allowed):
    importers = {str(path) for path in SOURCES if library in {top(name) for name, _ in imported(tree(path))}}
    assert importers == allowed


def reads_environment(module: ast.Module) -> bool:
    return any(
        isinstance(node, ast.expr)
        and dotted(node) in {"os.environ", "os.environb", "os.getenv", "environ", "getenv"}
        for node in ast.walk(module)
    )


def test_the_environment_is_read_where_a_reason_is_given():
    assert {str(path) for path in SOURCES if reads_environment(tree(path))} == set(ENVIRONMENT_READERS)


def test_nobody_catches_everything():
    broad = {
        str(path)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and handler_names(node) & {"Exception", "BaseException"}
    }
    assert broad == set()


def unfinished(module: ast.Module) -> Iterator[int]:
    """Lines that raise NotImplementedError themselves; catching a library's is fine."""
    for node in ast.walk(module):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if dotted(raised) == "NotImplementedError":
                yield node.lineno


def test_nothing_is_left_for_later():
    raising = {str(path) for path in SOURCES if list(unfinished(tree(path)))}
    assert raising == set()


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=str)
def test_files_are_short_and_without_promises(path):
    lines = (ROOT / path).read_text().splitlines()
    assert len(lines) <= MAX_LINES
    words = {"TO" + "DO", "FIX" + "ME", "XX" + "X"}
    assert not [number for number, line in enumerate(lines, 1) if words & set(line.replace(":", " ").split())]
