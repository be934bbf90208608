"""The sampler alone: no row, however strange, raises or changes the one beside it; draws are those of `generate`."""

import copy
import dataclasses
import math
import random
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hfchat.errors import UserError
from hfchat.serving.engines.continuous_batching import PerRequestSampler
from hfchat.serving.engines.engine import Sampling
from hfchat.serving.engines.model_sampling import ModelSampling
from hfchat.serving.engines.sampler import Draws, draw, draw_among_likely

VOCABULARY = 20
NUMBERS = [
    0.0,
    1e-46,
    1e-39,
    1e-38,
    1e-36,
    1e-9,
    0.3,
    1.0,
    2.0,
    1e30,
    1e39,
    1e300,
    math.inf,
    -math.inf,
    math.nan,
    -1.0,
]
LOGITS = [0.0, 1.0, -1.0, 1e-40, 3e38, -3e38, math.inf, -math.inf, math.nan, 88.0, 1e30]


def state(draws, prompt=(1, 2), generated=()):
    draws.prompt_tokens = len(prompt)
    return SimpleNamespace(
        logit_processor_kwargs={"draws": draws}, initial_tokens=list(prompt), generated_tokens=list(generated)
    )


def step(sampler, logits, states):
    """The tokens that one step of the manager would choose."""
    batch = [SimpleNamespace(state=one, has_new_token=True) for one in states]
    arguments = torch.zeros(sampler.tensors_required, len(states) + 3, dtype=torch.int32)
    arguments = sampler.prepare_tensor_args(batch, arguments)
    tokens = sampler(None, logits.clone(), arguments).argmax(-1).tolist()
    sampler.collect()
    return tokens


def normal_draws():
    return Draws(
        Sampling(
            5,
            temperature=0.8,
            top_p=0.9,
            top_k=10,
            seed=3,
            presence_penalty=0.5,
            frequency_penalty=0.1,
            repetition_penalty=1.1,
            logit_bias={4: 0.5},
            logprobs=2,
        )
    )


def strange_draws(generator):
    def number():
        return generator.choice(NUMBERS)

    sampling = Sampling(
        max_tokens=generator.choice([1, 10**30]),
        temperature=number(),
        top_p=number(),
        top_k=generator.choice([None, 0, 1, 10**6, 2**31 - 1]),
        min_p=number(),
        repetition_penalty=number(),
        logit_bias={generator.randrange(VOCABULARY): number()},
        seed=generator.choice([None, 0, -1, 2**63 - 1, -(2**63), 10**40]),
        presence_penalty=number(),
        frequency_penalty=number(),
        logprobs=generator.choice([None, -1, 0, 20, 10**6]),
    )
    return Draws(sampling)


def test_nothing_beside_it_changes_a_row():
    """Random extremes of every field and of the logits, beside a row whose draw must be what it is alone."""
    generator = random.Random(0)
    logits = torch.tensor([generator.uniform(-3, 3) for _ in range(VOCABULARY)])
    expected = step(
        PerRequestSampler(1, VOCABULARY, torch.device("cpu")), logits[None], [state(normal_draws(), (), (3, 3, 5))]
    )
    sampler = PerRequestSampler(8, VOCABULARY, torch.device("cpu"))  # one for all: nothing may be left behind
    for _ in range(300):
        normal = normal_draws()
        beside = [strange_draws(generator) for _ in range(4)]
        states = [state(one, generated=generator.choices(range(VOCABULARY), k=5)) for one in beside]
        rows = [torch.tensor(generator.choices(LOGITS, k=VOCABULARY)) for _ in beside]
        place = generator.randrange(5)
        states.insert(place, state(normal, (), (3, 3, 5)))
        rows.insert(place, logits)
        tokens = step(sampler, torch.stack(rows), states)
        assert tokens[place] == expected[0]
        assert all(0 <= token < VOCABULARY for token in tokens)
        assert normal.failure is None
        assert normal.scored[0].chosen[0] == expected[0]
        assert len(normal.scored[0].top) == 2
        for one, row in zip(beside, [row for index, row in enumerate(rows) if index != place], strict=True):
            if row.isnan().any():
                assert one.failure is not None


