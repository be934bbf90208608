"""Answers of a form that was asked for: JSON that cannot be invalid, tokens that are wanted or not, reasoning apart.

`response_format` and `logit_bias` of https://platform.openai.com/docs/api-reference/chat/create,
https://platform.openai.com/docs/guides/structured-outputs and https://docs.vllm.ai/en/latest/features/reasoning_outputs.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from hfchat.chat import Json
from hfchat.probe.registry import check
from hfchat.probe.sse import parse_events
from hfchat.probe.target import Target, body_of, finish_reason_of, refusal, refused_by_choice, summary, text_of
from hfchat.probe.verdicts import FailedError, SkippedError

_QUESTION = [{"role": "user", "content": "How will the weather be in Rome? Answer in JSON."}]
_TOKENS = 96
_SEEDS = (1, 2, 3)
_CITIES, _SKIES = ["Paris", "Rome", "Bern"], ["sun", "rain", "snow"]
_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": _CITIES},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "windy": {"type": "boolean"},
        "sky": {"type": "array", "items": {"type": "string", "enum": _SKIES}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "days", "windy", "sky"],
    "additionalProperties": False,
}
_QUICK_S = 1.0  # in which a schema is refused that cannot be honoured
_ANSWER_S = 15.0
_TOKEN = 300  # a token of text in every vocabulary: the first 256 are often bytes, or control tokens


def _fits(value: Any) -> bool:
    """Whether a value is valid by `_SCHEMA`; written out, so that no library is trusted."""
    return (
        isinstance(value, dict)
        and value.keys() == {"city", "days", "windy", "sky"}
        and value["city"] in _CITIES
        and type(value["days"]) is int
        and 1 <= value["days"] <= 9
        and isinstance(value["windy"], bool)
        and isinstance(value["sky"], list)
        and 1 <= len(value["sky"]) <= 2
        and all(sky in _SKIES for sky in value["sky"])
    )


def _format(schema: object, **fields: object) -> dict[str, object]:
    """The field that asks for JSON by a schema."""
    return {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": schema, **fields}}


async def _answer(target: Target, **fields: object) -> Any:
    """An answer by `_SCHEMA`. Skips the check if the server says that it has no such thing."""
    asked = {"messages": _QUESTION, "response_format": _format(_SCHEMA), "max_tokens": _TOKENS}
    response = await target.chat(**{**asked, **fields})
    refused_by_choice(response, "response_format")
    return body_of(response)


def _is_valid(text: str, reason: str) -> str:
    if reason == "length" and text.startswith("{"):
        raise SkippedError(f"the answer was cut after {_TOKENS} tokens, as it says: {text[:80]!r}")
    try:
        fits = _fits(json.loads(text))
    except ValueError:
        raise FailedError(f"not JSON: {text[:80]!r}, {reason}") from None
    if not fits:
        raise FailedError(f"by its schema not valid: {text[:120]}")
    return text


@check({"the likeliest": (None,), "by chance": _SEEDS})
async def an_answer_is_valid_by_its_schema(target: Target, seeds: tuple[int | None, ...]) -> str:
    """`json_schema`: a token that the schema does not allow cannot be drawn."""
    seen = ""
    for seed in seeds:
        drawn = {} if seed is None else {"temperature": 1, "seed": seed}
        answer = await _answer(target, **drawn)
        seen = _is_valid(text_of(answer), finish_reason_of(answer))
    return seen


@check()
async def a_streamed_answer_is_valid_by_its_schema(target: Target) -> str:
    """The parts join to valid JSON."""
    await _answer(target, max_tokens=1)
    asked = {"messages": _QUESTION, "response_format": _format(_SCHEMA), "max_tokens": _TOKENS}
    stream = await target.stream(**asked)
    return _is_valid(stream.text(), "".join(stream.finish_reasons()))


@check()
async def an_answer_is_a_json_object(target: Target) -> str:
    """`json_object`: an object, or the beginning of one and `finish_reason` "length"."""
    answer = await _answer(target, response_format={"type": "json_object"})
    text, reason = text_of(answer), finish_reason_of(answer)
    if reason == "length":
        if not text.lstrip().startswith("{"):
            raise FailedError(f"not the beginning of an object: {text[:80]!r}")
        return f"cut, as it says: {text[:80]!r}"
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise FailedError(f"not an object: {text[:80]!r}, {reason}")
    return text[:80]


@check()
async def json_that_was_cut_says_so(target: Target) -> str:
    """`max_tokens` in the middle of it: `finish_reason` "length", as the guide warns."""
    answer = await _answer(target, max_tokens=4)
    if finish_reason_of(answer) != "length":
        raise FailedError(f"{text_of(answer)!r}, {finish_reason_of(answer)}")
    return f"{text_of(answer)!r}, length"


_WRONG: Mapping[str, object] = {
    "an unknown type": {"type": "poem"},
    "no type": {"json_schema": {"name": "weather", "schema": _SCHEMA}},
    "no schema for its type": {"type": "json_schema"},
    "a schema of no type": _format({"type": "weather"}),
    "a bound that is a text": _format({"type": "integer", "minimum": "low"}),
    "a regular expression that is none": _format({"type": "string", "pattern": "(["}),
    "a schema that is a list": _format([1]),
    "a name with a space": _format(_SCHEMA, name="the weather"),
}


@check(_WRONG)
async def a_wrong_format_is_refused(target: Target, response_format: object) -> str:
    """With a 4xx that names the field, before a token is spent: also for a stream it is a status, and no event."""
    body = target.chat_body(messages=_QUESTION, response_format=response_format, stream=True)
    return refusal(await target.client.post("chat/completions", json=body), "response_format")


# Written by hand: a library would not nest so deep.
_DEEP = '{"type": "object", "properties": {"a": ' * 10_000 + '{"type": "null"}' + "}}" * 10_000
_BLOWS_UP = {
    "nested 10,000 deep": _DEEP,
    "an alternation of 30,000": json.dumps({"anyOf": [{"const": f"word {i}"} for i in range(30_000)]}),
    "an expression of many states": json.dumps({"type": "string", "pattern": "^(([ab]{1,900}c){1,900}d){1,900}$"}),
    "an expression that counts": json.dumps({"type": "string", "pattern": "^([ab]*a[ab]{2000})$"}),
}


@check(_BLOWS_UP)
async def a_schema_that_blows_up_holds_nobody_up(target: Target, schema: str) -> str:
    """It is refused with a 4xx within a second, or honoured; what is answered beside it comes to its end.

    A compiler of grammars can take hours and all memory for a few bytes (CVE-2025-57809 of XGrammar).
    """
    marked = json.dumps(target.chat_body(messages=_QUESTION, response_format=_format("SCHEMA")))
    body = marked.replace('"SCHEMA"', schema).encode()
    async with target.streaming(max_tokens=_TOKENS) as beside:
        parts = beside.aiter_bytes()
        received = await anext(parts)  # it has begun
        began = time.monotonic()
        async with target.within(_ANSWER_S, "no answer within {limit}"):
            headers = {"Content-Type": "application/json"}
            response = await target.client.post("chat/completions", content=body, headers=headers)
        seconds = time.monotonic() - began
        received += b"".join([part async for part in parts])
    *events, last = parse_events(received)
    if last != "[DONE]" or any("error" in json.loads(event) for event in events):
        raise FailedError(f"the answer beside it ended with {last[:80]!r}")
    if response.status_code == 200:
        return f"honoured: {text_of(body_of(response))[:40]!r}"
    if not 400 <= response.status_code < 500:
        raise FailedError(f"4xx expected, not {summary(response)}")
    if seconds > target.limit(_QUICK_S):
        raise FailedError(f"refused only after {seconds:.1f} s")
    return f"{summary(response)}, after {seconds:.2f} s"


async def _biased(target: Target, bias: int, tokens: int) -> str:
    response = await target.chat(logit_bias={str(_TOKEN): bias}, max_tokens=tokens)
    refused_by_choice(response, "logit_bias")
    return text_of(body_of(response)) or ""


@check()
async def a_bias_of_100_chooses_a_token(target: Target) -> str:
    """`logit_bias`: "values like -100 or 100 should result in a ban or exclusive selection of the relevant token"."""
    token, four = await _biased(target, 100, 1), await _biased(target, 100, 4)
    if not token.strip():
        raise SkippedError(f"token {_TOKEN} has no text of its own")
    if four.replace(token.strip(), "").strip():
        raise FailedError(f"the token is {token!r}, but four of them are {four!r}")
    return f"{token!r}, then {four!r}"


@check()
async def a_bias_of_minus_100_forbids_a_token(target: Target) -> str:
    """The other half of it: what was chosen above does not come."""
    token, without = await _biased(target, 100, 1), await _biased(target, -100, 1)
    if not token.strip():
        raise SkippedError(f"token {_TOKEN} has no text of its own")
    if token == without:
        raise FailedError(f"{without!r} all the same")
    return f"{without!r}, not {token!r}"


@check()
async def an_option_that_the_template_does_not_know_is_no_crash(target: Target) -> str:
    """`chat_template_kwargs`, as vLLM has them: refused by name, or, as by vLLM itself, without an effect."""
    response = await target.chat(chat_template_kwargs={"hfchat_probe_unknown": True})
    if response.status_code == 200:
        return "ignored: a misspelt option goes unnoticed"
    return refusal(response, "chat_template_kwargs")


@check()
async def reasoning_is_apart_from_the_answer(target: Target) -> str:
    """`reasoning_content`, or `reasoning` as vLLM calls it now, and none of its marks in `content`; also streamed."""
    asked: dict[str, object] = {"max_tokens": _TOKENS, "reasoning_effort": "low"}
    if (await target.chat(**{**asked, "max_tokens": 1})).status_code != 200:
        del asked["reasoning_effort"]  # many models have no such switch
    message = (await target.answer(**asked))["choices"][0]["message"]
    reasoning, content = _reasoning(message), message.get("content") or ""
    if "<think>" in content or "</think>" in content:
        raise FailedError(f"the reasoning is in the answer: {content[:80]!r}")
    if not reasoning:
        raise SkippedError("the model does not reason")
    deltas = [choice["delta"] for choice in (await target.stream(**asked)).choices()]
    streamed = "".join(map(_reasoning, deltas)), "".join(delta.get("content") or "" for delta in deltas)
    if streamed != (reasoning, content):
        raise FailedError(f"streamed {streamed!r}, but unstreamed {(reasoning, content)!r}")
    return f"{len(reasoning)} characters of reasoning, {len(content)} of the answer"


def _reasoning(message: Json) -> str:
    return message.get("reasoning_content") or message.get("reasoning") or ""
