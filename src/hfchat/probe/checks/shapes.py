"""Models, answers and errors in OpenAI's shapes, as its own client reads them.

The shapes are the models of the `openai` package, which are made from https://github.com/openai/openai-openapi.
"""

import json
import time
from collections.abc import Mapping

import httpx
import pydantic
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from hfchat.probe.registry import check
from hfchat.probe.sse import parse_events
from hfchat.probe.target import Target, body_of, finish_reason_of, media_type, refusal, summary, text_of
from hfchat.probe.verdicts import FailedError, SkippedError

_CLOCKS_S = 300  # by which the server's clock may differ from this machine's
_FINISH_REASONS = {"stop", "length", "content_filter", "tool_calls"}


def check_shape(model: type[pydantic.BaseModel], body: object) -> None:
    """Fail the check if OpenAI's own client could not read a body."""
    try:
        model.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FailedError(f"{model.__name__} has no valid {where}: {first['msg']}") from None


def _is_json(response: httpx.Response) -> None:
    if media_type(response) != "application/json":
        raise FailedError(f"its Content-Type is {media_type(response)}, not application/json")


def _usage(usage: Mapping[str, int]) -> str:
    prompt, completion, total = (usage[f"{name}_tokens"] for name in ("prompt", "completion", "total"))
    if prompt < 1 or completion < 1 or prompt + completion != total:
        raise FailedError(f"the usage does not add up: {prompt} + {completion} = {total}")
    return f"{prompt} + {completion} tokens"


@check()
async def the_models_are_listed(target: Target) -> str:
    """`GET /models`: programs choose from this list (https://platform.openai.com/docs/api-reference/models)."""
    response = await target.client.get("models")
    body = body_of(response)
    _is_json(response)
    if body.get("object") != "list" or not body.get("data"):
        raise FailedError(f"not a list of models: {summary(response)}")
    for model in body["data"]:
        check_shape(Model, model)
    return ", ".join(model["id"] for model in body["data"][:3])


@check()
async def a_model_is_described(target: Target) -> str:
    """`GET /models/{model}`, by the name that the list has (https://platform.openai.com/docs/api-reference/models)."""
    body = body_of(await target.client.get(f"models/{target.model}"))
    check_shape(Model, body)
    if body["id"] != target.model:
        raise FailedError(f"it describes {body['id']}")
    return body["id"]


@check()
async def a_chat_is_answered(target: Target) -> str:
    """`POST /chat/completions`: its shape, role, time, `finish_reason`, and a usage that adds up.

    https://platform.openai.com/docs/api-reference/chat/object
    """
    response = await target.chat()
    body = body_of(response)
    _is_json(response)
    check_shape(ChatCompletion, body)
    if not body["id"]:
        raise FailedError("the answer has no id")
    if abs(body["created"] - time.time()) > _CLOCKS_S:
        raise FailedError(f"it was created at {body['created']}, which is not now in seconds since 1970")
    if finish_reason_of(body) not in _FINISH_REASONS:
        raise FailedError(f"finish_reason {finish_reason_of(body)}")
    return f"{_usage(body['usage'])}, {finish_reason_of(body)}"


@check()
async def every_answer_has_an_id_of_its_own(target: Target) -> str:
    """Feedback, logs and bills refer to an answer by its id."""
    ids = [(await target.answer(max_tokens=1))["id"] for _ in range(3)]
    if len(set(ids)) < len(ids):
        raise FailedError(f"the same id again: {ids[-1]}")
    return ids[0]


_CONVERSATIONS = {
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "several turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who are you?"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
}


@check(_CONVERSATIONS)
async def a_conversation_is_answered(target: Target, messages: list[Mapping[str, object]]) -> str:
    """The messages are as OpenAI's clients send them (https://platform.openai.com/docs/api-reference/chat/create)."""
    body = await target.answer(messages=messages)
    return f"{_usage(body['usage'])}: {text_of(body)[:40]!r}"


@check()
async def a_prompt_is_completed(target: Target) -> str:
    """`POST /completions`, where there is one (https://platform.openai.com/docs/api-reference/completions)."""
    answer = body_of(await target.complete())
    check_shape(Completion, answer)
    return f"{_usage(answer['usage'])}: {answer['choices'][0]['text']!r}"


@check()
async def an_unknown_model_is_404(target: Target) -> str:
    """No other model may answer in place of one that is not in the list.

    https://platform.openai.com/docs/guides/error-codes
    """
    name = "hfchat-probe-has-no-such-model"
    refusal(await target.client.get(f"models/{name}"), name, (404,))
    return refusal(await target.chat(model=name), name, (404,))