def test_what_raises_for_one_request_ends_it_alone(monkeypatch):
    broken, normal = normal_draws(), normal_draws()
    monkeypatch.setattr(broken, "penalties", lambda tokens: 1 / 0)
    logits = torch.linspace(-1, 1, VOCABULARY)
    sampler = PerRequestSampler(4, VOCABULARY, torch.device("cpu"))
    alone = step(PerRequestSampler(1, VOCABULARY, torch.device("cpu")), logits[None], [state(normal_draws())])
    tokens = step(sampler, logits.repeat(2, 1), [state(broken), state(normal)])
    assert tokens[1:] == alone
    assert "division" in broken.failure
    assert normal.failure is None


@pytest.mark.parametrize("temperature", [1e-46, 1e-45, 1e-42, 1e-39, 1e-38, 1e-36, 1e-9])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0], [1e30, -5.0, 0.0]])
    draws = [Draws(Sampling(1, temperature=temperature, top_p=1.0, seed=seed)) for seed in range(2)]
    sampler = PerRequestSampler(2, 3, torch.device("cpu"))
    assert step(sampler, logits, [state(one) for one in draws]) == [1, 0]


def test_seeds_that_differ_draw_differently():
    """Python's own generator takes -1 for 1."""
    draws = [Draws(Sampling(1, temperature=1.0, top_p=1.0, seed=seed)) for seed in (-1, 0, 1, 2**63 - 1, -(2**63))]
    assert len({one.row()[3] for one in draws}) == len(draws)


def test_a_request_that_is_set_back_keeps_its_draws():
    draws = normal_draws()
    assert copy.deepcopy({"draws": draws})["draws"] is draws


GOLDEN = torch.tensor([2.0, 1.5, 1.0, 1.0, 0.5, 0.2, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"temperature": 0.7, "top_p": 0.8},
        {"top_k": 3},  # of which the third is as likely as the fourth
        {"top_k": 0, "min_p": 0.2},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.15, "repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
    ],
)
def test_draws_follow_the_models_own_config_as_generate_does(config):
    """The warpers of transformers, in the order in which `generate` applies them, on one set of logits."""
    configured = ModelSampling.of(GenerationConfig(do_sample=True, **config), "model")
    seen = [0, 7, 7, 10]
    warpers = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.get("repetition_penalty", 1.0))])
    warpers.append(TemperatureLogitsWarper(config.get("temperature", 1.0)))
    if config.get("top_k", 50):
        warpers.append(TopKLogitsWarper(config.get("top_k", 50)))
    warpers.append(TopPLogitsWarper(config.get("top_p", 1.0)))
    warpers.append(MinPLogitsWarper(config.get("min_p", 0.0)))
    expected = warpers(torch.tensor([seen]), GOLDEN[None].clone()).softmax(-1)[0]
    count = 20_000
    sampler = PerRequestSampler(1, len(GOLDEN), torch.device("cpu"))
    draws = Draws(Sampling(1, seed=0, **dataclasses.asdict(configured)))
    penalised = GOLDEN.clone()
    if configured.repetition_penalty != 1:
        penalised = RepetitionPenaltyLogitsProcessor(configured.repetition_penalty)(
            torch.tensor([seen]), GOLDEN[None].clone()
        )[0]
    uniform = (torch.arange(count) + 0.5) / count
    settings = [torch.full((count,), float(v)) for v in (configured.temperature, configured.top_p, configured.top_k)]
    min_p = torch.full((count,), configured.min_p)
    tokens = draw(penalised.expand(count, -1), *settings, uniform, min_p)
    torch.testing.assert_close(tokens.bincount(minlength=len(GOLDEN)) / count, expected, atol=2e-4, rtol=0)
    # and the sampler, which does the penalty itself, has the same tokens to choose from
    chosen = {step(sampler, GOLDEN[None], [state(draws, seen[:2], seen[2:])])[0] for _ in range(300)}
    assert all(expected[token] > 0 for token in chosen)
    assert int(expected.argmax()) in chosen


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 0.9999999, 1.0])
@pytest.mark.parametrize("top_k", [0.0, 1.0, 40.0, 2.0**31])
@pytest.mark.parametrize("min_p", [0.0, 1e-6, 0.05])
def test_a_draw_among_the_likely_is_the_draw_of_all(top_p, top_k, min_p):
    """Logits as a model in bfloat16 has them, many of them equal; flat ones too, so that unlikely tokens are drawn."""
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.1, 1.0, 30.0):
        for spread in (0.3, 2.0, 6.0):
            scores = (spread * torch.randn(2000, generator=generator)).bfloat16().float()
            for uniform in [*torch.rand(4, generator=generator).tolist(), 0.0, 0.9999]:
                settings = torch.tensor([temperature, top_p, top_k, uniform, min_p])
                expected = draw(scores[None], *settings.unsqueeze(-1))
                assert draw_among_likely(scores, settings) == expected, (temperature, spread, uniform)


