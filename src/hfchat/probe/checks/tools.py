"""Tools: the model calls a function when it must, with arguments that fit, and nothing about it is ignored.

https://platform.openai.com/docs/guides/function-calling, and `tools`, `tool_choice` and `parallel_tool_calls` of
https://platform.openai.com/docs/api-reference/chat/create. A server without tools says so with a 4xx.
"""

import json
from collections.abc import Mapping
from itertools import chain
from typing import Any

from hfchat.chat import Json
from hfchat.probe.registry import check
from hfchat.probe.target import Target, body_of, finish_reason_of, refusal, refused_by_choice
from hfchat.probe.verdicts import FailedError, SkippedError

_CITIES, _UNITS = ["Paris", "Rome", "Bern"], ["celsius", "fahrenheit"]
_QUESTION = [{"role": "user", "content": "What is the weather like in Rome?"}]
_SEEDS = (1, 2, 3)
_TOKENS = 256


def _tool(name: str, **properties: object) -> Json:
    """A tool with `strict`: it wants all of its arguments, and no others."""
    parameters = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": True}}


WEATHER = _tool(
    "get_weather",
    city={"type": "string", "enum": _CITIES},
    unit={"type": "string", "enum": _UNITS},
    hours={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
)
ALARM = _tool("set_alarm", loud={"type": "boolean"}, day={"type": "string", "enum": ["today", "tomorrow"]})
_TOOLS = [WEATHER, ALARM]


def _fits(name: str, arguments: Any) -> bool:
    """Whether arguments are valid by the schema of their function; written out, so that no library is trusted."""
    if name == "set_alarm":
        return (
            isinstance(arguments, dict)
            and arguments.keys() == {"loud", "day"}
            and isinstance(arguments["loud"], bool)
            and arguments["day"] in ("today", "tomorrow")
        )
    return (
        name == "get_weather"
        and isinstance(arguments, dict)
        and arguments.keys() == {"city", "unit", "hours"}
        and arguments["city"] in _CITIES
        and arguments["unit"] in _UNITS
        and isinstance(arguments["hours"], list)
        and len(arguments["hours"]) <= 2
        and all(type(hour) is int and 0 <= hour <= 9 for hour in arguments["hours"])
    )


def _asked(**fields: object) -> dict[str, object]:
    """A request that must be answered with one call."""
    fixed = {"messages": _QUESTION, "tools": _TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    return {**fixed, "max_tokens": _TOKENS, **fields}


async def _called(target: Target, **fields: object) -> Any:
    """The answer to such a request. Skips the check if the server says that it has no such thing."""
    response = await target.chat(**_asked(**fields))
    refused_by_choice(response, "tool")
    return body_of(response)


async def _greedy(target: Target) -> Any:
    return await _called(target)


def _calls(answer: Any) -> list[Any]:
    return answer["choices"][0]["message"].get("tool_calls") or []


def _one_call(answer: Any) -> tuple[str, str]:
    """The name and the arguments of the only call."""
    calls = _calls(answer)
    text = answer["choices"][0]["message"].get("content")
    if not calls and not text and finish_reason_of(answer) == "length":
        raise SkippedError(f"the answer was cut after {_TOKENS} tokens, before its call was whole")
    if len(calls) != 1:
        raise FailedError(f"{len(calls)} calls, and finish_reason {finish_reason_of(answer)}")
    return calls[0]["function"]["name"], calls[0]["function"]["arguments"]


def _is_valid(name: str, arguments: str) -> str:
    try:
        fits = _fits(name, json.loads(arguments))
    except ValueError:
        raise FailedError(f"{name}: the arguments are not JSON: {arguments[:80]}") from None
    if not fits:
        raise FailedError(f"{name}: by its schema these arguments are not valid: {arguments[:80]}")
    return f"{name} {arguments}"


@check()
async def tools_may_be_left_alone(target: Target) -> str:
    """`tool_choice: auto` is the default: a text or calls of functions that there are, and a `finish_reason` that says
    which.
    """
    response = await target.chat(messages=_QUESTION, tools=_TOOLS, max_tokens=32)
    refused_by_choice(response, "tool")
    answer = body_of(response)
    names, reason = [call["function"]["name"] for call in _calls(answer)], finish_reason_of(answer)
    if not set(names) <= {"get_weather", "set_alarm"}:
        raise FailedError(f"functions that there are not: {names}")
    if (reason == "tool_calls") > bool(names) or (reason == "stop" and names):
        raise FailedError(f"{len(names)} calls, and finish_reason {reason}")
    return f"{names}, {reason}" if names else f"a text, {reason}"


@check()
async def a_required_call_is_made(target: Target) -> str:
    """`tool_choice: required`: exactly one call, as `parallel_tool_calls` is false, of a function that there is."""
    name, arguments = _one_call(await target.once(_greedy))
    if name not in ("get_weather", "set_alarm"):
        raise FailedError(f"there is no function {name}")
    return f"{name} {arguments}"


@check()
async def a_call_has_its_shape(target: Target) -> str:
    """`type`, an `id` of its own, arguments in a string, and `finish_reason` "tool_calls".

    https://platform.openai.com/docs/api-reference/chat/object
    """
    first, second = await target.once(_greedy), await _called(target)
    _one_call(first)
    _one_call(second)
    call = _calls(first)[0]
    if call.get("type") != "function" or not isinstance(call["function"]["arguments"], str):
        raise FailedError(f"not the shape of a call: {json.dumps(call)[:120]}")
    ids = [call.get("id") for call in _calls(first) + _calls(second)]
    if not all(isinstance(id, str) and id for id in ids) or len(set(ids)) < len(ids):
        raise FailedError(f"the calls of two answers have the ids {ids}")
    if finish_reason_of(first) != "tool_calls":
        raise FailedError(f"finish_reason {finish_reason_of(first)}")
    return f"id {ids[0]}, tool_calls"


@check({"the first": "get_weather", "the second": "set_alarm"})
async def a_call_by_name_is_of_that_function(target: Target, name: str) -> str:
    """`tool_choice` with a name: a call of that function and of no other. OpenAI's own `finish_reason` is then
    "stop".
    """
    answer = await _called(target, tool_choice={"type": "function", "function": {"name": name}})
    called, arguments = _one_call(answer)
    if called != name or finish_reason_of(answer) not in ("tool_calls", "stop"):
        raise FailedError(f"{called}, and finish_reason {finish_reason_of(answer)}")
    return f"{called} {arguments}"


@check({"the likeliest": (None,), "by chance": _SEEDS})
async def strict_arguments_are_valid(target: Target, seeds: tuple[int | None, ...]) -> str:
    """`strict`: JSON that the function's schema allows, whatever is drawn.

    https://platform.openai.com/docs/guides/structured-outputs
    """
    seen = ""
    for seed in seeds:
        drawn = {} if seed is None else {"temperature": 1, "seed": seed}
        seen = _is_valid(*_one_call(await _called(target, **drawn)))
    return seen


@check()
async def no_call_is_made_where_none_is_wanted(target: Target) -> str:
    """`tool_choice: none`: the tools may be known, and none is called."""
    answer = await _called(target, tool_choice="none", max_tokens=16)
    if _calls(answer) or finish_reason_of(answer) == "tool_calls":
        raise FailedError(f"{len(_calls(answer))} calls, and finish_reason {finish_reason_of(answer)}")
    return f"no calls, {finish_reason_of(answer)}"


@check()
async def without_parallel_calls_there_is_at_most_one(target: Target) -> str:
    """`parallel_tool_calls: false`, also by chance. Or it is refused by name."""
    counts = []
    for seed in _SEEDS:
        response = await target.chat(**_asked(temperature=1, seed=seed))
        if response.status_code != 200:
            return refusal(response, "tool")
        counts.append(len(_calls(body_of(response))))
    if max(counts) > 1:
        raise FailedError(f"{counts} calls")
    return f"{counts} calls"


@check()
async def a_streamed_call_is_the_unstreamed_one(target: Target) -> str:
    """Deltas of a call: the first has index, id, type and name, and its arguments join to the whole.

    `accumulate_delta` of OpenAI's client joins strings, and finds a call again by its `index`.
    """
    expected = _one_call(await target.once(_greedy))
    stream = await target.stream(**_asked())
    deltas = [choice["delta"].get("tool_calls") or [] for choice in stream.choices()]
    parts = list(chain.from_iterable(deltas))
    if not parts or any(part.get("index") != 0 for part in parts):
        raise FailedError(f"parts of calls with the indexes {[part.get('index') for part in parts]}")
    first, *others = parts
    if not first.get("id") or first.get("type") != "function" or not first["function"].get("name"):
        raise FailedError(f"the first part lacks id, type or name: {json.dumps(first)[:120]}")
    if any(part.get("id") or part["function"].get("name") for part in others):
        raise FailedError("id or name come again, so that a client has them twice")
    arguments = "".join(part["function"].get("arguments") or "" for part in parts)
    if (first["function"]["name"], arguments) != expected:
        raise FailedError(f"{first['function']['name']} {arguments}, but unstreamed {' '.join(expected)}")
    if stream.finish_reasons() != ["tool_calls"]:
        raise FailedError(f"the finish reasons {stream.finish_reasons()}")
    return f"{len(parts)} parts, {len(arguments)} characters"


def _with_result(result: str, **call: object) -> list[Json]:
    """A conversation in which a function was called."""
    function = {"name": "get_weather", "arguments": '{"city": "Rome", "unit": "celsius", "hours": [1]}'}
    called = {"id": "call_1", "type": "function", "function": function} | call
    message = {"role": "assistant", "content": None, "tool_calls": [called]}
    return [*_QUESTION, message, {"role": "tool", "tool_call_id": "call_1", "content": result}]


@check()
async def the_result_of_a_call_is_read(target: Target) -> str:
    """Messages with `tool_calls` and of the role `tool` are part of the prompt: a longer result is a longer prompt."""
    lengths = []
    for result in ("18 degrees", "18 degrees " * 20):
        response = await target.chat(messages=_with_result(result), tools=_TOOLS, max_tokens=8)
        refused_by_choice(response, "tool")
        lengths.append(body_of(response)["usage"]["prompt_tokens"])
    if lengths[0] >= lengths[1]:
        raise FailedError(f"prompts of {lengths} tokens: what the function returned is not in them")
    return f"{lengths[0]} and {lengths[1]} tokens"


def _parameters(**parameters: object) -> Json:
    return {"tools": [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]}


_WRONG: Mapping[str, Mapping[str, object]] = {
    "a choice that is no tool": {"tools": _TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}},
    "a choice without tools": {"tool_choice": "required"},
    "an unknown kind of choice": {"tools": _TOOLS, "tool_choice": "maybe"},
    "two tools of one name": {"tools": [WEATHER, WEATHER]},
    "no list": {"tools": "get_weather"},
    "a name with a space": {"tools": [{"type": "function", "function": {"name": "get weather"}}]},
    "a schema of no type": {**_parameters(type="weather"), "tool_choice": "required"},
    "a schema that is no object": {**_parameters(type="array"), "tool_choice": "required"},
    "a result of nothing": {"tools": _TOOLS, "messages": [*_QUESTION, {"role": "tool", "content": "18 degrees"}]},
    "a call without arguments": {
        "tools": _TOOLS,
        "messages": _with_result("18 degrees", function={"name": "get_weather"}),
    },
}


@check(_WRONG)
async def wrong_tools_are_refused(target: Target, fields: Mapping[str, object]) -> str:
    """With a 4xx that names the field, before a token is spent: also for a stream it is a status, and no event."""
    body = target.chat_body(**{"messages": _QUESTION, **fields}, stream=True)
    return refusal(await target.client.post("chat/completions", json=body), "tool")
