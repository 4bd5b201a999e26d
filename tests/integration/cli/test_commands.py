from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from msgspec import structs

from edged.cli.root import COMMANDS, edgectl
from edged.errors import BY_CODE
from tests.integration.cli.conftest import (
    CITATION,
    EDGED,
    TIMING,
    delta,
    open_stream,
    reply,
    send_chunk,
    send_event,
    status_of,
)

CHAT = ("POST", "/v1/chat/completions")


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


def refusing(code: str, message: str = "no") -> Any:
    def script(exchange: Any, _: Any) -> None:
        body = json.dumps({"error": {"message": message, "code": code, "param": None}}).encode()
        exchange.send_response(BY_CODE[code].status)
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        exchange.wfile.write(body)

    return script


@pytest.mark.parametrize("path", list(commands(edgectl)), ids=" ".join)
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...]):
    result = CliRunner().invoke(edgectl, [*path, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.stdout
    assert "edgectl" in result.stdout.partition("Example:")[2]


def test_the_overview_lists_every_command_and_the_exit_codes():
    shown = CliRunner().invoke(edgectl, ["--help"]).stdout
    assert all(f"  {name}" in shown for name in COMMANDS)
    assert "69 no daemon answers" in shown


def test_status_shows_stages_and_what_an_operator_should_read(call):
    shown = call("status").stdout
    for expected in (
        "generator",
        "openvino cpu",
        "q4_0",
        "4242",
        "2.5/s",
        "3.0 MiB",
        "61 °C",
        "4/32",
        "1m 30s",
    ):
        assert expected in shown
    for remark in ("generator: a worker is missing", "no calibration", "refused overloaded: 2"):
        assert f"note: {remark}" in shown


def test_status_as_json_is_the_daemons_own(call):
    status = json.loads(call("status", "--json").stdout)
    assert status["stages"][0]["workers"][0]["pid"] == 4242


def test_ask_prints_the_answer_its_evidence_and_its_cost(call, daemon):
    result = call("ask", "How?", "--max-tokens", "9", "--top", "5", "--keep", "2", "--temperature", "0.5")
    assert result.stdout == (
        'Hold the button [1].\n\n[1] manual.md:12-18 "Hold the button for ten seconds."\n'
    )
    assert "generator 1.5 s (+250.0 ms waiting)" in result.stderr
    assert "tokens/s" in result.stderr
    body = daemon.requests[-1][2]
    assert (body["max_tokens"], body["temperature"]) == (9, 0.5)
    assert body["edged"] == {"candidates": 5, "keep": 2}


def test_ask_says_that_a_peer_answered(call, monkeypatch):
    monkeypatch.setitem(TIMING, "device", "peer:box-b")
    assert "generator 1.5 s (by box-b) (+250.0 ms waiting)" in call("ask", "How?").stderr


def test_a_daemon_without_peers_is_told_from_none(call, tmp_path):
    told = call("--set", f"daemon.state_dir={tmp_path}", "peers", "list").stdout
    assert "runs without peers: set peers.enabled = true and restart it" in told


def test_ask_sends_nothing_that_was_not_asked_for(call, daemon):
    call("ask", "How?")
    assert set(daemon.requests[-1][2]) == {"model", "messages", "stream", "stream_options"}


def test_ask_without_streaming_prints_the_same_answer(call, daemon):
    assert call("ask", "How?", "--no-stream").stdout == call("ask", "How?").stdout
    assert [body["stream"] for _, _, body in daemon.requests] == [False, True]


def test_ask_as_json_is_one_document(call):
    answer = json.loads(call("ask", "How?", "--json").stdout)
    assert answer["text"] == "Hold the button [1]."
    assert answer["citations"][0]["support"] == 0.9
    assert answer["timings"][0]["stage"] == "generator"


def test_a_question_may_come_through_a_pipe(call, daemon):
    call("ask", stdin="How?\n")
    assert daemon.requests[-1][2]["messages"] == [{"role": "user", "content": "How?"}]


def test_a_chat_on_a_pipe_remembers_and_forgets(call, daemon):
    result = call("chat", stdin="one\n\ntwo\n/clear\nthree\n/quit\nfour\n")
    contents = [[turn["content"] for turn in body["messages"]] for _, _, body in daemon.requests]
    answer = "Hold the button [1]."
    assert contents == [["one"], ["one", answer, "two"], ["three"]]
    assert result.exit_code == 0
    assert "> " not in result.stdout


def test_a_chat_on_a_pipe_fails_like_any_command(call, script):
    script[CHAT] = refusing("overloaded", "full")
    result = call("chat", stdin="one\n")
    assert (result.exit_code, result.stderr) == (1, "error [overloaded]: full\n")


def test_embed_prints_a_vector_a_line(call, daemon):
    assert call("embed", "a", "b", "--query").stdout == "[0.0,1.0]\n[1.0,1.0]\n"
    assert daemon.requests[-1][2] == {"input": ["a", "b"], "input_type": "query"}
    assert json.loads(call("embed", "--json", stdin="a\n\nb\n").stdout)[1] == {
        "text": "b",
        "vector": [1.0, 1.0],
    }


def test_rerank_puts_the_best_first(call, daemon):
    lines = call("rerank", "how", "no", "yes", "--top", "2").stdout.splitlines()
    assert [line.split() for line in lines[1:]] == [["0.9", "1", "yes"], ["0.1", "0", "no"]]
    assert daemon.requests[-1][2]["top_n"] == 2


@pytest.mark.parametrize("command", ["embed", "ask"])
def test_nothing_to_work_on_is_a_usage_error(call, command):
    result = call(command)
    assert result.exit_code == 2
    assert "pipe" in result.stderr


def test_operating_a_daemon(call, daemon):
    restarted = call("stage", "restart", "generator").stdout
    assert restarted == "stage generator is being replaced; `edgectl status --wait 120` waits for it\n"
    assert call("reload").stdout == "queue.slots: 32 -> 8\n"
    assert json.loads(call("reload", "--json").stdout) == {"changes": ["queue.slots: 32 -> 8"]}
    assert "draining" in call("drain").stdout
    assert call("config", "show", "--running").stdout.splitlines()[1].split() == ["queue.slots", "8"]


def test_logs_read_like_the_daemons_own(call):
    shown = call("logs", "-n", "2").stdout
    assert "warning edged  worker_died  pid=7" in shown
    assert [record["seq"] for record in json.loads(call("logs", "--json").stdout)] == [1, 2]


def test_following_logs_prints_each_record_once(call, script, monkeypatch):
    rounds = iter([1, 2, 2, 3])
    records = [
        {"ts": float(n), "level": "info", "logger": "e", "event": f"event{n}", "seq": n} for n in (1, 2, 3)
    ]

    def grow(exchange: Any, _: Any) -> None:
        body = json.dumps({"records": records[: next(rounds)]}).encode()
        exchange.send_response(200)
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        exchange.wfile.write(body)

    script["GET", "/admin/v1/logs"] = grow
    naps = iter([None, None, None])

    def nap(_: float) -> None:
        if next(naps, 0) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("edged.cli.logs.time.sleep", nap)
    result = call("logs", "--follow", "-n", "5")
    assert result.exit_code == 130
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["event1", "event2", "event3"]


@pytest.mark.parametrize(("code", "exit_code"), [("stage_unavailable", 1), ("not_found", 1), ("config", 78)])
def test_a_refusal_is_one_line_and_an_exit_code(call, script, code, exit_code):
    script[CHAT] = refusing(code, "what went wrong")
    result = call("ask", "How?")
    assert result.exit_code == exit_code
    assert result.stderr == f"error [{code}]: what went wrong\n"
    assert result.stdout == ""


def test_no_daemon_is_69(tmp_path: Path):
    result = CliRunner().invoke(edgectl, ["--socket", str(tmp_path / "none.sock"), "status"])
    assert result.exit_code == 69
    assert result.stderr.startswith("error [unreachable]: no daemon answers on")


def test_logs_without_a_daemon_name_the_journal(tmp_path: Path):
    result = CliRunner().invoke(edgectl, ["--socket", str(tmp_path / "none.sock"), "logs"])
    assert "journalctl -u edged" in result.stderr


def in_state(worker: str, stage: str = "ready", daemon: str = "ready") -> Any:
    status = status_of()
    workers = (structs.replace(status.stages[0].workers[0], state=worker),)
    stages = (structs.replace(status.stages[0], state=stage, workers=workers),)
    return structs.replace(status, state=daemon, stages=stages)


@pytest.mark.parametrize("worker", ["starting", "stopping"])
def test_waiting_ends_when_every_worker_is_ready(call, script, monkeypatch, worker):
    answers = iter([in_state("ready", "degraded", "degraded"), in_state(worker), in_state("ready")])
    script["GET", "/edged/v1/status"] = lambda exchange, _: reply(exchange, next(answers))
    monkeypatch.setattr("edged.cli.status.time.sleep", lambda _: None)
    result = call("status", "--wait", "60", "--json")
    assert json.loads(result.stdout)["stages"][0]["workers"][0]["state"] == "ready"
    assert next(answers, None) is None


def test_waiting_in_vain_names_the_stage_and_its_worker(call, script):
    script["GET", "/edged/v1/status"] = lambda exchange, _: reply(exchange, in_state("starting"))
    result = call("status", "--wait", "0")
    assert result.exit_code == 1
    assert "generator (a worker is starting)" in result.stderr


BYTES = os.fsdecode(b"\xff\xfe")


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", BYTES],
        ["ask", "--model", BYTES, "How?"],
        ["embed", BYTES],
        ["rerank", "How?", BYTES],
        ["stage", "restart", BYTES],
        ["documents", "show", BYTES],
        ["models", "pull", BYTES],
        ["--set", f"stages.generator.model={BYTES}", "config", "check"],
    ],
)
def test_an_argument_that_is_not_text_is_a_bad_request(call, arguments):
    result = call(*arguments)
    assert (result.exit_code, result.stderr) == (1, "error [bad_request]: the text is not valid UTF-8\n")


