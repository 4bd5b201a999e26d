"""The documents that people act on, held against the code: error codes, commands, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edged.cli.root import edgectl
from edged.errors import BY_CODE

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "backends/**/*.md",
        "models/*.md",
        "benchmarks/*.md",
        "examples/*.md",
    )
    for path in ROOT.glob(pattern)
)
ROW = re.compile(r"^\| `(\w+)` \| (\d{3}) \| (yes|no) \| (.+) \| (.+) \|$", re.MULTILINE)
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
PLACE = re.compile(r"(?:edged|backends|models|docs|tests|benchmarks|systemd|examples)/[a-z0-9_./*-]*")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
END = {"|", "||", "&&", ";", "&", ">", ">>", "<", "#", ")"}


def error_table() -> dict[str, tuple[int, bool]]:
    text = (ROOT / "docs/operations.md").read_text()
    return {code: (int(status), retry == "yes") for code, status, retry, *_ in ROW.findall(text)}


def test_operations_describe_every_error_as_it_is():
    assert error_table() == {code: (kind.status, kind.retryable) for code, kind in BY_CODE.items()}


def test_the_table_of_errors_names_each_code_once():
    codes = [code for code, *_ in ROW.findall((ROOT / "docs/operations.md").read_text())]
    assert len(codes) == len(set(codes))


def snippets(text: str) -> Iterator[str]:
    """Lines of fenced blocks, and inline code outside of them; a backslash joins lines."""
    for block in FENCE.findall(text):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from SPAN.findall(FENCE.sub("", text))


def calls(text: str) -> Iterator[list[str]]:
    """The words behind every `edgectl` of a document that stands where a command does."""
    for line in snippets(text):
        for found in re.finditer(r"(?:^|[\s(;&|$#]|/)edgectl(?= [a-z-])", line):
            yield list(words_of(line[found.end() :]))


def words_of(rest: str) -> Iterator[str]:
    """Words of one shell command up to whatever ends it."""
    lexer = shlex.shlex(rest, posix=True, punctuation_chars=True)
    lexer.wordchars += "~-./*?=,:@+%{}[]…"
    lexer.commenters = "#"
    try:
        for word in lexer:
            if word in END:
                return
            yield word
    except ValueError:  # prose with an apostrophe behind a command
        return


def problem(words: list[str]) -> str:
    """Why `edgectl WORDS` cannot be what somebody is told to type; empty when it can."""
    command: click.Command = edgectl
    trail, rest = ["edgectl"], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and word != "-":
            name = word.partition("=")[0]
            option = options_of(command).get(name)
            if option is None:
                return f"`{' '.join(trail)}` has no option {name}"
            if not option.is_flag and "=" not in word and rest:
                rest.pop(0)
        elif isinstance(command, click.Group):
            below = named(command, word)
            if below is None:
                return f"`{' '.join(trail)}` has no command {word!r}"
            command, trail = below, [*trail, word]
    return ""


def named(group: click.Group, word: str) -> click.Command | None:
    """The command of that name; for `list|show` the last, if all exist."""
    found = [group.get_command(click.Context(group), each) for each in word.split("|")]
    return found[-1] if all(found) else None


def options_of(command: click.Command) -> dict[str, click.Option]:
    context = click.Context(command)
    return {
        spelling: parameter
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    } | {"-h": click.Option(["-h"], is_flag=True)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists(path):
    found = {" ".join(words): problem(words) for words in calls(path.read_text())}
    assert not {words: wrong for words, wrong in found.items() if wrong}


def test_the_check_sees_commands():
    text = (ROOT / "docs/operations.md").read_text()
    assert len(list(calls(text))) > 40
    assert ["models", "pull"] in list(calls(text))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`edgectl status --wait 60`", ""),
        ("`edgectl --set queue.slots=8 config show | head -3`", ""),
        ("`sudo -u edged /opt/edged/bin/edgectl models pull`", ""),
        ("`edgectl statsu`", "`edgectl` has no command 'statsu'"),
        ("`edgectl models fetch x`", "`edgectl models` has no command 'fetch'"),
        ("```sh\nedgectl config check && edgectl reload --now\n```", "`edgectl reload` has no option --now"),
    ],
)
def test_the_check_tells_right_from_wrong(text, wrong):
    found = [problem(words) for words in calls(text)]
    assert found
    assert next(filter(None, found), "") == wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    assert not [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path):
    named = {span for span in SPAN.findall(FENCE.sub("", path.read_text())) if PLACE.fullmatch(span)}
    assert not {span for span in named if not any(ROOT.glob(span.rstrip("/")))}


def test_decisions_are_numbered_and_shaped():
    names = sorted(path.name for path in (ROOT / "docs/decisions").glob("*.md"))
    assert len({name[:4] for name in names}) == len(names)
    for name in names:
        text = (ROOT / "docs/decisions" / name).read_text()
        assert text.startswith(f"# {name[:4]} ")
        assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
