from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ConfigError, ProtocolError
from edged.layers.links.silence import Silence
from edged.layers.remote.clocks import Clock
from edged.layers.remote.messages import Hop, Ping, pack, unpack
from edged.layers.remote.relay import peer_at
from edged.layers.weights.fingerprint import SAMPLE_BYTES, difference, identify
from edged.layers.wire import Timing
from edged.peers.book import Peer

SHAPE = "layers=2,hidden=8,heads=2,intermediate=16,vocabulary=16"
A, B = (
    Peer(name=name, key=40 * name, endpoint=f"tcp://10.0.0.{end}:7443") for name, end in (("a", 1), ("b", 2))
)


# ------------------------------------------------------------------ silence


def test_silence_counts_from_the_first_question_that_nobody_answered():
    silence = Silence(1.0, 0.0)
    assert not silence.ask(0.2)
    assert silence.ask(0.25)
    assert not silence.lost(1.25)
    assert silence.lost(1.26)
    silence.heard()
    assert not silence.lost(5.0)


def test_a_process_that_stood_still_accuses_nobody():
    silence = Silence(1.0, 0.0)
    assert silence.ask(0.25)
    assert silence.ask(100.0)
    assert not silence.lost(100.5)
    for tick in range(1, 5):
        silence.ask(100 + tick * 0.25)
    assert silence.lost(101.1)


@given(st.lists(st.floats(0.0, 0.1), min_size=1, max_size=200))
def test_who_answers_within_the_time_is_never_lost(steps):
    silence, now_s = Silence(1.0, 0.0), 0.0
    for step in steps:
        now_s += step
        if silence.ask(now_s):
            assert not silence.lost(now_s + 1.0)
            silence.heard()
        assert not silence.lost(now_s)


# ------------------------------------------------------------------ clocks


@given(
    st.floats(-1e6, 1e6),
    st.lists(
        st.tuples(st.floats(0.001, 0.5), st.floats(0, 2), st.floats(0.001, 0.5)), min_size=1, max_size=30
    ),
)
def test_times_of_another_clock_are_right_to_half_a_round_trip(ahead_s, jobs):
    clock, now_s = Clock(), 0.0
    for there_s, computing_s, back_s in jobs:
        began_s = now_s + there_s
        ended_s = began_s + computing_s
        told = Timing(1, began_s - 1 + ahead_s, began_s + ahead_s, ended_s + ahead_s, 0.0, 0.0, 0)
        here = clock.here(told, now_s, ended_s + back_s)
        assert abs(here.began_s - began_s) <= (there_s + back_s) / 2 + 1e-6
        assert here.ended_s - here.began_s == pytest.approx(computing_s, abs=1e-6)
        now_s = ended_s + back_s


def test_a_clock_that_drifts_is_learnt_anew():
    clock = Clock()
    clock.here(Timing(1, 0.0, 0.0, 0.0, 0.0, 0.0, 0), -0.001, 0.001)
    here = clock.here(Timing(1, 99.0, 100.0, 100.0, 0.0, 0.0, 0), 100.049, 100.051)
    assert here.began_s == pytest.approx(100.05)


# ------------------------------------------------------------------ which model


def test_the_same_model_has_no_difference_and_another_is_named():
    one = identify(f"random:llama:{SHAPE},seed=1")
    assert not difference(one, identify(f"random:llama:{SHAPE},seed=1"))
    assert "other weights" in difference(one, identify(f"random:llama:{SHAPE},seed=2"))
    assert difference(one, identify(f"random:llama:{SHAPE},context=64,seed=1")) == (
        "its model has context_tokens 2048, the head's 64"
    )
    assert "other weights" in difference(one, identify(f"random:llama:{SHAPE},seed=1,theta=10000.0"))


@pytest.mark.parametrize("place", [0, 5 * SAMPLE_BYTES // 2, -1])
def test_a_file_with_other_bytes_has_another_fingerprint(tmp_path, place):
    found = []
    for name in ("one", "copy", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(SETTINGS)
        content = bytearray(10 * SAMPLE_BYTES)
        content[place] = name == "other"
        (folder / "model.safetensors").write_bytes(content)
        found.append(identify(str(folder)))
    assert found[0] == found[1]
    assert "other weights" in difference(found[0], found[2])


SETTINGS = """{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16,
"num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
"rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu"}"""


# ------------------------------------------------------------------ whose address, which message


@pytest.mark.parametrize(
    ("device", "name"),
    [("tcp://10.0.0.1:7443", "a"), ("tcp://10.0.0.2:7701", "b"), ("tcp://b:7701", "b")],
)
def test_a_peer_is_found_by_address_host_or_name(device, name):
    assert peer_at(device, (A, B)).name == name


def test_an_address_of_nobody_or_of_two_is_refused():
    with pytest.raises(ConfigError, match="no peer is listed"):
        peer_at("tcp://10.0.0.3:7701", (A, B))
    twin = Peer(name="c", key=40 * "c", endpoint="tcp://10.0.0.1:1")
    with pytest.raises(ConfigError, match="2 peers are listed"):
        peer_at("tcp://10.0.0.1:7701", (A, B, twin))


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_messages_keep_what_follows_them(header, payload):
    said, rest = unpack(pack(Hop("s", header), payload))
    assert (said, bytes(rest)) == (Hop("s", header), payload)


@given(st.binary(max_size=60))
def test_anything_else_is_no_message(body):
    try:
        said, _ = unpack(body)
    except ProtocolError:
        return
    assert pack(said)[4:]


def test_a_message_that_is_cut_short_is_none():
    whole = pack(Ping("session"))
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            unpack(whole[:length])
