"""What the simulated adapter promises beyond the contracts: costs, faults on request, pure answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from edged_backends.simulated import SimulatedBackend
from edged_backends.simulated_costs import Costs
from edged_backends.simulated_faults import NONE, FaultFile, contains
from edged_backends.simulated_prefixes import Prefixes
from edged_backends.simulated_tokens import OFFSET, ByteVocabulary
from hypothesis import given
from hypothesis import strategies as st

from edged.backend import Device, Sampling, Variant
from edged.errors import BackendError, ConfigError, DeviceLost
from edged.testing.token_contract import finish_all, generate

POISON = "drop table"


def made(task: str) -> Variant:
    return Variant(
        model="simulated", name="none", task=task, format="none", path=Path("/dev/null"), context_tokens=512
    )


def opened(task: str, device: str = "sim:cpu", **options):
    backend = SimulatedBackend()
    known = {entry.id: entry for entry in backend.devices()}
    other = Device(id=device, kind="simulated", name=device, backend="simulated")
    return backend.open(made(task), known.get(device, other), options)


@pytest.fixture
def faults(tmp_path: Path):
    path = tmp_path / "faults.toml"

    def write(text: str) -> str:
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)
        return str(path)

    return write


def block(text: str) -> dict[str, np.ndarray]:
    return {"input": np.frombuffer(text.encode(), np.uint8).reshape(1, -1)}


def prompt(text: str) -> list[int]:
    return ByteVocabulary().encode(text, special=False)


# --------------------------------------------------------------------- sessions


def test_the_empty_session_returns_its_input_unchanged():
    feeds = block("anything")
    answer = opened("tensor").run(feeds)["input"]
    np.testing.assert_array_equal(answer, feeds["input"])
    assert not np.shares_memory(answer, feeds["input"])


def test_inputs_of_the_empty_session_can_be_named():
    variant = msgspec.structs.replace(made("tensor"), details={"inputs": ["a", "b"]})
    session = SimulatedBackend().open(variant, SimulatedBackend().devices()[0], {})
    assert session.inputs == session.outputs == ("a", "b")


def encoded(*rows: list[int], query: int = 0) -> dict[str, np.ndarray]:
    ids = np.array(rows)
    types = np.zeros_like(ids)
    types[:, query:] = 1
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}


def test_texts_that_share_tokens_embed_alike():
    feeds = encoded([5, 6, 7, 8], [5, 6, 7, 9], [15, 16, 17, 18])
    cls = opened("embed").run(feeds)["last_hidden_state"][:, 0]
    cls /= np.linalg.norm(cls, axis=1, keepdims=True)
    assert cls[0] @ cls[1] > 0.5 > abs(cls[0] @ cls[2])


def test_a_reranker_prefers_the_document_that_has_the_query():
    feeds = encoded([5, 6, 5, 6], [5, 6, 5, 9], [5, 6, 8, 9], query=2)
    assert opened("rerank").run(feeds)["logits"].ravel().tolist() == [4.0, 0.0, -4.0]


def test_a_static_device_refuses_other_lengths_than_compiled():
    session = opened("tensor", "sim:npu", lengths=[4, 8])
    assert session.run(block("four"))["input"].shape == (1, 4)
    with pytest.raises(BackendError, match=r"\[4, 8\]"):
        session.run(block("five!"))


def test_an_npu_decodes_one_sequence_at_a_time():
    assert opened("generate", "sim:npu", max_sequences=8).max_sequences == 1


def test_any_simulated_id_opens_and_others_do_not():
    assert opened("tensor", "sim:7").run(block("x"))
    with pytest.raises(BackendError, match="sim:"):
        opened("tensor", "cuda:0")


@given(text=st.text(min_size=1, max_size=40), seed=st.integers(0, 2**31 - 1), cut=st.integers(1, 11))
def test_sampled_answers_resume_identically(text: str, seed: int, cut: int):
    session = opened("generate")
    sampling = Sampling(temperature=1.0, seed=seed)
    whole = generate(session, prompt(text), 12, sampling).tokens
    rest = generate(session, prompt(text) + whole[:cut], 12 - cut, sampling).tokens
    assert rest == whole[cut:]


@given(st.text(max_size=60))
def test_text_survives_the_byte_vocabulary(text: str):
    vocabulary = ByteVocabulary()
    assert vocabulary.decode(vocabulary.encode(text, special=False)) == text


# ------------------------------------------------------------------------ costs


def test_declared_costs_are_spent(monkeypatch: pytest.MonkeyPatch, faults):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    session = opened("tensor", fixed_ms=2, per_item_ms=3, per_token_ms=0.5, faults=faults("slow_factor = 2"))
    session.run({"input": np.zeros((4, 10))})
    assert slept == [pytest.approx(2 * (2 + 4 * (3 + 10 * 0.5)) / 1e3)]


def test_a_step_costs_its_prompt_tokens_and_its_sequences(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    session = opened("generate", decode_ms=10, per_item_ms=1, per_token_ms=0.1, batch_tokens=8)
    session.admit(1, prompt("x" * 12), Sampling(), 2)
    finish_all(session, {})
    expected = [10 + 0.8, 10 + 0.4 + 1, 10 + 1]
    assert slept == pytest.approx([cost / 1e3 for cost in expected])


def test_a_beginning_that_is_known_costs_nothing_to_read(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    session = opened("generate", per_token_ms=1000, prefix_cache_tokens=100, kv_token_bytes=10)
    monkeypatch.setattr(time, "sleep", slept.append)
    answer = generate(session, prompt("x" * 20 + "first"), 4).tokens
    assert session.prefix_counters() == (0, 25, 280), "all but the last token of the answer"
    generate(session, prompt("x" * 20 + "then"), 1)
    assert generate(session, prompt("x" * 20 + "first"), 4).tokens == answer
    assert [seconds for seconds in slept if seconds] == [25, 4, 1]
    assert session.prefix_counters() == (20 + 24, 25 + 24 + 25, 280 + 240)
    session.clear_prefixes()
    assert session.prefix_counters()[2] == 0
    generate(session, prompt("x" * 20), 1)
    assert slept[-1] == 20


def test_a_live_sequence_lends_what_it_has_read():
    session = opened("generate", batch_tokens=8, prefix_cache_tokens=100)
    session.admit(1, prompt("x" * 20), Sampling(), 4)
    session.step()
    session.admit(2, prompt("x" * 20), Sampling(), 4)
    assert session.prefix_counters() == (8, 40, 0)
    answers = finish_all(session, {})
    assert answers[1].tokens == answers[2].tokens


def test_without_a_prefix_cache_every_prompt_is_read():
    session = opened("generate")
    for _ in range(2):
        generate(session, prompt("again"), 2)
    assert session.prefix_counters() == (0, 10, 0)


@given(
    texts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=20), max_size=12),
    limit=st.integers(0, 30),
)
def test_known_beginnings_are_those_that_were_kept(texts: list[list[int]], limit: int):
    prefixes = Prefixes(limit)
    for number, text in enumerate(texts):
        known = prefixes.look_up(text, [])
        assert known < len(text)
        assert known == 0 or any(other[:known] == text[:known] for other in texts[:number])
        prefixes.keep(text)
        assert prefixes.held <= limit
        assert len(text) > limit or prefixes.look_up([*text, 2], []) == len(text)


def test_a_busy_cost_does_not_sleep(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    before_s = time.perf_counter()
    Costs(busy=True).spend(20)
    assert time.perf_counter() - before_s >= 0.02
    assert not slept


# ----------------------------------------------------------------------- faults


def test_a_fault_file_is_read_again_when_it_changes(faults):
    file = FaultFile(Path(faults("nan = true")))
    assert file.current().nan
    faults("garbage = true")
    assert file.current().garbage
    Path(faults("")).unlink()
    assert file.current() is NONE


@pytest.mark.parametrize("text", ["nam = true", "crash = 'burn'", "[", "after_items = -1"])
def test_a_fault_file_with_a_mistake_is_refused(faults, text: str):
    with pytest.raises(ConfigError, match=r"faults\.toml"):
        opened("tensor", faults=faults(text))


def test_a_fault_file_may_be_json(tmp_path: Path):
    path = tmp_path / "faults.json"
    path.write_text('{"raise": "backend"}')
    with pytest.raises(BackendError, match="as its fault file asks"):
        opened("tensor", faults=str(path)).run(block("x"))


def test_a_lost_device_and_a_failed_runtime_differ(faults):
    session = opened("tensor", faults=faults("raise = 'device_lost'"))
    with pytest.raises(DeviceLost):
        session.run(block("x"))


def test_the_poison_fires_only_on_its_text(faults):
    session = opened("tensor", faults=faults(f"raise = 'backend'\non_text = '{POISON}'"))
    assert session.run(block("harmless"))
    with pytest.raises(BackendError):
        session.run(block(f"please {POISON} now"))


def test_the_poison_may_be_token_ids(faults):
    session = opened("embed", faults=faults("raise = 'backend'\non_tokens = [6, 7]"))
    assert session.run(encoded([5, 7, 6, 8]))
    with pytest.raises(BackendError):
        session.run(encoded([5, 6, 7, 8]))


def test_a_poisoned_prompt_fails_alone(faults):
    session = opened("generate", faults=faults(f"raise = 'item'\non_text = '{POISON}'"))
    session.admit(1, prompt(f"please {POISON} now"), Sampling(), 5)
    session.admit(2, prompt("harmless"), Sampling(), 5)
    answers = finish_all(session, {})
    assert (answers[1].finish, answers[1].tokens) == ("error", [])
    assert (answers[2].finish, len(answers[2].tokens)) == ("length", 5)


def test_a_fault_may_strike_in_mid_answer(faults):
    session = opened("generate", faults=faults("raise = 'backend'\nafter_items = 3"))
    session.admit(1, prompt("a question"), Sampling(), 9)
    for _ in range(3):
        assert session.step()
    with pytest.raises(BackendError):
        session.step()


def test_outputs_may_be_nan(faults):
    session = opened("rerank", faults=faults("nan = true"))
    assert np.isnan(session.run(encoded([5, 6, 5, 6], query=2))["logits"]).all()


def test_outputs_may_be_garbage_of_the_right_shape(faults):
    session = opened("tensor", faults=faults("garbage = true"))
    text = "a text of which random bytes are no copy"
    answer = session.run(block(text))["input"]
    assert answer.shape == (1, len(text))
    assert answer.tobytes() != text.encode()


def test_garbage_tokens_are_within_the_vocabulary(faults):
    session = opened("generate", faults=faults("garbage = true"))
    tokens = generate(session, prompt("x"), 64).tokens
    assert all(OFFSET <= token < OFFSET + 256 for token in tokens)


CHILD = """
import sys
import numpy as np
from pathlib import Path
from edged_backends.simulated import SimulatedBackend
from edged.backend import Sampling, Variant
backend = SimulatedBackend()
task, path = sys.argv[1:]
variant = Variant(model="s", name="none", task=task, format="none", path=Path("/dev/null"))
session = backend.open(variant, backend.devices()[0], {"faults": path})
print("working", flush=True)
if task == "generate":
    session.admit(1, session.vocabulary.encode("ask", special=False), Sampling(), 5)
    session.step()