_INVALID = {
    "messages missing": ({"messages": None}, "messages"),
    "messages empty": ({"messages": []}, "messages"),
    "messages a text": ({"messages": "Hi"}, "messages"),
    "content missing": ({"messages": [{"role": "user"}]}, "content"),
    "content null": ({"messages": [{"role": "user", "content": None}]}, "content"),
    "content a number": ({"messages": [{"role": "user", "content": 7}]}, "content"),
    "role unknown": ({"messages": [{"role": "wizard", "content": "Hi"}]}, "role"),
    "role missing": ({"messages": [{"content": "Hi"}]}, "role"),
    "model missing": ({"model": None}, "model"),
    "model a number": ({"model": 7}, "model"),
    "stream a text": ({"stream": "perhaps"}, "stream"),
}


@check(_INVALID)
async def an_invalid_request_is_refused(target: Target, case: tuple[Mapping[str, object], str]) -> str:
    """With a 4xx in the shape of an error, whose message or `param` names the field.

    https://platform.openai.com/docs/guides/error-codes
    """
    fields, named = case
    return refusal(await target.chat(**fields), named)


@check()
async def an_unknown_path_is_404(target: Target) -> str:
    """In the shape of an error, because clients show its message (RFC 9110, 15.5.5)."""
    return refusal(await target.client.get("no-such-path"), statuses=(404,))


@check()
async def another_method_is_405(target: Target) -> str:
    """With `Allow`, which this status must have (RFC 9110, 15.5.6)."""
    response = await target.client.get("chat/completions")
    seen = refusal(response, statuses=(405,))
    if "POST" not in response.headers.get("allow", ""):
        raise FailedError(f"{seen}, but no `Allow: POST`")
    return seen


@check({"no key": None, "a wrong key": "hfchat-probe"})
async def a_stranger_is_401(target: Target, key: str | None) -> str:
    """Nobody gets an answer without the key; a 401 must have `WWW-Authenticate` (RFC 9110, 11.6.1)."""
    if target.api_key is None:
        raise SkippedError("the server wants no API key")
    headers = {"Authorization": f"Bearer {key}" if key else ""}
    response = await target.client.post("chat/completions", json=target.chat_body(), headers=headers)
    seen = refusal(response, statuses=(401,))
    if "www-authenticate" not in response.headers:
        raise FailedError(f"{seen}, but no `WWW-Authenticate`")
    return seen


async def _respond(target: Target, **fields: object) -> httpx.Response:
    """The response to a question of OpenAI's newer API. Skips the check if the server has no such route."""
    body = {"model": target.model, "input": "Count to 9.", "max_output_tokens": 16, "temperature": 0} | fields
    response = await target.client.post("responses", json=body)
    if response.status_code == 404 and "resp_" not in response.text:  # it may be the earlier response that is unknown
        raise SkippedError("there is no /responses")
    return response


def _response_text(body: object) -> str:
    check_shape(Response, body)
    return Response.model_validate(body).output_text


@check()
async def a_response_is_given(target: Target) -> str:
    """`POST /responses`, where there is one (https://platform.openai.com/docs/api-reference/responses/object)."""
    body = body_of(await _respond(target))
    text, usage = _response_text(body), body["usage"]
    if usage["input_tokens"] + usage["output_tokens"] != usage["total_tokens"]:
        raise FailedError(f"the usage does not add up: {usage}")
    if body["status"] not in ("completed", "incomplete"):
        raise FailedError(f"status {body['status']}")
    return f"{text[:40]!r}, {body['status']}"


@check()
async def a_response_is_streamed(target: Target) -> str:
    """Its events are counted, the first is `response.created`, the last has all that the deltas had.

    https://platform.openai.com/docs/api-reference/responses-streaming
    """
    expected = _response_text(body_of(await _respond(target)))
    response = await _respond(target, stream=True)
    events = [json.loads(data) for data in parse_events(response.content) if data != "[DONE]"]
    first, last = events[0], events[-1]
    if first["type"] != "response.created" or last["type"] not in ("response.completed", "response.incomplete"):
        raise FailedError(f"the first event is {first['type']}, the last {last['type']}")
    if [event["sequence_number"] for event in events] != [*range(len(events))]:
        raise FailedError("the events are not counted from 0 on")
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    if not deltas == _response_text(last["response"]) == expected:
        raise FailedError(f"the deltas are {deltas!r}, the last event has another text, or unstreamed {expected!r}")
    return f"{len(events)} events, {len(deltas)} characters"


@check()
async def an_unknown_earlier_response_is_refused(target: Target) -> str:
    """`previous_response_id`: a conversation that is not kept must not be forgotten in silence."""
    response = await _respond(target, previous_response_id="resp_hfchat_probe")
    return refusal(response, "previous_response_id" if response.status_code == 400 else None)