@pytest.mark.parametrize("command", [["ask"], ["chat"], ["embed"], ["rerank", "How?"]])
def test_input_that_is_not_text_is_a_bad_request(daemon, command):
    result = CliRunner().invoke(edgectl, ["--socket", str(daemon.path), *command], input=b"\xff\xfe\n")
    assert (result.exit_code, result.stderr) == (1, "error [bad_request]: the text is not valid UTF-8\n")


def test_citations_do_not_reach_the_terminal_as_commands(call, script):
    cited = CITATION | {"source": "a\x1b[31m\nb.md", "quote": "\x9b2J"}

    def stream(exchange: Any, _: Any) -> None:
        open_stream(exchange)
        send_event(exchange, choices=delta(content="One\n\x1b]0;title\x07two"))
        send_event(exchange, choices=delta("stop", citations=[cited]), edged=EDGED | {"resumed": 1})
        send_chunk(exchange, "data: [DONE]\n\n")
        exchange.wfile.write(b"0\r\n\r\n")

    script[CHAT] = stream
    result = call("ask", "How?")
    assert "One\n\\x1b]0;title\\x07two\n" in result.stdout
    assert 'a\\x1b[31m\\x0ab.md:12-18 "\\x9b2J"' in result.stdout
    assert "note: continued once by another worker" in result.stderr


