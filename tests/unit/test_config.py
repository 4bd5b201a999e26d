"""The configuration: layers, the places of its files and sockets, and what is published of it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.config import BUILT_IN, Config, Governor, load, schema
from edged.config import places as config_places
from edged.config.layers import from_environment, from_flags, merge
from edged.config.places import find_socket, locate
from edged.errors import ConfigError

from .conftest import HOME

pytestmark = pytest.mark.usefixtures("no_system_file")
ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------------- layers


def test_an_empty_file_works(write):
    config = load(write(""), HOME)
    assert list(config.stages) == ["retriever", "reranker", "generator"]
    assert config.pipelines["rag"].stages == ("retriever", "reranker", "generator")
    assert config == load(None, HOME)


def test_each_layer_covers_the_one_below(write):
    file = write("[queue]\nslots = 2\nslot_bytes = 8192\n[api]\nmax_connections = 2\n")
    environment = HOME | {"EDGED_QUEUE__SLOTS": "3", "EDGED_API__MAX_CONNECTIONS": "3"}
    config = load(file, environment, ["queue.slots=4"])
    assert (config.queue.slots, config.queue.slot_bytes, config.api.max_connections) == (4, 8192, 3)


def test_tables_are_merged_key_by_key(write):
    file = write("[stages.generator]\nworkers = 2\n[stages.generator.options]\nthreads = 2\n")
    generator = load(file, HOME, ["stages.generator.options.max_tokens=9"]).stages["generator"]
    assert (generator.model, generator.workers) == (BUILT_IN["stages"]["generator"]["model"], 2)
    assert generator.options == {"threads": 2, "max_tokens": 9}


def test_text_becomes_what_the_option_wants():
    environment = HOME | {
        "EDGED_API__SOCKET_MODE": "660",
        "EDGED_DAEMON__DRAIN_S": "5",
        "EDGED_STAGES__GENERATOR__MODEL": "7b",
        "EDGED_STAGES__GENERATOR__OPTIONS__LABEL": "plain text",
        "EDGED_STAGES__GENERATOR__OPTIONS__THREADS": "4",
    }
    config = load(
        None,
        environment,
        [
            'pipelines.rag.stages=["generator"]',
            'stages."v1.5".kind="tensor"',
            "stages.'v1.5'.backend=simulated",
        ],
    )
    assert (config.api.socket_mode, config.daemon.drain_s) == ("660", 5.0)
    assert config.stages["generator"].model == "7b"
    assert config.stages["generator"].options == {"label": "plain text", "threads": 4}
    assert config.pipelines["rag"].stages == ("generator",)
    assert config.stages["v1.5"].backend == "simulated"


def test_other_environment_variables_are_left_alone():
    environment = HOME | {"EDGED_SOCKET": "/x", "EDGED_WORKER": "1", "PATH": "/bin"}
    assert from_environment(environment, Config) == {}


layers = st.recursive(
    st.integers() | st.lists(st.integers()),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(st.sampled_from("abcd"), layers, max_size=4)


def leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for key, value in table.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


@settings(max_examples=40)
@given(tables, tables, tables)
def test_merging_does_not_depend_on_the_grouping(a, b, c):
    assert merge(merge(a, b), c) == merge(a, b, c)


@settings(max_examples=40)
@given(tables, tables)
def test_everything_that_the_upper_layer_says_holds(lower, upper):
    merged = leaves(merge(lower, upper))
    assert leaves(upper).items() <= merged.items() if _hashable(merged) else True
    assert all(merged[path] == value for path, value in leaves(upper).items())


def _hashable(found: dict[Any, Any]) -> bool:
    return not any(isinstance(value, list) for value in found.values())


@settings(max_examples=40)
@given(tables)
def test_merging_with_nothing_or_itself_changes_nothing(table):
    assert merge({}, table) == merge(table, {}) == merge(table, table) == table


@settings(max_examples=40)
@given(tables, tables)
def test_merging_leaves_its_layers_as_they_were(lower, upper):
    before = json.dumps([lower, upper])
    merged = merge(lower, upper)
    for value in merged.values():
        if isinstance(value, dict):
            value["new"] = 1
    assert json.dumps([lower, upper]) == before


@settings(max_examples=40)
@given(st.permutations([0, 1, 2]), st.integers(1, 65536), st.integers(1, 65536), st.integers(1, 65536))
def test_the_highest_layer_that_speaks_is_heard(order, file, variable, flag):
    """Whichever layers are there, flags win over the environment, and that over the file."""
    said = {0: file, 1: variable, 2: flag}
    present = sorted(order[:2])
    merged = merge(
        {"queue": {"slots": file}} if 0 in present else {},
        from_environment({"EDGED_QUEUE__SLOTS": str(variable)} if 1 in present else {}, Config),
        from_flags([f"queue.slots={flag}"] if 2 in present else [], Config),
    )
    assert merged["queue"]["slots"] == said[present[-1]]


# ---------------------------------------------------------------------------------------------------- places


def test_paths_of_a_user(write):
    config = load(None, HOME)
    assert config.api.socket == Path("/run/user/7/edged/edged.sock")
    assert config.api.admin_socket == Path("/run/user/7/edged/admin.sock")
    assert config.daemon.state_dir == Path("/home/x/state/edged")
    assert config.library.dir == Path("/home/x/state/edged/library")


def test_paths_under_systemd():
    config = load(
        None, HOME | {"RUNTIME_DIRECTORY": "/run/edged:/run/x", "STATE_DIRECTORY": "/var/lib/edged"}
    )
    assert config.api.socket == Path("/run/edged/edged.sock")
    assert config.library.dir == Path("/var/lib/edged/library")


def test_the_systems_file_means_the_systems_folders(write, tmp_path):
    config_places.SYSTEM_FILE.parent.mkdir()
    config_places.SYSTEM_FILE.write_text("")
    assert locate(None, HOME) == config_places.SYSTEM_FILE
    config = load(None, HOME)
    assert config.api.socket == tmp_path / "run" / "edged.sock"
    assert config.daemon.state_dir == Path("/var/lib/edged")


def test_without_a_login_sockets_stay_out_of_tmp(tmp_path, monkeypatch):
    monkeypatch.setattr("edged.config.places.os.getuid", lambda: 987654)
    config = load(None, {"XDG_STATE_HOME": "/home/x/state"})
    assert config.daemon.runtime_dir == Path("/home/x/state/edged/run")


def test_relative_paths_start_where_they_are_written(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    config = load(
        write("[api]\nsocket = 'a.sock'\n[library]\ndir = '../docs'\n"), HOME, ["daemon.state_dir=s"]
    )
    assert config.api.socket == tmp_path / "a.sock"
    assert config.library.dir == tmp_path / "../docs"
    assert config.daemon.state_dir == Path("/s")


def test_where_the_file_is_looked_for(write, tmp_path):
    user = tmp_path / "config" / "edged" / "edged.toml"
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert locate(None, environment) is None
    user.parent.mkdir(parents=True)
    user.write_text("")
    assert locate(None, environment) == user
    assert locate(None, environment | {"EDGED_CONFIG": "/x.toml"}) == Path("/x.toml")
    assert locate(Path("/y.toml"), environment | {"EDGED_CONFIG": "/x.toml"}) == Path("/y.toml")


def test_a_client_finds_the_systems_daemon_when_there_is_no_other(tmp_path):
    config = load(None, HOME)
    assert find_socket(config, HOME) == config.api.socket
    config_places.SYSTEM_RUNTIME.mkdir()
    (config_places.SYSTEM_RUNTIME / "edged.sock").touch()
    assert find_socket(config, HOME) == config_places.SYSTEM_RUNTIME / "edged.sock"
    named = load(None, HOME, ["api.socket=/named.sock"])
    assert find_socket(named, HOME) == Path("/named.sock")


@settings(max_examples=40)
@given(st.integers(1, 200))
def test_the_length_of_a_socket_path_is_checked_in_bytes(length):
    path = "/" + "x" * (length - 1)
    if length <= 107:
        assert load(None, HOME, [f"api.socket={path}"]).api.socket == Path(path)
    else:
        with pytest.raises(ConfigError, match="at most 107"):
            load(None, HOME, [f"api.socket={path}"])


# ------------------------------------------------------------------------------------------ what is published


def test_the_example_holds_every_option_with_its_default():
    text = (ROOT / "examples/edged.toml").read_text()
    example = tomllib.loads(text)
    for table in ("daemon", "api", "queue", "library", "placement"):
        kind = {field.name: field.type for field in msgspec.structs.fields(Config)}[table]
        defaults = msgspec.to_builtins(kind(), enc_hook=lambda path: "" if path == Path() else str(path))
        assert example[table] == defaults
    fields = msgspec.structs.fields(load(None, HOME).stages["retriever"])
    unwritable = {field.name for field in fields if field.default is None}
    assert set(example["stages"]["retriever"]) == {field.name for field in fields} - unwritable
    assert all(f"\n# {name} = " in text for name in unwritable)


def test_the_example_holds_the_governors_defaults():
    example = tomllib.loads((ROOT / "examples/edged.toml").read_text())["governor"]
    assert set(example) == {field.name for field in msgspec.structs.fields(Governor)}
    assert msgspec.convert(example, Governor) == Governor()


def test_the_example_means_what_the_built_in_configuration_means():
    def without_options(config: Config) -> Any:
        stages = {name: msgspec.structs.replace(stage, options={}) for name, stage in config.stages.items()}
        return msgspec.structs.replace(config, stages=stages)

    assert without_options(load(ROOT / "examples/edged.toml", HOME)) == without_options(load(None, HOME))


def test_the_published_schema_is_the_current_one():
    published = json.loads((ROOT / "docs/edged.schema.json").read_text())
    assert published == schema(), "run: edgectl config schema > docs/edged.schema.json"


def test_the_schema_accepts_the_example_and_refuses_a_misspelt_option():
    jsonschema.Draft202012Validator.check_schema(schema())
    example = tomllib.loads((ROOT / "examples/edged.toml").read_text())
    jsonschema.validate(example, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merge(example, {"queue": {"slotz": 1}}), schema())
