"""`edgectl peers`: what works on files, without a daemon."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edged.cli.root import edgectl
from edged.transport.curve import new_keys, public_of

KEY = new_keys().public


@pytest.fixture
def run(tmp_path: Path):
    """A node whose state folder is the test's; no daemon runs."""
    environment = {
        "EDGED_DAEMON__STATE_DIR": str(tmp_path),
        "EDGED_DAEMON__RUNTIME_DIR": str(tmp_path / "run"),
    }

    def call(*arguments: str) -> Result:
        return CliRunner(env=environment).invoke(edgectl, ["peers", *arguments])

    return call


def test_a_key_is_made_once_and_only_its_public_half_is_printed(run, tmp_path):
    made = run("keygen")
    assert made.exit_code == 0
    file = tmp_path / "peers" / "curve.key"
    secret = file.read_text().strip()
    assert made.stdout.strip() == public_of(secret)
    assert secret not in made.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    told = run("keygen")
    assert (told.exit_code, told.stdout) == (0, made.stdout)
    assert "was there already" in told.stderr
    assert json.loads(run("keygen", "--json").stdout)["made"] is False
    again = run("keygen", "--replace", "--json")
    assert json.loads(again.stdout)["public"] != public_of(secret)


def test_peers_come_and_go(run):
    assert run("add", "box-b", "--key", KEY, "--endpoint", "tcp://192.0.2.2:7443").exit_code == 0
    listed = json.loads(run("list", "--json").stdout)
    assert listed == {"peers": [{"name": "box-b", "key": KEY, "endpoint": "tcp://192.0.2.2:7443"}]}
    assert "tcp://192.0.2.2:7443" in run("list").stdout
    assert run("remove", "box-b").exit_code == 0
    assert json.loads(run("list", "--json").stdout) == {"peers": []}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("add", "box-b", "--key", "short"), 78, "40 characters"),
        (("add", "Box B", "--key", KEY), 78, "may hold only"),
        (("add", "box-b", "--key", KEY, "--endpoint", "192.0.2.2"), 78, "tcp://HOST:PORT"),
        (("add", "box-b"), 2, "--key"),
        (("remove", "box-b"), 1, "peers list"),
        (("test", "box-b"), 78, "peers keygen"),
    ],
)
def test_mistakes_are_one_sentence_that_helps(run, arguments, status, said):
    result = run(*arguments)
    assert (result.exit_code, said in result.output) == (status, True), result.output
    assert "Traceback" not in result.output


def test_a_peer_that_is_not_there_is_unreachable(run):
    run("keygen")
    run("add", "box-b", "--key", KEY, "--endpoint", "tcp://127.0.0.1:9")
    for named in ((), ("box-b",)):
        told = run("test", *named, "--timeout", "0.3")
        assert (told.exit_code, told.output.count("does not answer")) == (69, 1)
        found = run("test", *named, "--timeout", "0.3", "--json")
        assert found.exit_code == 69
        tested = json.loads(found.stdout)
        assert tested["answered"] == []
        assert [(each["peer"], each["code"]) for each in tested["problems"]] == [("box-b", "unreachable")]


def test_nobody_is_its_own_peer(run):
    own = run("keygen").stdout.strip()
    refused = run("add", "box-a", "--key", own, "--endpoint", "tcp://192.0.2.2:7443")
    assert (refused.exit_code, "the key of this node" in refused.output) == (78, True)
    assert json.loads(run("list", "--json").stdout) == {"peers": []}


def test_a_peer_that_only_asks_is_not_to_be_tested(run):
    told = run("add", "box-b", "--key", KEY).stdout
    assert "peers test" not in told
    assert "never asked" in told


def test_a_list_without_a_daemon_says_that_none_answers(run):
    run("add", "box-b", "--key", KEY)
    assert "no daemon answers" in run("list").stdout
