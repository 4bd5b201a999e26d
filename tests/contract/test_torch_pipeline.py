"""The layer pipeline keeps the contract of a token session, and promises of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from edged_backends.torch_pipeline import TorchPipelineBackend
from transformers import LlamaForCausalLM, LogitsProcessorList, SequenceBiasLogitsProcessor
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from edged.backend import Sampling, Variant
from edged.errors import ConfigError
from edged.layers.share import Share
from edged.layers.weights.checkpoint import library_config, weights
from edged.testing.token_contract import TokenContract, generate

OPTIONS = {"max_sequences": 4, "context_tokens": 512, "devices": ["cpu", "cpu"]}


@pytest.fixture(scope="session")
def backend():
    return TorchPipelineBackend()


class TestTorchPipeline(TokenContract):
    @pytest.fixture(scope="class")
    @classmethod
    def variant(cls, variant: Callable[[str, str], Variant]) -> Variant:
        return variant("smollm2-135m-instruct", "q4_1")

    @pytest.fixture(scope="class")
    @classmethod
    def options(cls):
        return OPTIONS

    @pytest.fixture(scope="class")
    @classmethod
    def stopping_prompt(cls, session) -> list[int]:
        text = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
        return session.vocabulary.encode(text, special=True)


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.9, seed=11),
    Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, seed=3),
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=1.3, top_k=20, seed=8, logit_bias={260: 4.0, 28: -100.0, 30: 2.5}),
]


@pytest.fixture(scope="module")
def generator(variant: Callable[[str, str], Variant], backend: TorchPipelineBackend):
    options = OPTIONS | {"devices": ["cpu"], "max_sequences": 1}
    session = backend.open(variant("smollm2-135m-instruct", "q4_1"), backend.devices()[0], options)
    yield session
    session.close()


@pytest.fixture(scope="module")
def library(variant: Callable[[str, str], Variant]) -> Any:
    """The library's own class for one stream, with the same weights."""
    path = variant("smollm2-135m-instruct", "q4_1").path
    config = library_config(path)
    model = LlamaForCausalLM(config).eval()
    whole = Share(first=0, end=config.num_hidden_layers, embedding=True, head=True)
    model.load_state_dict(dict(weights(path, whole, "float32")))
    return model


def as_the_library_says(sampling: Sampling, prompt_tokens: int) -> dict[str, Any]:
    processors = LogitsProcessorList()
    if sampling.logit_bias:
        biases = {(token,): bias for token, bias in sampling.logit_bias.items()}
        processors.append(SequenceBiasLogitsProcessor(biases))
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty, prompt_tokens))
    drawn = sampling.temperature > 0
    asked = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    return {"logits_processor": processors, "do_sample": drawn, **(asked if drawn else {})}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_sampled_answer_is_the_one_of_the_library(generator, library, sampling):
    prompt = generator.vocabulary.encode("The sea is deep and the sky is", special=False)
    mine = generate(generator, prompt, 24, sampling).tokens
    torch.manual_seed(sampling.seed)
    found = library.generate(
        torch.tensor([prompt]),
        max_new_tokens=24,
        pad_token_id=2,
        **as_the_library_says(sampling, len(prompt)),
    )
    theirs = found[0, len(prompt) :].tolist()
    assert mine == theirs[: len(mine)]
    assert len(mine) == 24 or generator.vocabulary.ends(theirs[len(mine)])


def test_bias_and_penalties_of_presence_and_frequency_act(generator):
    prompt = generator.vocabulary.encode("The sea is deep and the sky is", special=False)
    plain = generate(generator, prompt, 24).tokens
    assert generate(generator, prompt, 3, Sampling(logit_bias={5: 100.0})).tokens == [5, 5, 5]
    fresh = generate(generator, prompt, 24, Sampling(presence_penalty=2.0, frequency_penalty=2.0)).tokens
    assert len(set(fresh)) > len(set(plain))


def test_an_unknown_option_is_refused_by_name(backend, variant):
    chosen = variant("smollm2-135m-instruct", "q4_1")
    with pytest.raises(ConfigError, match="micro_batchs"):
        backend.open(chosen, backend.devices()[0], {"micro_batchs": 2})


def test_a_context_longer_than_the_models_is_refused(backend, variant):
    chosen = variant("smollm2-135m-instruct", "q4_1")
    with pytest.raises(ConfigError, match="context_tokens = 99999 is more than the model's 8192"):
        backend.open(chosen, backend.devices()[0], {"context_tokens": 99999})
