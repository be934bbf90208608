"""The real engine with a tiny model: what it says must be what `generate` says, and it must let go of what it took."""

import asyncio
import time

import openai
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hfchat.errors import UserError
from hfchat.serving import transformers_engine
from hfchat.serving.engine import EngineError, Sampling
from hfchat.serving.sampler import draw
from hfchat.serving.transformers_engine import TransformersEngine

PROMPTS = ["Hi", "What is hfchat?", "🙂 or 🙁?", "日本語で答えて。", "the quick brown fox " * 5]
TOKENS = 40


def messages(text):
    return [{"role": "user", "content": text}]


def create(served, text, **fields):
    fields = {"max_tokens": TOKENS, "temperature": 0} | fields
    return served.openai.chat.completions.create(model="tiny-chat", messages=messages(text), **fields)


def generate(model, tokenizer, text, tokens=TOKENS):
    """The reference: transformers' own greedy search, one prompt at a time."""
    prompt = tokenizer.apply_chat_template(
        messages(text), add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    output = model.generate(prompt, do_sample=False, max_new_tokens=tokens)[0, prompt.shape[1] :]
    return tokenizer.decode(output, skip_special_tokens=True).rstrip("\ufffd")


def joined(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


@pytest.fixture(scope="module")
def expected(tiny_model, tiny_tokenizer):
    answers = {text: generate(tiny_model, tiny_tokenizer, text) for text in PROMPTS}
    assert len(set(answers.values())) == len(PROMPTS)
    return answers


@pytest.mark.parametrize("text", PROMPTS)
def test_greedy_equals_generate_and_streams_join_to_it(tiny_server, expected, text):
    whole = create(tiny_server, text)
    assert whole.choices[0].message.content == expected[text]
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == TOKENS
    assert joined(create(tiny_server, text, stream=True)) == expected[text]


def test_greedy_stays_greedy_beside_sampling(tiny_server, expected):
    async def all_of_them():
        async with tiny_server.async_openai() as client:

            async def one(text, temperature):
                answer = await client.chat.completions.create(
                    model="tiny-chat", messages=messages(text), max_tokens=TOKENS, temperature=temperature
                )
                return answer.choices[0].message.content

            greedy = asyncio.gather(*(one(text, 0) for text in PROMPTS))
            sampled = asyncio.gather(*(one(text, 1.5) for text in PROMPTS))
            return await greedy, await sampled

    greedy, sampled = asyncio.run(all_of_them())
    assert dict(zip(PROMPTS, greedy, strict=True)) == expected
    assert all(answer != expected[text] for text, answer in zip(PROMPTS, sampled, strict=True))


def test_a_seed_repeats_an_answer_whatever_runs_beside_it(tiny_server):
    def answer(client_text="Hi", **fields):
        return create(tiny_server, client_text, temperature=1, **fields).choices[0].message.content

    alone = answer(seed=7)

    async def crowd():
        async with tiny_server.async_openai() as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="tiny-chat", messages=messages("Hi"), max_tokens=TOKENS, temperature=1, seed=seed
                    )
                    for seed in (7, 8, 9, 7)
                )
            )
            return [answer.choices[0].message.content for answer in answers]

    first, second, third, again = asyncio.run(crowd())
    assert alone == first == again
    assert len({first, second, third}) == 3
    assert answer() != answer()


def test_a_tiny_nucleus_is_greedy(tiny_server, expected):
    answer = create(tiny_server, "Hi", temperature=1.5, top_p=0)
    assert answer.choices[0].message.content == expected["Hi"]


def test_a_stop_string_ends_the_generation(tiny_server, expected, eventually):
    stop = expected["Hi"][10:13]
    for stream in (False, True):
        answer = create(tiny_server, "Hi", stop=stop, stream=stream, max_tokens=400)
        text = joined(answer) if stream else answer.choices[0].message.content
        assert text == expected["Hi"][: expected["Hi"].index(stop)]
    eventually(lambda: not scheduler(tiny_server.engine).has_pending_requests(), 1)


def test_the_context_is_checked_before_it_is_computed(tiny_server):
    with pytest.raises(openai.BadRequestError, match=r"max_tokens: .* exceed the context of 512"):
        create(tiny_server, "Hi", max_tokens=512)
    with pytest.raises(openai.BadRequestError) as refused:
        create(tiny_server, "long " * 600)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"
    # the last token of the context can be used
    prompt = create(tiny_server, "Hi").usage.prompt_tokens
    assert create(tiny_server, "Hi", max_tokens=512 - prompt).usage.total_tokens <= 512


def scheduler(engine):
    return engine._manager.batch_processor.scheduler


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_the_generation(tiny_server, eventually, monkeypatch, stream):
    engine = tiny_server.engine
    processor = engine._manager.batch_processor
    step = processor._generation_step
    # slow enough that the whole answer would take many seconds
    monkeypatch.setattr(processor, "_generation_step", lambda model: (time.sleep(0.03), step(model)))
    if stream:
        with create(tiny_server, "Hi", stream=True, max_tokens=450) as answer:
            next(iter(answer))
    else:
        with pytest.raises(openai.APITimeoutError):
            create(tiny_server, "Hi", max_tokens=450, timeout=0.05)
    eventually(lambda: not scheduler(engine).has_pending_requests(), 1)
    assert engine._router.streams == {}
    assert tiny_server.http.get("/health").json()["running"] == 0


