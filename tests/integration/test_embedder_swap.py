"""Another variant of the embedder: measured on the user's own passages, permitted or refused with the figure.

Real models; one end-to-end swap of an embedder and of a generator under streaming clients.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from edged.documents.agreement import LEAST_COSINE, Agreement, check_agreement, measure
from edged.documents.library import Library
from edged.errors import IndexMismatch
from edged.report import SwapReport
from edged.testing.daemon import RunningDaemon, running
from tests.conftest import MODELS
from tests.faults.crowd import Crowd, ask, healed

from .ingestion import open_encoder, run

MODEL = "all-minilm-l6-v2"
GENERATOR = "smollm2-135m-instruct"
CONFIG = """
[daemon]
state_dir = "{state}"
[library]
dir = "{library}"
[stages.retriever]
model = "all-minilm-l6-v2"
variant = "int8"
backend = "onnx"
[stages.reranker]
workers = 0
[stages.generator]
model = "smollm2-135m-instruct"
variant = "q4_0"
backend = "llama_cpp"
[pipelines.rag]
stages = ["retriever", "generator"]
"""
QUESTIONS = ("How long must the button be held?", "When does the pump start?")


class Turned:
    """An embedder whose vectors are those of the other one, turned round: same claims, other language."""

    def __init__(self, encoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def embed(self, texts, kind="passage"):
        vectors, tokens = self._encoder.embed(texts, kind)
        return np.roll(vectors, 7, axis=1), tokens


def over(daemon: RunningDaemon) -> SwapReport:
    daemon.wait_for(lambda _: not daemon.admin.swap_report().under_way, "the end of the change")
    return daemon.admin.swap_report()


def config(folder: Path, library: Path) -> str:
    """Models of the checkout; everything else in a folder of the test's own."""
    state = folder / "state"
    state.mkdir()
    (state / "models").symlink_to(MODELS, target_is_directory=True)
    return CONFIG.format(state=state, library=library)


def test_variants_of_one_model_agree(library, documents, encoder, variant):
    run(library, documents, encoder)
    with Library.open(library) as opened:
        same = measure(opened, encoder)
        other = measure(opened, open_encoder(variant(MODEL, "fp32")))
    assert same is not None
    assert other is not None
    assert (same.mean_cosine, same.overlap) == (pytest.approx(1.0, abs=1e-3), 1.0)
    assert LEAST_COSINE < other.least_cosine <= other.mean_cosine < 1.0
    assert other.passages == opened_passages(library)


def opened_passages(library: Path) -> int:
    with Library.open(library) as opened:
        return opened.statistics().passages


def test_an_empty_library_has_nothing_to_say(library, encoder):
    with Library.open(library) as opened:
        assert measure(opened, encoder) is None


def test_another_model_is_refused_by_its_fingerprint(library, documents, encoder, variant):
    run(library, documents, encoder)
    with Library.open(library) as opened, pytest.raises(IndexMismatch, match="gte-small"):
        measure(opened, open_encoder(variant("gte-small", "fp32")))


@pytest.mark.parametrize(("cosine", "overlap"), [(0.97, 1.0), (1.0, 0.89)])
def test_the_refusal_names_the_figures(variant, cosine, overlap):
    poor = Agreement(passages=64, mean_cosine=cosine, least_cosine=0.5, overlap=overlap)
    with pytest.raises(IndexMismatch, match=rf"{cosine:.3f} .* {overlap:.0%} .*--re-embed"):
        check_agreement(poor, variant(MODEL, "int8"))


def test_an_embedder_that_does_not_fit_the_stored_vectors_is_refused_with_the_figure(
    tmp_path, library, documents, encoder
):
    run(library, documents, Turned(encoder))
    with running(tmp_path, config(tmp_path, library)) as daemon:
        (old,) = daemon.stage("retriever").workers
        daemon.admin.swap_stage("retriever", variant="fp32")
        report = over(daemon)
        assert report.code == "index_mismatch"
        assert "the mean cosine is 0." in report.problem or "the mean cosine is -0." in report.problem
        assert [worker.pid for worker in daemon.stage("retriever").workers] == [old.pid]


def test_real_models_are_swapped_under_streaming_clients(tmp_path, library, documents, encoder, variant):
    for name, form in ((MODEL, "fp32"), (GENERATOR, "q4_0"), (GENERATOR, "q8_0")):
        variant(name, form)
    run(library, documents, encoder)
    with running(tmp_path, config(tmp_path, library)) as daemon:
        fields = {"model": "rag", "max_tokens": 16}
        texts = {question: {ask(daemon.client, question, **fields).text} for question in QUESTIONS}

        def one(chooser: random.Random):
            return ask(daemon.client, chooser.choice(QUESTIONS), **fields)

        with Crowd([one] * 4, seed=7) as crowd:
            daemon.admin.swap_stage("retriever", variant="fp32")
            embedder = over(daemon)
            daemon.admin.swap_stage("generator", variant="q8_0")
            generator = over(daemon)
        healed(daemon)
        assert (embedder.problem, generator.problem) == ("", "")
        assert embedder.agreement["mean_cosine"] > LEAST_COSINE
        for question in QUESTIONS:
            texts[question].add(ask(daemon.client, question, **fields).text)
        assert {outcome.code for outcome in crowd.outcomes} == {""}
        assert {outcome.terminals for outcome in crowd.outcomes} == {1}
        assert all(outcome.text in texts[outcome.question] for outcome in crowd.outcomes)
        assert {timing.variant for timing in timings(daemon)} == {"fp32", "q8_0"}


def timings(daemon: RunningDaemon):
    *_, final = daemon.client.chat([{"role": "user", "content": QUESTIONS[0]}], model="rag", max_tokens=4)
    return final.timings