@pytest.mark.parametrize("command", [["status"], ["ask", "How?"], ["reload"]])
def test_a_bad_configuration_can_be_gone_round(daemon, tmp_path: Path, command):
    file = tmp_path / "edged.toml"
    file.write_text("[queue]\nslots = 0\n")
    broken = CliRunner().invoke(edgectl, ["--config", str(file), *command])
    assert broken.exit_code == 78
    assert broken.stderr.endswith("; `--socket PATH` works without the configuration\n")
    socket = ["--socket", str(daemon.path)]
    assert CliRunner().invoke(edgectl, ["--config", str(file), *socket, *command]).exit_code == 0


def test_a_socket_path_that_no_socket_can_have(tmp_path: Path):
    result = CliRunner().invoke(edgectl, ["--socket", f"/run/{'x' * 103}", "status"])
    assert result.exit_code == 69
    assert "[unreachable]: the socket's path has 108 bytes, and at most 107 are possible" in result.stderr


def test_a_misspelt_command_names_the_nearest():
    for words, nearest in (["aks"], "ask"), (["stage", "restrat", "generator"], "restart"):
        result = CliRunner().invoke(edgectl, words)
        assert result.exit_code == 2
        assert f"did you mean {nearest!r}?" in result.stderr.lower()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([], "smollm2-135m-instruct"),
        (["stages.generator.variant=q8_0"], "smollm2-135m-instruct q8_0"),
        (["stages.generator.workers=0"], ""),
    ],
)
def test_config_check_says_which_weights_are_not_here(tmp_path: Path, settings: list[str], named: str):
    options = [word for each in [f"daemon.state_dir={tmp_path}", *settings] for word in ("--set", each)]
    result = CliRunner().invoke(edgectl, [*options, "config", "check"])
    assert (result.exit_code, result.stdout) == (0, "built-in configuration: valid\n")
    generator = [line for line in result.stderr.splitlines() if "stages.generator" in line]
    assert len(generator) == bool(named)
    assert all(line.endswith(f"run `edgectl models pull {named}`") for line in generator)
    plain = json.loads(CliRunner().invoke(edgectl, [*options, "config", "check", "--json"]).stdout)
    assert [f"warning: {each}" for each in plain["warnings"]] == result.stderr.splitlines()


