"""The retriever stage with a real embedder: batches in, payloads out."""

from pathlib import Path

import numpy as np
import pytest

from edged import plugins
from edged.config import Library as Settings
from edged.documents.index import Generation
from edged.documents.ingest import ingest
from edged.errors import BackendError, BadRequest, ConfigError, IndexMismatch, ProtocolError
from edged.messages import Ceiling, ChatTask, EmbedAnswer, EmbedTask, Message, decoder, encode
from edged.stages.contract import Item
from edged.stages.encoder import Encoder
from edged.stages.retriever import Retriever

TEXTS = {
    "reset.md": "# Reset\n\nHold the button for ten seconds to restore factory settings.\n",
    "pump.md": "# Pump\n\nThe pump starts when the float switch closes.\n",
    "lamp.md": "# Lamp\n\nA red lamp means that the battery is empty.\n",
}


def open_session(variant):
    backend = plugins.load("onnx")
    device = next(device for device in backend.devices() if device.id == "cpu")
    return backend.open(variant, device, {"threads": 1})


@pytest.fixture(scope="module")
def weights(variant):
    chosen = variant("bge-small-en-v1.5", "int8")
    return open_session(chosen), chosen


def fill(library: Path, folder: Path, encoder: Encoder, texts: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    ingest(library, [folder], encoder, Settings(), prune=False, progress=lambda step: None)


@pytest.fixture
def retriever(weights, tmp_path):
    fill(tmp_path / "library", tmp_path / "documents", Encoder(*weights), TEXTS)
    return Retriever(*weights, tmp_path / "library", {"candidates": 2})


def item(task, operation="chat") -> Item:
    return Item(1, operation, memoryview(task if isinstance(task, bytes) else encode(task)))


def asking(text: str, **fields) -> Item:
    earlier = (Message("user", "something else"), Message("assistant", "fine"))
    return item(ChatTask(messages=(*earlier, Message("user", text)), grounded=True, **fields))


def passages(payload):
    return decoder(ChatTask)(payload).passages


def test_each_question_of_a_batch_gets_its_own_passages(retriever):
    answers = retriever.run([asking("how do I reset it?"), asking("when does the pump start?")])
    assert [passages(answer)[0].title for answer in answers] == ["Reset", "Pump"]
    assert all(len(passages(answer)) == 2 for answer in answers)


def test_a_task_may_ask_for_more_candidates(retriever):
    (answer,) = retriever.run([asking("battery", candidates=3)])
    assert len(passages(answer)) == 3


@pytest.mark.parametrize(("asked", "most", "count"), [(3, 1, 1), (0, 1, 1), (1, 2, 1), (3, 0, 3)])
def test_no_more_than_the_ceiling_whatever_is_asked_for_or_configured(retriever, asked, most, count):
    (answer,) = retriever.run([asking("battery", candidates=asked, ceiling=Ceiling(candidates=most))])
    assert len(passages(answer)) == count


def test_a_bad_item_fails_alone(retriever):
    good = asking("battery lamp")
    nobody = item(ChatTask(messages=(Message("system", "x"),), grounded=True))
    answers = [*retriever.run([item(b"\xc1garbage"), good, nobody, item(b"", "rerank")])]
    assert isinstance(answers[0], ProtocolError)
    assert passages(answers[1])[0].title == "Lamp"
    assert isinstance(answers[2], BadRequest)
    assert isinstance(answers[3], BadRequest)


def test_an_ungrounded_chat_passes_through_unchanged(retriever):
    task = ChatTask(messages=(Message("user", "hello"),))
    assert [*retriever.run([item(task)])] == [encode(task)]


def test_embed_gives_unit_vectors_and_queries_differ_from_passages(retriever):
    texts = ("one text", "another, longer text")
    first, second = (
        decoder(EmbedAnswer)(payload)
        for payload in retriever.run(
            [item(EmbedTask(texts=texts), "embed"), item(EmbedTask(texts=texts, kind="query"), "embed")]
        )
    )
    vectors = np.frombuffer(first.vectors, "<f4").reshape(first.count, first.dimension)
    assert vectors.shape == (2, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert second.tokens > first.tokens
    assert second.vectors != first.vectors


def test_an_empty_library_gives_no_passages_until_one_is_published(weights, tmp_path):
    retriever = Retriever(*weights, tmp_path / "library", {})
    (answer,) = retriever.run([asking("reset")])
    assert passages(answer) == ()
    fill(tmp_path / "library", tmp_path / "documents", Encoder(*weights), TEXTS)
    (answer,) = retriever.run([asking("reset")])
    assert passages(answer)[0].title == "Reset"


def test_a_new_generation_is_noticed_between_two_queries(retriever, weights, tmp_path):
    list(retriever.run([asking("reset")]))
    fill(
        tmp_path / "library", tmp_path / "documents", Encoder(*weights), {"valve.md": "# Valve\n\nTurn it.\n"}
    )
    (answer,) = retriever.run([asking("turn the valve")])
    assert passages(answer)[0].title == "Valve"


def test_a_library_of_another_embedder_is_refused_at_the_start(variant, weights, tmp_path):
    chosen = variant("all-minilm-l6-v2", "int8")
    session = open_session(chosen)
    fill(tmp_path / "library", tmp_path / "documents", Encoder(session, chosen), TEXTS)
    with pytest.raises(IndexMismatch, match="--re-embed"):
        Retriever(*weights, tmp_path / "library", {})


def test_a_library_that_is_re_embedded_under_it_fails_the_chats_and_not_the_embeddings(
    retriever, variant, tmp_path
):
    chosen = variant("all-minilm-l6-v2", "int8")
    other = Encoder(open_session(chosen), chosen)
    ingest(
        tmp_path / "library", [], other, Settings(), prune=False, progress=lambda step: None, re_embed=True
    )
    chat, embedding = retriever.run([asking("reset"), item(EmbedTask(texts=("x",)), "embed")])
    assert isinstance(chat, IndexMismatch)
    assert decoder(EmbedAnswer)(embedding).count == 1


@pytest.mark.parametrize("value", [0, 1000, "many", True, 2.5])
def test_options_are_checked(weights, tmp_path, value):
    with pytest.raises(ConfigError, match="candidates"):
        Retriever(*weights, tmp_path, {"candidates": value})


def test_what_is_found_does_not_depend_on_the_company(retriever):
    (alone,) = retriever.run([asking("how do I reset it?")])
    first, _ = retriever.run([asking("how do I reset it?"), asking("when does the pump start? " * 20)])
    assert first == alone


def test_what_was_found_before_a_publish_is_not_kept_as_found_after_it(
    retriever, weights, tmp_path, monkeypatch
):
    """An ingest publishes while a search runs, which ends on the generation that it began on."""
    search = Generation.search
    question = "when does the pump start?"
    later = TEXTS["pump.md"].replace("closes", "opens")

    def overtaken(self, vectors, count):
        found = search(self, vectors, count)
        monkeypatch.setattr(Generation, "search", search)
        fill(tmp_path / "library", tmp_path / "documents", Encoder(*weights), {"pump.md": later})
        return found

    monkeypatch.setattr(Generation, "search", overtaken)
    answers = [next(retriever.run([asking(question)])) for _ in range(3)]
    texts = [passages(answer)[0].text for answer in answers]
    assert ["closes" in text for text in texts] == [True, False, False]
    retriever.clear_caches([])
    assert next(retriever.run([asking(question)])) == answers[1]


def test_a_question_that_cannot_be_embedded_fails_alone(retriever, monkeypatch):
    embed = retriever._encoder.embed_each

    def choosy(texts, kind):
        if "poison" in texts[0]:
            raise BackendError("the embedder gave a vector that is not finite")
        return embed(texts, kind)

    monkeypatch.setattr(retriever._encoder, "embed_each", choosy)
    first, bad, last = retriever.run([asking("reset it"), asking("poison"), asking("start the pump")])
    assert isinstance(bad, BackendError)
    assert [passages(answer)[0].title for answer in (first, last)] == ["Reset", "Pump"]