def test_an_idle_engine_sleeps(tiny_server):
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.2


def run(engine, work):
    async def body():
        await engine.start()
        try:
            return await work()
        finally:
            await engine.stop()

    return asyncio.run(body())


async def collect(engine, text, **fields):
    prompt = await engine.encode(messages(text))
    return [piece async for piece in engine.stream(prompt, Sampling(**({"max_tokens": TOKENS} | fields)))]


def test_end_of_turn_ends_an_answer(tiny_model, tiny_tokenizer, monkeypatch):
    prompt = tiny_tokenizer.apply_chat_template(messages("Hi"), add_generation_prompt=True, return_dict=False)
    tokens = tiny_model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=TOKENS)[0, len(prompt) :]
    end = int(tokens[7])
    length = tokens.tolist().index(end)
    monkeypatch.setattr(tiny_model.generation_config, "eos_token_id", [end])
    engine = TransformersEngine(tiny_model, tiny_tokenizer)
    pieces = run(engine, lambda: collect(engine, "Hi"))
    assert pieces[-1].finish_reason == "stop"
    assert sum(piece.tokens for piece in pieces) == length + 1
    text = "".join(piece.text for piece in pieces)
    assert text == tiny_tokenizer.decode(tokens[:length], skip_special_tokens=True).rstrip("\ufffd")


def test_the_models_own_sampling_is_the_default(tiny_model, tiny_tokenizer, monkeypatch):
    assert TransformersEngine(tiny_model, tiny_tokenizer).temperature == 0
    for name, value in {"do_sample": True, "temperature": 0.6, "top_p": 0.9}.items():
        monkeypatch.setattr(tiny_model.generation_config, name, value)
    engine = TransformersEngine(tiny_model, tiny_tokenizer)
    assert (engine.temperature, engine.top_p) == (0.6, 0.9)


def test_a_crash_fails_what_runs_and_what_comes(tiny_model, tiny_tokenizer, eventually):
    engine = TransformersEngine(tiny_model, tiny_tokenizer)

    def crash(model):
        raise RuntimeError("the accelerator is gone")

    async def work():
        assert engine.error is None
        running = [asyncio.ensure_future(collect(engine, text, max_tokens=450)) for text in PROMPTS]
        await asyncio.sleep(0.05)
        engine._manager.batch_processor._generation_step = crash
        results = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 5)
        assert all(isinstance(result, EngineError) and "accelerator" in str(result) for result in results)
        with pytest.raises(EngineError):
            await asyncio.wait_for(collect(engine, "Hi"), 5)
        assert engine.error is not None
        await asyncio.to_thread(eventually, lambda: "the accelerator is gone" in engine.error)

    run(engine, work)


def test_abort_ends_what_runs(tiny_model, tiny_tokenizer):
    engine = TransformersEngine(tiny_model, tiny_tokenizer)

    async def work():
        running = asyncio.ensure_future(collect(engine, "Hi", max_tokens=450))
        await asyncio.sleep(0.05)
        engine.abort("closing")
        for answer in (running, collect(engine, "Hi")):
            with pytest.raises(EngineError, match="closing"):
                await asyncio.wait_for(answer, 5)

    run(engine, work)


def test_the_cache_is_bounded_by_memory_and_need(tiny_model, tiny_tokenizer, monkeypatch):
    bytes_per_block = 2 * 2 * 2 * 8 * 4 * 256  # K and V, layers, heads, head size, float32, tokens
    for free, requests, context in [(2**40, 4, 512), (8 * bytes_per_block, 4, 512), (4 * bytes_per_block, 4, 256)]:
        monkeypatch.setattr(transformers_engine, "_free_memory", lambda device, free=free: free)
        assert TransformersEngine(tiny_model, tiny_tokenizer, requests).context_length == context
    monkeypatch.setattr(transformers_engine, "_free_memory", lambda device: 2**40)
    assert transformers_engine._cache_blocks(tiny_model, 4) == 10  # 4 x 512 tokens, and 15% to spare
    monkeypatch.setattr(transformers_engine, "_free_memory", lambda device: 0)
    with pytest.raises(UserError, match="memory"):
        TransformersEngine(tiny_model, tiny_tokenizer)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.5, 0.8, 0), (2.0, 0.9, 5), (1.3, 1.0, 3), (1.0, 0.0, 0)]
)
def test_draws_follow_the_distribution_of_transformers_warpers(temperature, top_p, top_k):
    torch.manual_seed(0)
    scores = torch.randn(1, 20) * 2
    warped = TemperatureLogitsWarper(temperature)(None, scores) if temperature != 1 else scores
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped)
    draws = 20_000
    uniform = (torch.arange(draws) + 0.5) / draws
    settings = [torch.full((draws,), float(value)) for value in (temperature, top_p, top_k)]
    tokens = draw(scores.expand(draws, -1), *settings, uniform)
    frequencies = tokens.bincount(minlength=20) / draws
    torch.testing.assert_close(frequencies, warped.softmax(-1)[0], atol=2e-4, rtol=0)
