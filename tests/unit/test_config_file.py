"""The configuration file: what is wrong in it is named, and who may write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.config import load
from edged.config.layers import MAX_FILE_BYTES
from edged.errors import ConfigError

from .conftest import HOME

pytestmark = pytest.mark.usefixtures("no_system_file")


# ------------------------------------------------------------------------------------- what is wrong in it

BAD: list[tuple[str, str]] = [
    ("[queue]\nslots = 0\n", "queue.slots"),
    ("[queue]\nslots = 65537\n", "queue.slots"),
    ("[queue]\nslots = '8'\n", "queue.slots"),
    ("[queue]\nslots = true\n", "queue.slots"),
    ("[queue]\nslots = 1.5\n", "queue.slots"),
    ("[queue]\nslot_bytes = 100\n", "queue.slot_bytes"),
    ("[queue]\nslot_bytes = 5000\n", "queue.slot_bytes"),
    ("[queue]\nslots = 65536\nslot_bytes = 1073741824\n", "queue.slots"),
    ("[queue]\nslotz = 8\n", "queue.slotz"),
    ("queue = 8\n", "queue"),
    ("[queues]\nslots = 8\n", "queues"),
    ("[daemon]\ndrain_s = 0\n", "daemon.drain_s"),
    ("[daemon]\ndrain_s = -1.0\n", "daemon.drain_s"),
    ("[daemon]\ndrain_s = nan\n", "daemon.drain_s"),
    ("[daemon]\nlog_level = 'loud'\n", "daemon.log_level"),
    ("[daemon]\nlog_format = 'xml'\n", "daemon.log_format"),
    ("[daemon]\nstate_dir = 5\n", "daemon.state_dir"),
    ("[daemon]\nstate_dir = '~/edged'\n", "daemon.state_dir"),
    ('[daemon]\nstate_dir = "a\\u0000b"\n', "daemon.state_dir"),
    ("[api]\nsocket_mode = '0999'\n", "api.socket_mode"),
    ("[api]\nsocket_mode = 660\n", "api.socket_mode"),
    ("[api]\nmax_connections = -1\n", "api.max_connections"),
    ("[api]\nmax_body_bytes = 0\n", "api.max_body_bytes"),
    ("[api]\nsocket = '/x.sock'\nadmin_socket = '/x.sock'\n", "api.admin_socket"),
    (f"[api]\nsocket = '/{'x' * 107}'\n", "api.socket"),
    (f"[daemon]\nruntime_dir = '/{'é' * 60}'\n", "api.socket"),
    ("[library]\nchunk_tokens = 31\n", "library.chunk_tokens"),
    ("[library]\nchunk_tokens = 100\noverlap_tokens = 100\n", "library.overlap_tokens"),
    ("[stages.x]\nmodel = 'm'\n", "stages.x.kind"),
    ("[stages.x]\nkind = 'oracle'\n", "stages.x.kind"),
    ("[stages.x]\nkind = 'tensor'\n", "stages.x.model"),
    ("[stages.X]\nkind = 'tensor'\nbackend = 'simulated'\n", "stages.X"),
    ("[stages.'../x']\nkind = 'tensor'\nbackend = 'simulated'\n", 'stages."../x"'),
    ("[stages.generator]\nmodel = '../etc/passwd'\n", "stages.generator.model"),
    ("[stages.generator]\nvariant = 'a/b'\n", "stages.generator.variant"),
    ("[stages.generator]\nbackend = 'On nx'\n", "stages.generator.backend"),
    ("[stages.generator]\nworkers = 65\n", "stages.generator.workers"),
    ("[stages.generator]\nmax_batch = 0\n", "stages.generator.max_batch"),
    ("[stages.generator]\ntimeout_s = 0\n", "stages.generator.timeout_s"),
    ("[stages.generator]\ndevice = 'CPU'\n", "stages.generator.device"),
    ("[stages.generator]\ndevice = 'cpu:'\n", "stages.generator.device"),
    ("[stages.generator]\ndevice = 'cpu:3-1'\n", "stages.generator.device"),
    ("[stages.generator]\ndevice = 'cpu:1,,2'\n", "stages.generator.device"),
    ("[stages.generator]\ndevice = 'cpu:0-99999999999'\n", "stages.generator.device"),
    ("[stages.generator]\ndevice = 'cpu:1-'\n", "stages.generator.device"),
    ("[stages.generator]\noptions = 'fast'\n", "stages.generator.options"),
    ("[stages.generator]\nmodle = 'x'\n", "stages.generator.modle"),
    ("[pipelines.rag]\nstages = ['oracle']\n", "pipelines.rag.stages"),
    ("[pipelines.rag]\nstages = []\n", "pipelines.rag.stages"),
    ("[pipelines.rag]\nstages = 'generator'\n", "pipelines.rag.stages"),
    ("[pipelines.rag]\nstages = ['generator', 'reranker']\n", "pipelines.rag.stages"),
    ("[pipelines.rag]\nstages = ['reranker', 'retriever', 'generator']\n", "pipelines.rag.stages"),
    ("[pipelines.rag]\nstages = ['reranker', 'generator']\n", "pipelines.rag.stages"),
    ("[pipelines.rag]\nstages = ['retriever', 'retriever']\n", "pipelines.rag.stages"),
    ("[pipelines.x]\n", "pipelines.x.stages"),
    ("[pipelines.smollm2-135m-instruct]\nstages = ['generator']\n", "pipelines.smollm2-135m-instruct"),
    (
        "[stages.t]\nkind = 'tensor'\nbackend = 'simulated'\n[pipelines.p]\nstages = ['t', 'generator']\n",
        "pipelines.p.stages",
    ),
]


@pytest.mark.parametrize(("text", "field"), BAD, ids=lambda value: " ".join(value.split())[:60])
def test_a_bad_file_is_refused_by_the_name_of_the_field(write, text: str, field: str):
    with pytest.raises(ConfigError) as caught:
        load(write(text), HOME)
    assert caught.value.param == field
    assert field in caught.value.message


def test_there_are_enough_bad_files():
    assert len(BAD) >= 50


def test_the_value_and_the_limit_are_named(write):
    with pytest.raises(ConfigError, match=r"queue\.slots = 0: expected int >= 1"):
        load(write("[queue]\nslots = 0\n"), HOME)
    with pytest.raises(ConfigError, match="choose from debug, info, warning, error"):
        load(write("[daemon]\nlog_level = 'loud'\n"), HOME)


def test_a_model_with_its_variant_is_told_where_the_variant_goes(write):
    meant = "write model = 'smollm2-135m-instruct' and variant = 'q4_1'"
    with pytest.raises(ConfigError, match=meant) as refusal:
        load(write("[stages.generator]\nmodel = 'smollm2-135m-instruct:q4_1'\n"), HOME)
    assert refusal.value.param == "stages.generator.model"
    with pytest.raises(ConfigError, match="may hold only"):
        load(write("[stages.generator]\nmodel = 'a:b:c'\n"), HOME)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("[queue]\nslotz = 8", "queue.slots"), ("[stages.generator]\nmodle = 'x'", "stages.generator.model")],
)
def test_a_misspelt_option_names_the_nearest(write, text, meant):
    with pytest.raises(ConfigError, match=f"did you mean {meant}"):
        load(write(text), HOME)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[queue]\nslots = = 8\n", "line 2"),
        (b"[queue]\nslots = 1\nslots = 2\n", "line 3"),
        (b"[queue\n", "line 1"),
        (b"a = \xff\n", "byte 4"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"#" * (MAX_FILE_BYTES + 1), "larger than"),
    ],
)
def test_what_is_not_toml_is_refused_with_the_place(write, data, said):
    with pytest.raises(ConfigError, match=said):
        load(write(data), HOME)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"EDGED_QUEUE__SLOTS": "many"}, "queue.slots = 'many'"),
        ({"EDGED_QUEUE__SLOTZ": "8"}, "did you mean queue.slots"),
        ({"EDGED_QUEUE_SLOTS": "8"}, "did you mean EDGED_QUEUE__SLOTS"),
        ({"EDGED_QUEUE__SLOTS__X": "8"}, "queue.slots"),
        ({"EDGED_QUEUE__": "8"}, "queue"),
    ],
)
def test_a_bad_variable_is_refused(environment, named):
    with pytest.raises(ConfigError, match=named):
        load(None, HOME | environment)


@pytest.mark.parametrize(
    "flag", ["queue.slots", "=8", "queue slots=8", "queue.slots=x", "queue.=8", "a\nb=1"]
)
def test_a_bad_flag_is_refused(flag):
    with pytest.raises(ConfigError):
        load(None, HOME, [flag])


# ------------------------------------------------------------------------------------ who may write the file


def test_a_file_that_the_world_can_write_is_refused(write):
    file = write("")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod go-w"):
        load(file, HOME)


@pytest.mark.parametrize(("owner", "mode", "accepted"), [
    ("us", 0o664, True), ("root", 0o644, True), ("root", 0o664, False), ("other", 0o600, False),
])  # fmt: skip
def test_only_root_and_we_decide(write, monkeypatch, owner, mode, accepted):
    file = write("")
    file.chmod(mode)
    status = os.stat_result(
        (file.stat().st_mode, 1, 1, 1, {"us": 1234, "root": 0, "other": 99}[owner], 0, 0, 0, 0, 0)
    )
    monkeypatch.setattr("edged.config.layers.os.fstat", lambda _: status)
    monkeypatch.setattr("edged.config.layers.os.geteuid", lambda: 1234)
    if accepted:
        load(file, HOME)
    else:
        with pytest.raises(ConfigError):
            load(file, HOME)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "folder"])
def test_a_file_that_was_asked_for_has_to_be_one(tmp_path, make):
    path = tmp_path / "asked.toml"
    make(path)
    with pytest.raises(ConfigError, match=r"asked\.toml"):
        load(path, HOME)
