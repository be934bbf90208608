"""Faults that are planted in front of an application, and the checks that have to find each."""

import asyncio
import contextlib
import json
import re
from dataclasses import dataclass


def asked(change):
    """A server that understands requests otherwise: `change` gets the body's object, and may return another one."""

    async def fault(app, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
            parsed = json.loads(body)
            body = json.dumps(change(parsed) or parsed).encode()
        headers = [
            (name, value) for name, value in scope["headers"] if name not in (b"content-length", b"content-type")
        ]
        headers += [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def changed_receive():
            return whole.pop() if whole else await receive()

        await app(
            scope | {"headers": headers if scope["method"] == "POST" else scope["headers"]}, changed_receive, send
        )

    return fault


def without(*fields):
    """A server that ignores these fields."""

    def ignore(body):
        for name in fields:
            body.pop(name, None)

    return asked(ignore)


@dataclass
class Answered:
    """A whole response, to be changed."""

    path: str
    status: int
    headers: dict[str, str]
    text: str


def answered(change):
    """A server that answers otherwise."""

    async def fault(app, scope, receive, send):
        response = Answered(scope["path"], 0, {}, "")
        body = b""

        async def keep(message):
            nonlocal body
            if message["type"] == "http.response.start":
                response.status = message["status"]
                response.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            body += message.get("body", b"")

        await app(scope, receive, keep)
        response.text = body.decode()
        change(response)
        body = response.text.encode(errors="surrogateescape")
        response.headers.pop("content-length", None)
        headers = [(name.encode(), value.encode()) for name, value in response.headers.items()]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return fault


def replaced(pattern, text, count=0):
    """A server whose answers have `text` where they should have what fits `pattern`."""

    def change(response):
        response.text = re.sub(pattern, text, response.text, count=count)

    return answered(change)


def header(name, value):
    """A server that sets another header, or none if `value` is None."""

    def change(response):
        response.headers.pop(name, None)
        if value is not None:
            response.headers[name] = value

    return answered(change)


def status(old, new):
    """A server with another status, and so another body."""

    def change(response):
        if response.status == old:
            response.status = new

    return answered(change)


def events(change):
    """A server that sends other events: `change` gets their data, and returns what to send."""

    def change_events(response):
        if "event-stream" in response.headers.get("content-type", ""):
            data = change([event.removeprefix("data: ") for event in response.text.split("\n\n")[:-1]])
            response.text = "".join(f"data: {event}\n\n" for event in data)

    return answered(change_events)


async def unaware(app, scope, receive, send):
    """A server that does not notice that its client has gone."""
    read = False

    async def deaf():
        nonlocal read
        if read:
            await asyncio.sleep(3600)
        message = await receive()
        read = not message.get("more_body", False)
        return message

    with contextlib.suppress(OSError):
        await app(scope, deaf, send)


def cut_prompt(body):
    body["messages"] = [{"role": "user", "content": "cut"}]


def cut_max_tokens(body):
    body["max_tokens"] = min(body["max_tokens"], 3)


def one_more_token(body):
    for name in {"max_tokens", "max_completion_tokens"} & set(body):
        body[name] += 1


def renamed(body):
    body["model"] = "tiny-chat"


def late_stop(body):
    body["stop"] = body["stop"][:1]


def html(response):
    if response.status == 404:
        response.text = "<h1>Not found</h1>"


def stars(response):
    response.headers["access-control-allow-origin"] = "*"


async def late(app, scope, receive, send):
    """A server that sends its streams when they are whole."""
    messages = []

    async def keep(message):
        messages.append(message)

    await app(scope, receive, keep)
    await asyncio.sleep(1.1)
    for message in messages:
        await send(message)


class Fragile:
    """A server whose answers end all at once when one of them is asked for with a strange value."""

    def __init__(self):
        self.broken = 0

    async def __call__(self, app, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        with contextlib.suppress(ValueError):
            fields = json.loads(body)
            strange = fields.get("top_p", 1) < 0.01 or 0 < fields.get("temperature", 1) < 0.01
            self.broken += strange or "seed" in fields or bool(fields.get("presence_penalty"))
        whole = [{"type": "http.request", "body": body, "more_body": False}]
        before = self.broken

        async def whole_receive():
            return whole.pop() if whole else await receive()

        async def fragile_send(message):
            if self.broken != before and b"data: " in message.get("body", b""):
                message = message | {"body": b'data: {"error": {"message": "probabilities are nan"}}\n\n'}
            await send(message)

        await app(scope, whole_receive, fragile_send)


async def sluggish(app, scope, receive, send):
    """A server that thinks about every request for long."""
    await asyncio.sleep(1.1)
    await app(scope, receive, send)


FAULTS = {
    "one batch for all": (Fragile(), ["an extreme value ends nobody elses answer"]),
    "an empty list of models": (replaced(r'"data":\[.*\]', '"data":[]'), ["the models are listed"]),
    "models without a description": (replaced(r'"id":"tiny-chat"', '"id":"x"'), ["a model is described"]),
    "plain text": (header("content-type", "text/plain"), ["a chat is answered", "the models are listed"]),
    "a usage that does not add up": (
        replaced(r'"total_tokens":\d+', '"total_tokens":1'),
        ["a chat is answered", "a conversation is answered: system", "a prompt is completed", "the usage comes last"],
    ),
    "another shape of responses": (
        replaced('"output":', '"outputs":'),
        ["a response is given", "a response is streamed"],
    ),
    "no end of a response": (events(lambda data: data[:-1]), ["a response is streamed"]),
    "forgets earlier responses": (without("previous_response_id"), ["an unknown earlier response is refused"]),
    "milliseconds": (replaced(r'"created":(\d+)', r'"created":\g<1>000'), ["a chat is answered"]),
    "a reason of its own": (replaced('"length"', '"eos"'), ["a chat is answered"]),
    "no choices": (replaced('"choices":', '"choice":'), ["a chat is answered", "a prompt is completed"]),
    "one id": (replaced(r"chatcmpl-\w+", "chatcmpl-1"), ["every answer has an id of its own"]),
    "no system": (
        asked(lambda body: body | {"messages": body["messages"] if len(body["messages"]) == 1 else []}),
        ["a conversation is answered: system", "a conversation is answered: several turns"],
    ),
    "only texts": (
        asked(
            lambda body: (
                body | {"messages": [{"role": "user", "content": str(body["messages"][0]["content"])[:0] or 1}]}
            )
        ),
        ["a conversation is answered: parts"],
    ),
    "any name of a model": (asked(renamed), ["an unknown model is 404"]),
    "crashes at invalid requests": (status(400, 500), ["an invalid request is refused"]),
    "accepts invalid requests": (
        status(400, 200),
        [
            "wrong tools are refused",
            "a wrong format is refused",
            "an invalid request is refused",
            "a value out of range is refused",
        ],
    ),
    "FastAPI's errors": (
        replaced('{"error":(.*)}', r'{"detail":\1}'),
        ["an invalid request is refused", "an unknown path is 404", "an unknown model is 404"],
    ),
    "errors that name nothing": (
        replaced(r'"message":"[^"]*"(.*)"param":"[^"]*"', r'"message":"Bad request."\1"param":null'),
        ["an invalid request is refused", "an unknown model is 404", "an error before the stream is a status"],
    ),
    "HTML": (answered(html), ["an unknown path is 404"]),
    "no Allow": (header("allow", None), ["another method is 405"]),
    "JSON in place of events": (header("content-type", "application/json"), ["a stream is well formed"]),
    "no [DONE]": (events(lambda data: data[:-1]), ["a stream is well formed", "a completion is streamed"]),
    "an event that is not ended": (replaced(r"\n\n$", "\n"), ["a stream is well formed"]),
    "a line without a name": (replaced(r"^data: ", "dota: ", 1), ["a stream is well formed"]),
    "broken UTF-8": (replaced("two", "\udcff"), ["a stream is well formed"]),
    "an id for each chunk": (replaced(r'"id":"chatcmpl-', '"id":"x', 1), ["a stream is well formed"]),
    "no role": (
        replaced('"role":"assistant",', "", 1),
        ["the role comes first", "two streamed answers are told apart"],
    ),
    "two ends": (replaced('"finish_reason":null', '"finish_reason":"stop"', 2), ["an answer finishes once"]),
    "no end": (
        replaced('"finish_reason":"length"', '"finish_reason":null'),
        ["an answer finishes once", "two streamed answers are told apart"],
    ),
    "an event that gets lost": (
        events(lambda data: data[:2] + data[3:]),
        ["a streamed answer is the unstreamed one", "characters are never cut", "a completion is streamed"],
    ),
    "cut characters": (
        events(lambda data: [re.sub('"content":"[^\x00-\x7f]', '"content":"\ufffd', event) for event in data]),
        ["characters are never cut"],
    ),
    "a usage that nobody asked for": (
        asked(lambda body: body | ({"stream_options": {"include_usage": True}} if body.get("stream") else {})),
        ["no usage comes unasked"],
    ),
    "no usage": (without("stream_options"), ["the usage comes last"]),
    "errors in streams": (
        answered(lambda response: response.__setattr__("status", 200)),
        ["an error before the stream is a status"],
    ),
    "a stream of everything at once": (late, ["text comes as it is made"]),
    "a token more": (asked(one_more_token), ["an answer has the asked length"]),
    "no stop": (
        without("stop"),
        [
            "a stop string ends the answer",
            "a stop string never leaks into a stream",
            "the first of several stop strings counts",
        ],
    ),
    "only the first stop": (asked(late_stop), ["the first of several stop strings counts"]),
    "an end at any stop": (
        asked(lambda body: body | ({"max_tokens": 3} if "stop" in body else {})),
        ["an end comes with other stop strings too"],
    ),
    "always by chance": (
        asked(lambda body: body | {"temperature": 2}),
        ["temperature 0 repeats"],
    ),
    "never by chance": (
        asked(lambda body: body | {"temperature": 0}),
        ["temperature 2 does not repeat", "a seed repeats"],
    ),
    "no seed": (without("seed"), ["a seed repeats"]),
    "one answer": (without("n"), ["several answers are given", "two streamed answers are told apart"]),
    "no logprobs": (without("logprobs", "top_logprobs"), ["logprobs are of the answer"]),
    "other logprobs": (replaced(r'"bytes":\[\d+', '"bytes":[35'), ["logprobs are of the answer"]),
    "knows no tools": (
        without("tools", "tool_choice"),
        [
            "a required call is made",
            "a call by name is of that function",
            "a streamed call is the unstreamed one",
            "strict arguments are valid",
        ],
    ),
    "calls at will": (
        asked(lambda body: body | ({"tool_choice": "required"} if "tools" in body else {})),
        ["no call is made where none is wanted", "a call by name is of that function: the first"],
    ),
    "calls what there is not": (
        replaced('"name":"get_weather"|"name":"set_alarm"', '"name":"fly"'),
        ["a required call is made", "a call by name is of that function", "strict arguments are valid"],
    ),
    "a text that ended in a call": (
        replaced('"finish_reason":"length"', '"finish_reason":"tool_calls"'),
        ["tools may be left alone"],
    ),
    "stops at a call": (
        replaced('"finish_reason":"tool_calls"', '"finish_reason":"stop"'),
        ["a call has its shape", "a streamed call is the unstreamed one"],
    ),
    "one id for all calls": (replaced(r'"id":"call_\w+"', '"id":"call_1"'), ["a call has its shape"]),
    "the id in each part": (
        events(lambda data: [event.replace('"tool_calls":[{', '"tool_calls":[{"id":"x",') for event in data]),
        ["a streamed call is the unstreamed one"],
    ),
    "two calls": (
        replaced(r'"tool_calls":\[({.*?}})\]', r'"tool_calls":[\1,\1]'),
        ["without parallel calls there is at most one", "a required call is made"],
    ),
    "arguments with a comment": (
        replaced(r'"arguments":"{', r'"arguments":"{ // none'),
        ["strict arguments are valid"],
    ),
    "forgets what was returned": (
        asked(lambda body: body | {"messages": [m for m in body["messages"] if m["role"] != "tool"]}),
        ["the result of a call is read"],
    ),
    "any JSON": (
        asked(lambda body: body | ({"response_format": {"type": "json_object"}} if "response_format" in body else {})),
        [
            "an answer is valid by its schema",
            "a streamed answer is valid by its schema",
            "a wrong format is refused",
        ],
    ),
    "no JSON": (
        without("response_format"),
        [
            "an answer is a json object",
            "an answer is valid by its schema",
            "a streamed answer is valid by its schema",
            "a wrong format is refused",
        ],
    ),
    "JSON that seems whole": (
        replaced('"finish_reason":"length"', '"finish_reason":"stop"'),
        ["json that was cut says so"],
    ),
    "slow to refuse": (sluggish, ["a schema that blows up holds nobody up: an expression of many states"]),
    "no bias": (without("logit_bias"), ["a bias of 100 chooses a token", "a bias of minus 100 forbids a token"]),
    "an option that crashes it": (
        status(400, 500),
        ["an option that the template does not know is no crash", "a schema that blows up holds nobody up"],
    ),
    "reasoning in the answer": (
        replaced('"content":"', '"content":"<think>Hm.</think>'),
        ["reasoning is apart from the answer"],
    ),
    "ignores all but the messages": (
        asked(lambda body: {name: body[name] for name in ("model", "messages")} | {"max_tokens": 1}),
        ["a value out of range is refused", "an answer beyond the context is refused"],
    ),
    "cuts the prompt": (asked(cut_prompt), ["a prompt beyond the context is refused"]),
    "cuts the answer": (asked(cut_max_tokens), ["an answer beyond the context is refused"]),
    "takes any type": (asked(lambda body: None), ["a body of another type is refused"]),
    "all sites": (answered(stars), ["pages of other sites may not use it"]),
    "full and says 500": (status(429, 500), ["more requests than places: streamed"]),
    "full for ever": (header("retry-after", None), ["more requests than places: unstreamed"]),
}
