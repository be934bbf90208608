"""Bound answers of the real engine with a tiny model, whose tokens are noise: the mask alone makes them valid."""

import asyncio
import json

import jsonschema
import openai
import pytest
from transformers.generation.continuous_batching.requests import RequestState

from hfchat.chat import Chat
from hfchat.serving.engines import sampler, transformers_engine
from hfchat.serving.engines.engine import EngineError, Sampling
from hfchat.serving.engines.transformers_engine import TokenPrompt, TransformersEngine
from tests.conftest import random_llama

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["fox", "dog"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 9999}},
    "required": ["kind", "legs"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
MESSAGES = [{"role": "user", "content": "the quick brown fox"}]
TOOLS = [{"type": "function", "function": {"name": "jump", "parameters": SCHEMA}}]


def create(served, **fields):
    fields = {"max_tokens": 100, "temperature": 1} | fields
    return served.openai.chat.completions.create(model="tiny-chat", messages=MESSAGES, **fields)


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_an_answer_by_a_schema_is_valid(tiny_server, temperature):
    answer = create(tiny_server, response_format=FORMAT, temperature=temperature, n=3, seed=1)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_one_that_is_too_long_says_so(tiny_server):
    short = create(tiny_server, response_format=FORMAT, max_tokens=5).choices[0]
    assert short.finish_reason == "length"
    assert '{"kind": "fox", "legs":'.startswith(short.message.content[:7])


def test_streams_bound_and_free_run_side_by_side(tiny_server):
    async def all_of_them():
        async with tiny_server.async_openai() as client:

            async def one(number, **fields):
                answer = await client.chat.completions.create(
                    model="tiny-chat", messages=MESSAGES, seed=number, max_tokens=60, **fields
                )
                return answer.choices[0].message.content

            free = [one(number, temperature=number % 2) for number in range(4)]
            bound = [one(number, response_format=FORMAT, temperature=1.5) for number in range(4)]
            alone = [await one(number, temperature=number % 2) for number in range(4)]
            return alone, await asyncio.gather(*free), await asyncio.gather(*bound)

    alone, free, bound = asyncio.run(all_of_them())
    assert free == alone
    for text in bound:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_a_call_that_must_be_made_is_made(tiny_tokenizer):
    model = random_llama(tiny_tokenizer, max_position_embeddings=1024)  # tools take a long prompt

    async def work():
        engine = TransformersEngine(model, tiny_tokenizer, max_concurrent_requests=1)
        await engine.start()
        try:
            prompt = await engine.encode(Chat(MESSAGES, TOOLS, "required", parallel_tool_calls=False))
            return [piece async for piece in engine.stream(prompt, Sampling(200, temperature=1.0, seed=0))]
        finally:
            await engine.stop()

    pieces = asyncio.run(work())
    assert pieces[-1].finish_reason == "tool_calls"
    assert "".join(piece.text for piece in pieces) == ""
    calls = [call for piece in pieces for call in piece.calls]
    assert {call.name for call in calls} - {None} == {"jump"}
    jsonschema.validate(json.loads("".join(call.arguments for call in calls)), SCHEMA)


def test_logprobs_stay_those_of_the_models_own_distribution(tiny_server):
    """What the mask leaves is unlikely by itself; the likeliest tokens are those that it forbids."""
    answer = create(tiny_server, response_format=FORMAT, logprobs=True, top_logprobs=1, temperature=0).choices[0]
    scored = answer.logprobs.content
    assert "".join(token.token for token in scored) == answer.message.content
    assert any(token.logprob < token.top_logprobs[0].logprob for token in scored)
    free = create(tiny_server, logprobs=True, top_logprobs=1, temperature=0).choices[0].logprobs.content
    assert scored[0].top_logprobs[0].token == free[0].token


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
         "response_format.json_schema.schema", "'not'"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}],
          "tool_choice": "required"}, "tools[0].function.parameters", "circular"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "99999"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_refused_before_a_token(tiny_server, fields, param, why, stream):
    with pytest.raises(openai.BadRequestError, match=why) as refused:
        create(tiny_server, **fields, stream=stream)
    assert refused.value.param == param


def test_a_bias_is_added_to_a_tokens_logit(tiny_server, tiny_tokenizer):
    (token,) = tiny_tokenizer.encode("fox", add_special_tokens=False)[-1:]
    text = tiny_tokenizer.decode([token])
    always = create(tiny_server, logit_bias={str(token): 100}, max_tokens=5, temperature=0).choices[0]
    assert always.message.content == text * 5
    free = create(tiny_server, max_tokens=1, temperature=0, logprobs=True).choices[0]
    first = tiny_tokenizer.encode(free.message.content, add_special_tokens=False)[0]
    assert create(tiny_server, max_tokens=1, temperature=0, logit_bias={str(first): -100}).choices[0] != free


def test_top_k_min_p_and_the_repetition_penalty_are_a_requests_own(tiny_server):
    greedy = create(tiny_server, temperature=0, max_tokens=20).choices[0].message.content
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert create(tiny_server, temperature=2, max_tokens=20, extra_body=extra).choices[0].message.content == greedy
    penalised = create(tiny_server, temperature=0, max_tokens=20, extra_body={"repetition_penalty": 9.0})
    assert penalised.choices[0].message.content != greedy


async def whole(engine, prompt, sampling):
    return "".join([piece.text async for piece in engine.stream(prompt, sampling)])


def test_a_bound_answer_that_is_set_back_goes_on_as_if_it_was_not(tiny_model, tiny_tokenizer, monkeypatch):
    """The matcher must know each token once, though the answer is read again behind its prompt."""
    set_back = []
    prepare = RequestState.create_equivalent_initial_request

    def counting(state):
        set_back.append(state)
        return prepare(state)

    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", counting)
    monkeypatch.setattr(transformers_engine, "_cache_blocks", lambda *_: 3)  # each of the two needs two in the end
    schema = {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 85, "maxItems": 90}
    chat = Chat(
        [{"role": "user", "content": "the quick brown fox"}],
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )

    async def work():
        engine = TransformersEngine(tiny_model, tiny_tokenizer, max_concurrent_requests=4)
        await engine.start()
        try:
            prompt = await engine.encode(chat)
            answers = [whole(engine, prompt, Sampling(450, temperature=1.0, seed=number)) for number in range(2)]
            return await asyncio.gather(*answers)
        finally:
            await engine.stop()

    for text in asyncio.run(work()):
        jsonschema.validate(json.loads(text), schema)
    assert set_back


def test_a_grammar_that_fails_ends_its_answer_alone(tiny_model, tiny_tokenizer, monkeypatch):
    """A token that may not come, as no sampler would choose it: the request fails, and the one beside it goes on."""

    async def work():
        engine = TransformersEngine(tiny_model, tiny_tokenizer, max_concurrent_requests=4)
        await engine.start()
        try:
            free = await engine.encode(Chat(MESSAGES))
            expected = await whole(engine, free, Sampling(20, temperature=0.0))
            bound = TokenPrompt(free.ids, '%llguidance {}\nstart: "a" "b" "c"')
            forbidding = sampler.allowed_next
            monkeypatch.setattr(sampler, "allowed_next", lambda matchers: [~mask for mask in forbidding(matchers)])
            failing = asyncio.create_task(whole(engine, bound, Sampling(20, temperature=0.0)))
            beside = await whole(engine, free, Sampling(20, temperature=0.0))
            with pytest.raises(EngineError):
                await failing
            monkeypatch.undo()
            assert beside == expected
            assert await whole(engine, bound, Sampling(20, temperature=0.0)) == "abc"
        finally:
            await engine.stop()

    asyncio.run(work())
