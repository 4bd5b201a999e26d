"""The reranker stage with the real cross-encoder."""

import pytest

from edged import plugins
from edged.errors import BadRequest, ConfigError, ProtocolError
from edged.messages import Ceiling, ChatTask, Message, Passage, RerankAnswer, RerankTask, decoder, encode
from edged.stages.contract import Item
from edged.stages.reranker import Reranker, best_passages

QUESTION = "how do I reset the router to factory settings?"
RIGHT = "To restore factory settings, hold the reset button of the router for ten seconds."
DECOYS = ("The pump starts when the float switch closes.", "A red lamp means an empty battery.")


@pytest.fixture(scope="module")
def reranker(variant):
    chosen = variant("ms-marco-minilm-l12-v2", "int8")
    backend = plugins.load("onnx")
    device = next(device for device in backend.devices() if device.id == "cpu")
    stage = Reranker(backend.open(chosen, device, {"threads": 1}), chosen, {"keep": 2})
    yield stage
    stage.close()


def item(task, operation="chat") -> Item:
    return Item(1, operation, memoryview(task if isinstance(task, bytes) else encode(task)))


def chat(*texts: str, **fields) -> Item:
    found = tuple(
        Passage(id=number, text=text, source="s", scores={"dense": 0.5}) for number, text in enumerate(texts)
    )
    return item(ChatTask(messages=(Message("user", QUESTION),), grounded=True, passages=found, **fields))


def passages(payload):
    return decoder(ChatTask)(payload).passages


def test_the_passage_that_answers_comes_first_with_its_score(reranker):
    (answer,) = reranker.run([chat(*DECOYS, RIGHT)])
    kept = passages(answer)
    assert len(kept) == 2
    assert kept[0].text == RIGHT
    assert kept[0].scores["rerank"] > 0 > kept[1].scores["rerank"]
    assert kept[0].scores["dense"] == 0.5


def test_it_looks_up_between_two_pairs_and_heeds_its_lease_there(variant):
    chosen = variant("ms-marco-minilm-l12-v2", "int8")
    backend = plugins.load("onnx")
    device = next(device for device in backend.devices() if device.id == "cpu")
    stage = Reranker(backend.open(chosen, device, {"threads": 2}), chosen, {"keep": 2})
    looks: list[int] = []

    def look() -> None:
        looks.append(len(looks))
        stage.set_cores(1)

    stage.attend(look)
    assert stage.lanes == 2
    assert len(passages(next(iter(stage.run([chat(*DECOYS, RIGHT)]))))) == 2
    assert len(looks) == len(DECOYS) + 1, "one lane: no pair but its own thread's"
    stage.close()


def test_similarity_counts_beside_the_logit(reranker):
    near, far = (
        Passage(id=number, text=text, source="s", scores={"dense": cosine})
        for number, text, cosine in ((1, DECOYS[0], 0.9), (2, DECOYS[1], 0.1))
    )
    tied = best_passages([far, near], [3.0, 3.0], 1)
    assert [passage.id for passage in tied] == [1]


def test_a_task_says_how_many_are_kept(reranker):
    (answer,) = reranker.run([chat(RIGHT, *DECOYS, keep=1)])
    assert [passage.text for passage in passages(answer)] == [RIGHT]


@pytest.mark.parametrize(("asked", "most", "count"), [(2, 1, 1), (0, 1, 1), (1, 2, 1), (2, 0, 2)])
def test_no_more_than_the_ceiling_whatever_is_asked_for_or_configured(reranker, asked, most, count):
    (answer,) = reranker.run([chat(RIGHT, *DECOYS, keep=asked, ceiling=Ceiling(keep=most))])
    assert len(passages(answer)) == count


def test_a_batch_scores_every_item_by_itself(reranker):
    task = RerankTask(query=QUESTION, documents=(*DECOYS, RIGHT))
    first, second, third = reranker.run([chat(RIGHT), item(task, "rerank"), chat()])
    assert len(passages(first)) == 1
    scores = decoder(RerankAnswer)(second).scores
    assert len(scores) == 3
    assert max(scores) == scores[2]
    assert passages(third) == ()


def test_tokens_are_counted_per_item(reranker):
    short, long = RerankTask(query="a", documents=("b",)), RerankTask(query="a", documents=("b " * 50,))
    answers = [
        decoder(RerankAnswer)(payload)
        for payload in reranker.run([item(short, "rerank"), item(long, "rerank")])
    ]
    assert [answer.tokens for answer in answers] == [5, 54]


def test_texts_beyond_the_context_are_truncated(reranker):
    task = RerankTask(query="router " * 5000, documents=("reset " * 5000, ""))
    (answer,) = reranker.run([item(task, "rerank")])
    assert decoder(RerankAnswer)(answer).tokens <= 2 * 512


def test_a_bad_item_fails_alone(reranker):
    answers = [*reranker.run([item(b"\xc1"), chat(RIGHT), item(b"", "embed")])]
    assert isinstance(answers[0], ProtocolError)
    assert passages(answers[1])[0].text == RIGHT
    assert isinstance(answers[2], BadRequest)


def test_an_ungrounded_chat_passes_through_unchanged(reranker):
    task = ChatTask(messages=(Message("user", "hello"),))
    assert [*reranker.run([item(task)])] == [encode(task)]


def test_no_documents_is_an_empty_answer(reranker):
    (answer,) = reranker.run([item(RerankTask(query="x", documents=()), "rerank")])
    assert decoder(RerankAnswer)(answer).scores == ()


def test_options_are_checked(reranker):
    with pytest.raises(ConfigError, match="keep"):
        Reranker(reranker._session, reranker._encoder.variant, {"keep": 0})


def test_scores_do_not_depend_on_the_company(reranker):
    """The int8 model shares one scale per run: a long stranger in the batch would change the scores."""
    task = RerankTask(query="how do I reset the router?", documents=("Hold the button for 10 s.", "Wait."))
    stranger = RerankTask(query="pumps", documents=("The pump runs for five minutes. " * 30,))
    (alone,) = reranker.run([item(task, "rerank")])
    first, _ = reranker.run([item(task, "rerank"), item(stranger, "rerank")])
    assert first == alone


def test_scores_do_not_depend_on_how_many_cores_there_are(reranker, variant):
    chosen = variant("ms-marco-minilm-l12-v2", "int8")
    backend = plugins.load("onnx")
    device = next(device for device in backend.devices() if device.id == "cpu")
    stage = Reranker(backend.open(chosen, device, {"threads": 2}), chosen, {})
    task = RerankTask(query=QUESTION, documents=(*DECOYS, RIGHT, "The pump runs for five minutes. " * 30))
    (one,) = reranker.run([item(task, "rerank")])
    assert [*stage.run([item(task, "rerank")])] == [one]
    stage.clear_caches(())
    stage.set_cores(1)
    assert [*stage.run([item(task, "rerank")])] == [one]
    stage.close()
