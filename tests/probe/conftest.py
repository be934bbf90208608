"""A server that does everything right, with an engine that costs nothing, and a place to plant a fault in it."""

import asyncio
import contextlib
import json
import random
import re

import pytest

from hfchat.chat import CallPart, Chat
from hfchat.probe.suite import run
from hfchat.probe.target import reach
from hfchat.serving.engines.engine import EngineError, Logprob, Piece, PromptError, TokenLogprobs
from tests.serving.conftest import MODEL, ScriptedEngine, ScriptedPrompt, running

WORDS = ["one ", "two ", "trois ", "vier ", "fünf ", "六 ", "семь ", "👩‍👩‍👧 "]


class Talker(ScriptedEngine):
    """Says words by chance, as many as it may; the same ones for the same seed, and for temperature 0.

    It calls functions where it must, and writes JSON where that is asked for.
    """

    async def encode(self, chat):
        for field, schema in _schemas(chat):
            if not _is_sound(schema):
                raise PromptError("this schema cannot be honoured", field)
        if chat.template_options:
            raise PromptError("the template has no such option", "chat_template_kwargs")
        return ScriptedPrompt(sum(len(message["content"]) for message in chat.messages), chat)

    async def stream(self, prompt, sampling):
        chance = random.Random(sampling.seed if sampling.temperature else 0)
        chat = prompt.source if isinstance(prompt.source, Chat) else Chat([])
        if chat.reasoning_effort is not None:
            yield Piece("", 1, reasoning="Hm. ")
        if chat.must_call:
            async for piece in _call(chat, chance, sampling.max_tokens):
                yield piece
            return
        for left, word in _words(chat, chance, sampling):
            if self.error:
                raise EngineError(self.error)
            ended = "length" if left <= 0 else None
            logprobs = () if sampling.logprobs is None else (self._of(word, sampling.logprobs),)
            yield Piece(word, 1, "stop" if word.endswith("}") and chat.answer_schema else ended, logprobs)
            await asyncio.sleep(0.002)

    def _of(self, word, count):
        return TokenLogprobs(*[Logprob(word, -1.0, word.encode())], (Logprob(word, -1.0, word.encode()),) * count)


def _schemas(chat):
    """What binds an answer, and the field that asks for it."""
    for function in chat.functions:
        yield "tools", {"type": "object"} | (function.parameters or {})
    if chat.response_format is not None:
        yield "response_format", chat.answer_schema


def _is_sound(schema):
    try:
        re.compile(schema.get("pattern", ""))
    except re.error:
        return False
    small = len(json.dumps(schema)) < 1000 and not re.search(r"\d{3}", schema.get("pattern", ""))
    known = schema.get("type", "object") in ("object", "string", "integer")
    return small and known and isinstance(schema.get("minimum", 0), int)


async def _call(chat, chance, max_tokens):
    """Calls the likeliest function, with arguments that its schema allows, some characters a token."""
    function = chance.choice(chat.functions)
    arguments = json.dumps(_value(function.parameters, chance))
    yield Piece("", 1, calls=(CallPart(0, function.name),))
    parts = [arguments[start : start + 5] for start in range(0, len(arguments), 5)]
    for part in parts:
        yield Piece("", 1, "tool_calls" if part is parts[-1] else None, calls=(CallPart(0, None, part),))
        await asyncio.sleep(0.002)


def _words(chat, chance, sampling):
    """The parts of an answer, each with the number of tokens that may follow it."""
    lefts = reversed(range(sampling.max_tokens))
    if chat.answer_schema is not None:
        text = json.dumps(_value(chat.answer_schema, chance))
        yield from zip(lefts, [text[start : start + 5] for start in range(0, len(text), 5)], strict=False)
        return
    for left in lefts:
        forced = [WORDS[token % len(WORDS)] for token, bias in sampling.logit_bias.items() if bias > 0]
        banned = [WORDS[token % len(WORDS)] for token, bias in sampling.logit_bias.items() if bias < 0]
        yield left, chance.choice(forced or [word for word in WORDS if word not in banned] or WORDS)


def _value(schema, chance):
    """A value that a schema of the checks allows."""
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if schema["type"] == "array":
        return [_value(schema["items"], chance)]
    if schema["type"] == "object":
        return {name: _value(property, chance) for name, property in schema.get("properties", {}).items()}
    return {"integer": 3, "boolean": True, "string": "a"}[schema["type"]]


class Faults:
    """The application, with a fault in front of it: a function of the application and of what ASGI calls it with."""

    def __init__(self, app):
        self.app = app
        self.fault = None

    async def __call__(self, scope, receive, send):
        if self.fault is None or scope["type"] != "http":
            return await self.app(scope, receive, send)
        await self.fault(self.app, scope, receive, send)


class Probed:
    """A server, and what the checks see of it."""

    def __init__(self, served):
        self.url = f"{served.url}/v1"
        self.served = served
        config = served.server.config
        self.faults = config.loaded_app = Faults(config.loaded_app)  # uvicorn looks it up for every connection

    def see(self, chosen, fault=None, patience=1.0, process=None, api_key=None):
        """The results of these checks, one after another, by the checks' names."""

        async def see():
            async with reach(self.url, MODEL, api_key, patience, process) as target:
                self.faults.fault = fault
                return {check.name: await run(target, check) for check in chosen}

        try:
            return asyncio.run(see())
        finally:
            self.faults.fault = None


@contextlib.contextmanager
def probed(**settings):
    with running(Talker(context_length=2000), **settings) as served:
        yield Probed(served)


@pytest.fixture(scope="module")
def server():
    with probed() as server:
        yield server
