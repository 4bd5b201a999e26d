"""`edgectl governor simulate`: no daemon, no sensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edged.cli.governor_words import print_standing
from edged.cli.root import edgectl
from edged.config.tables import Rung
from edged.report import GovernorStatus

SHORT = ("--plant", "cabinet-45c", "--duration", "20m")


def run(*arguments: str, given: str | bytes | None = None):
    return CliRunner().invoke(edgectl, [*arguments], input=given)


def simulate(*arguments: str, given: str | bytes | None = None):
    return run("governor", "simulate", *arguments, given=given)


def test_a_plant_is_compared_with_governors_that_pause():
    result = simulate(*SHORT)
    assert result.exit_code == 0, result.output
    assert "down to fewer-passages   temperature.cpu" in result.output
    assert "edged's ladder" in result.output
    assert "pause only" in result.output
    assert "estimated, since governor.ladder has no cost and quality" in result.output


def test_a_saved_plant_replays_to_the_same_decisions(tmp_path: Path):
    trace = tmp_path / "trace.csv"
    lived = json.loads(simulate(*SHORT, "--save", str(trace), "--json").stdout)
    again = json.loads(simulate(str(trace), "--json").stdout)
    assert lived["commands"] == again["commands"] != []
    assert lived["trace"] == []
    piped = simulate("-", "--json", given=trace.read_text())
    assert json.loads(piped.stdout) == again


def test_the_configuration_decides():
    floor = ("--set", "governor.floor=full")
    result = run(*floor, "governor", "simulate", *SHORT, "--json")
    outcome = json.loads(result.stdout)["outcomes"]["ladder"]
    assert list(outcome["on_rung_s"]) == ["full"]


def test_a_trace_for_people():
    lines = ["at_s,cpu", *(f"{second},74" for second in range(60))]
    result = simulate("-", given="\n".join(lines))
    assert result.exit_code == 0, result.output
    assert "60 samples in 59.0 s" in result.output
    assert "temperature.cpu reached 72 °C (74)" in result.output
    assert "changes: 1, 61.0 an hour" in result.output


@pytest.mark.parametrize(
    ("arguments", "given", "code", "said"),
    [
        ((), None, 2, "give either a TRACE"),
        (("-", "--plant", "office-25c"), "", 2, "give either a TRACE"),
        (("-", "--seed", "3"), "", 2, "belong to --plant"),
        (("nowhere.csv",), None, 2, "nowhere.csv"),
        (("-",), "at_s,cpu\n1,hot\n", 1, "line 2: cpu = 'hot' is not a number"),
        (("-",), "", 1, "is empty"),
        (("-",), b"at_s\n\xff\n", 1, "not valid UTF-8"),
        ((*SHORT, "--save", "/nowhere/at/all.csv"), None, 1, "cannot write /nowhere/at/all.csv"),
    ],
)
def test_what_is_wrong_is_said(arguments, given, code, said):
    result = simulate(*arguments, given=given)
    assert result.exit_code == code
    assert said in result.output


@pytest.mark.parametrize(
    ("override", "field", "said"),
    [
        ("floor='attic'", "governor.floor", "is not a rung"),
        ("ladder=[]", "governor.ladder", "needs 1 to 32"),
        ("ladder=[{name='a'}, {name='a', keep=1}]", "governor.ladder", "'a' twice"),
        ("ladder=[{name='a', keep=1}]", "governor.ladder", "the first rung is the best"),
        ("ladder=[{name='a'}, {name='b', variants={x='lighter'}}]", "governor.ladder", "is not a stage"),
        ("load=[{rung='attic', enter=0.9, leave=0.5}]", "governor.load", "governor.ladder lacks"),
        ("load=[{rung='full', enter=0.9, leave=0.5}]", "governor.load", "the best rung"),
        ("load=[{rung='peer', enter=0.5, leave=0.5}]", "governor.load", "has to be below"),
        ("load=[{rung='peer', enter=0.5, leave=0.48}]", "governor.load", "overlap by less than 0.04"),
        (
            "memory=[{rung='peer', enter=0.5, leave=0.3}, {rung='no-rerank', enter=0.9, leave=0.5}]",
            "governor.memory",
            "the order is that of governor.ladder",
        ),
        (
            "stall=[{rung='peer', enter=0.5, leave=0.3}, {rung='shed-half', enter=0.51, leave=0.4}]",
            "governor.stall",
            "at least 0.02 above",
        ),
        ("temperature.cpu.critical_c=80", "governor.temperature.cpu.critical_c", "above the last enter_c"),
        (
            "temperature.npu.bands=[{rung='peer', enter_c=70, leave_c=66}]",
            "governor.temperature.npu.bands",
            "overlap by less than 5 °C",
        ),
    ],
)
def test_a_ladder_that_would_flap_is_refused(override, field, said):
    result = run("--set", f"governor.{override}", "governor", "simulate", "--plant", "office-25c")
    assert result.exit_code == 78
    assert field in result.output
    assert said in result.output


def test_a_rung_that_helps_nothing_now_is_said_to_be_so(capsys):
    why = "no peer is up and cool: box-b: silent for 0.7 s"
    ladder = (Rung(name="full"), Rung(name="peer", peer=True), Rung(name="less", peer=True))
    standing = GovernorStatus(
        rung=1, name="peer", why="", since_s=1.0, ladder=ladder, unavailable={"peer": why, "less": why}
    )
    print_standing(standing)
    shown = capsys.readouterr().out
    assert f"in force without effect: {why}" in shown
    assert shown.count("cannot be taken") == 1


def test_all_that_a_rung_does_is_shown(capsys):
    ladder = (Rung(name="full"), Rung(name="less", keep=2, bypass_benefit=True, frugal=("generator",)))
    print_standing(GovernorStatus(rung=0, name="full", why="", since_s=1.0, ladder=ladder))
    shown = capsys.readouterr().out
    assert "2 passages kept, generator frugal, no reranking where it changes least" in shown
    assert "all as configured" in shown