else:
    session.run({"input": np.zeros((1, 4))})
print("done", flush=True)
"""


def child(task: str, path: str) -> subprocess.Popen[str]:
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here / 'backends'}"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, task, path], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("crash", "status"), [("segv", -signal.SIGSEGV), ("abort", -signal.SIGABRT), ("exit", 3)]
)
@pytest.mark.parametrize("task", ["tensor", "generate"])
def test_a_crash_is_real(faults, task: str, crash: str, status: int):
    process = child(task, faults(f"crash = '{crash}'"))
    output, _ = process.communicate()
    assert (output, process.returncode) == ("working\n", status)


def test_a_crash_may_happen_at_load(faults):
    process = child("tensor", faults("crash = 'exit'\nat_load = true"))
    assert (process.communicate()[0], process.returncode) == ("", 3)


def test_a_crash_may_happen_once(faults):
    path = faults("crash = 'exit'\nonce = true")
    first = child("tensor", path)
    assert (first.communicate()[0], first.returncode) == ("working\n", 3)
    second = child("tensor", path)
    assert (second.communicate()[0], second.returncode) == ("working\ndone\n", 0)


@pytest.mark.parametrize("hang", ["sleep", "spin", "native"])
def test_a_hang_is_real(faults, hang: str):
    process = child("tensor", faults(f"hang = '{hang}'"))
    try:
        assert process.stdout.readline() == "working\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    finally:
        process.kill()
        output, _ = process.communicate()
    assert output == ""


def test_ids_must_be_in_a_row():
    assert contains([1, 2, 3], [2, 3])
    assert not contains([1, 2, 3], [1, 3])
    assert contains([], [])
