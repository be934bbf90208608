"""Prompts of several API keys in an engine that would read them whole."""

import asyncio

from hfchat.engines.dialect import TokenRequest
from hfchat.serving.engines.reading import ReadingInParts


def read_all(*prompts):
    """What the engine is asked to read: the key and the tokens so far, of prompts of so many tokens by key."""
    asked = []

    async def one(reading, owner, tokens):
        async def read(request):
            assert (request.max_tokens, request.grammar) == (0, None)  # there is nothing to compile one for
            assert list(request.prompt) == list(range(len(request.prompt)))
            asked.append((owner, len(request.prompt)))
            await asyncio.sleep(0)

        with reading.asked_by(owner):
            await reading.read(TokenRequest(range(tokens), 5, grammar="%llguidance {}\nstart: 'a'"), owner, read)

    async def body():
        reading = ReadingInParts()
        await asyncio.wait_for(asyncio.gather(*(one(reading, *prompt) for prompt in prompts)), 10)

    asyncio.run(body())
    return asked


def test_all_but_the_last_part_is_read_before_the_answer():
    assert read_all(("alice", 200)) == [("alice", 64), ("alice", 128), ("alice", 192)]


def test_a_short_prompt_and_prompts_without_keys_are_left_to_the_engine():
    assert read_all(("alice", 64)) == []
    assert read_all((None, 1000), (None, 50)) == []


def test_another_key_does_not_wait_until_all_prompts_of_a_flood_are_read():
    asked = read_all(*[("flood", 1000)] * 4, ("small", 130))
    parts = [number for number, (owner, _) in enumerate(asked) if owner == "small"]
    assert len(parts) == 2
    assert parts[-1] < 6  # of the 60 parts of the flood
    assert len(asked) == 62