def test_a_bad_configuration_is_78():
    result = CliRunner().invoke(edgectl, ["--set", "queue.slots=0", "config", "check"])
    assert result.exit_code == 78
    assert result.stderr == "error [config]: --set: queue.slots = 0: expected int >= 1\n"


def test_wrong_usage_is_2():
    assert CliRunner().invoke(edgectl, ["ask", "--nonsense"]).exit_code == 2
    assert CliRunner().invoke(edgectl, ["nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("stages.generator.backend=opnvino", "unknown backend 'opnvino'"),
        ("stages.generator.model=smolm2-135m-instruct", "smollm2-135m-instruct"),
        ("stages.generator.variant=q3", "q3"),
        ("stages.generator.model=bge-small-en-v1.5", "a generator cannot use"),
    ],
)
def test_config_check_looks_up_what_the_file_names(setting: str, named: str):
    result = CliRunner().invoke(edgectl, ["--set", setting, "config", "check"])
    assert result.exit_code == 78
    assert "stages.generator." in result.stderr
    assert named in result.stderr


def test_config_show_and_check_say_what_is_in_force(tmp_path: Path):
    file = tmp_path / "edged.toml"
    file.write_text("[queue]\nslots = 7\n")
    arguments = ["--config", str(file), "--set", "api.max_connections=3", "config"]
    shown = json.loads(CliRunner().invoke(edgectl, [*arguments, "show", "--json"]).stdout)
    assert (shown["queue"]["slots"], shown["api"]["max_connections"]) == (7, 3)
    assert CliRunner().invoke(edgectl, [*arguments, "check"]).stdout == f"{file}: valid\n"


def test_devices_lists_what_each_runtime_sees():
    survey = json.loads(CliRunner().invoke(edgectl, ["devices", "--json"]).stdout)
    assert {device["backend"] for device in survey["devices"]} | set(survey["missing"])
    shown = CliRunner().invoke(edgectl, ["devices"]).stdout
    assert shown.startswith("BACKEND")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_each_shell(shell: str):
    assert "_EDGECTL_COMPLETE" in CliRunner().invoke(edgectl, ["completion", shell]).stdout


def test_version():
    assert json.loads(CliRunner().invoke(edgectl, ["version", "--json"]).stdout)["edged"] == "0.1.0"


def test_the_socket_is_found_by_flag_environment_and_configuration(daemon, tmp_path: Path):
    runner = CliRunner()
    assert runner.invoke(edgectl, ["status"], env={"EDGED_SOCKET": str(daemon.path)}).exit_code == 0
    assert runner.invoke(edgectl, ["--set", f"api.socket={daemon.path}", "status"]).exit_code == 0
    assert runner.invoke(edgectl, ["reload"], env={"EDGED_ADMIN_SOCKET": str(daemon.path)}).exit_code == 0
    assert runner.invoke(edgectl, ["--set", f"daemon.runtime_dir={tmp_path}", "reload"]).exit_code == 0