def test_a_seed_draws_the_same_tokens_as_ever():
    logits = torch.linspace(-4, 4, 500).sin().mul(5).bfloat16().float()
    drawn = []
    for fields in ({}, {"top_k": 50}, {"min_p": 0.1}):
        draws = Draws(Sampling(1, temperature=0.9, top_p=0.95, seed=7, **fields))
        sampler = PerRequestSampler(1, 500, torch.device("cpu"))
        drawn.append([step(sampler, logits[None], [state(draws)])[0] for _ in range(6)])
    assert drawn == [[335, 339, 373, 347, 326, 360], [342, 349, 361, 346, 335, 354], [335, 339, 373, 347, 367, 360]]


def test_top_k_is_50_where_a_config_that_samples_does_not_say():
    assert ModelSampling.of(GenerationConfig(do_sample=True), "m").top_k == 50
    assert ModelSampling.of(GenerationConfig(do_sample=True, top_k=0), "m").top_k == 0
    assert ModelSampling.of(GenerationConfig(do_sample=False, top_k=7), "m") == ModelSampling()
    logits = torch.zeros(1, 100)
    logits[0, :50] = 1.0
    tokens = draw(
        logits.expand(1000, -1), *(torch.full((1000,), v) for v in (1.0, 1.0, 50.0)), torch.arange(1000) / 1000
    )
    assert set(tokens.tolist()) == set(range(50))


def test_a_repetition_penalty_is_for_greedy_answers_too():
    """For the tokens of the prompt and the answer, by CTRL's formula: positive logits divided, others multiplied."""
    logits = torch.tensor([[2.0, 1.9, -0.1, 1.5]])
    sampler = PerRequestSampler(2, 4, torch.device("cpu"))
    draws = Draws(Sampling(9, temperature=0.0, repetition_penalty=2.0))
    assert step(sampler, logits, [state(draws, prompt=[0])]) == [1]
    assert step(sampler, logits, [state(draws, prompt=[0], generated=[1])]) == [3]
    assert step(sampler, logits, [state(draws, prompt=[0], generated=[1, 3])]) == [0]
    other, without = Draws(Sampling(9, temperature=0.0, repetition_penalty=2.0)), Draws(Sampling(9, temperature=0.0))
    states = [state(other, prompt=[3]), state(without, prompt=[0])]
    assert step(sampler, logits.repeat(2, 1), states) == [0, 0]
    assert step(sampler, logits, [state(without, prompt=[0])]) == [0]  # nothing is left behind


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("typical_p", 0.9),
        ("eta_cutoff", 1e-3),
        ("epsilon_cutoff", 1e-3),
        ("top_h", 0.5),
        ("num_beams", 4),
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[5]]),
        ("suppress_tokens", [1]),
        ("min_new_tokens", 5),
        ("guidance_scale", 1.5),
        ("stop_strings", ["x"]),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_the_fields_name(field, value):
    config = GenerationConfig(do_sample=True)
    setattr(config, field, value)
    with pytest.raises(UserError, match=f"my-model: .*{field}"):
        ModelSampling.of(config, "my-model")


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "much", 10**40])
def test_numbers_out_of_their_range_are_refused(field, value):
    config = GenerationConfig(do_sample=True)
    setattr(config, field, value)
    with pytest.raises(UserError, match=f"my-model: .*{field}"):
        ModelSampling.of(config, "my-model")


def test_sampling_fields_of_a_config_that_does_not_sample_change_nothing():
    config = GenerationConfig(do_sample=False)
    config.typical_p, config.temperature = 0.9, 0.5
    assert ModelSampling.of(config, "my-model") == ModelSampling()
