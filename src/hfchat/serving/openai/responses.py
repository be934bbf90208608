"""`POST /v1/responses`: what a chat completion is, in the shapes of OpenAI's newer API.

The parts of an answer become items: its reasoning, a message with its text, and its calls. One writer makes the items
of a stream with their events, and those of a whole answer without.
"""

import re
import uuid
from collections.abc import Sequence

from fastapi.sse import format_sse_event

from hfchat.chat import CallPart
from hfchat.serving.openai.chat import call_id
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.formats import Identity, Part
from hfchat.serving.openai.protocol import Usage
from hfchat.serving.openai.responses_protocol import (
    IncompleteDetails,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    Status,
)
from hfchat.serving.openai.responses_requests import ReasoningOptions, ResponsesRequest, TextFormat, TextOptions

# Fields of a chat completion, and what they are called in the request that became one.
_FIELDS = (
    (r"^messages\b.*", "input"),  # which item became which message is not known any more
    (r"^response_format(\.json_schema)?", "text.format"),
    (r"^reasoning_effort\b", "reasoning.effort"),
    (r"^max_completion_tokens\b", "max_output_tokens"),
    (r"^(tools\[\d+\]|tool_choice)\.function\b", r"\1"),
)


def with_fields_of_responses(error: ApiError) -> ApiError:
    """An error of a chat completion, about the fields of the request that became one."""
    detail = error.body.error
    if detail.param is None:
        return error
    param = detail.param
    for pattern, name in _FIELDS:
        param = re.sub(pattern, name, param)
    message = error.message
    if message.startswith(detail.param):
        message = param + message.removeprefix(detail.param)
    return ApiError(error.status, message, type=detail.type, param=param, code=detail.code, headers=error.headers)


class ResponsesFormat:
    """A `Format` (see `hfchat.serving.openai.formats`)."""

    id_prefix = "resp"
    prompt_field = "input"

    def __init__(self, request: ResponsesRequest):
        self._request = request

    def whole(self, identity: Identity, answers: Sequence[Sequence[Part]], usage: Usage) -> Response:
        [parts] = answers
        writer = ResponseEvents(self._request, identity)
        for part in parts:
            writer.add(part)
        return writer.response(usage)

    def events(self, identity: Identity, include_usage: bool) -> "ResponseEvents":
        return ResponseEvents(self._request, identity)


class ResponseEvents:
    """An `EventStream` (see `hfchat.serving.openai.formats`)."""

    def __init__(self, request: ResponsesRequest, identity: Identity):
        self._request = request
        self._identity = identity
        self._output: list[OutputItem] = []
        self._open: OutputText | ReasoningText | OutputCall | None = None  # what of the last item still grows
        self._status: Status = "in_progress"
        self._incomplete: IncompleteDetails | None = None
        self._count = 0  # of events

    def of(self, part: Part) -> list[bytes]:
        if part.is_empty:
            return []
        begun = [] if self._count else self._begin()
        return _written(begun + self.add(part))

    def end(self, usage: Usage) -> list[bytes]:
        return _written([self._whole_event(f"response.{self._status}", self.response(usage))])

    def failure(self, error: ApiError) -> list[bytes]:
        detail = error.body.error
        self._status = "failed"
        response = self.response(None)
        response.error = ResponseError(code=detail.code or detail.type, message=error.message)
        return _written([self._whole_event("response.failed", response)])

    def response(self, usage: Usage | None) -> Response:
        """The response as far as it has come."""
        request, identity = self._request, self._identity
        return Response(
            id=identity["id"],
            created_at=identity["created"],
            model=identity["model"],
            system_fingerprint=identity["system_fingerprint"],
            status=self._status,
            incomplete_details=self._incomplete,
            output=self._output,
            usage=ResponseUsage.of(usage) if usage is not None else None,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=request.temperature,
            top_p=request.top_p,
            text=request.text or TextOptions(format=TextFormat(type="text")),
            reasoning=request.reasoning or ReasoningOptions(),
            tool_choice=request.tool_choice or "auto",
            tools=request.tools or [],
            user=request.user,
        )

    def add(self, part: Part) -> list[ResponseEvent]:
        """Add a part of the answer. Returns the events that say so."""
        # What the model writes, in the order in which it has to be read.
        events: list[ResponseEvent] = []
        if part.reasoning:
            events += self._opened(ReasoningText)
            events += self._grown(part.reasoning)
        if part.text:
            events += self._opened(OutputText)
            events += self._grown(part.text)
        for call in part.calls:
            events += self._called(call)
        if part.finish_reason is None:
            return events
        # The end, and why it came.
        if part.finish_reason in ("length", "content_filter"):
            is_long = part.finish_reason == "length"
            self._status = "incomplete"
            self._incomplete = IncompleteDetails(reason="max_output_tokens" if is_long else "content_filter")
        else:
            self._status = "completed"
        if not self._output:  # an answer without anything in it is a message of no words
            events += self._opened(OutputText)
        return events + self._closed(self._status)

    def _begin(self) -> list[ResponseEvent]:
        types = ("response.created", "response.in_progress")
        return [self._whole_event(type, self.response(None)) for type in types]

    def _opened(self, kind: type[OutputText] | type[ReasoningText]) -> list[ResponseEvent]:
        """The events until such a text can grow; none if it is the one that does."""
        if isinstance(self._open, kind):
            return []
        part = kind()
        item: OutputMessage | OutputReasoning
        if isinstance(part, OutputText):
            item = OutputMessage(id=_id("msg"), content=[part])
        else:
            item = OutputReasoning(id=_id("rs"), content=[part])
        events = self._added(item, item.model_copy(update={"content": []}), part)
        added = self._event("response.content_part.added")
        return [*events, added.model_copy(update={"content_index": 0, "part": kind()})]

    def _grown(self, text: str) -> list[ResponseEvent]:
        part = self._open
        assert isinstance(part, OutputText | ReasoningText)
        part.text += text
        fields = {"content_index": 0, "delta": text} | _no_logprobs(part)
        return [self._event(f"response.{part.type}.delta").model_copy(update=fields)]

    def _called(self, part: CallPart) -> list[ResponseEvent]:
        events = []
        if part.name is not None:
            call = OutputCall(id=_id("fc"), call_id=part.id or call_id(), name=part.name)
            events += self._added(call, call.model_copy(), call)
        if part.arguments:
            assert isinstance(self._open, OutputCall)
            self._open.arguments += part.arguments
            delta = self._event("response.function_call_arguments.delta")
            events.append(delta.model_copy(update={"delta": part.arguments}))
        return events

    def _added(
        self, item: OutputItem, shown: OutputItem, grows: OutputText | ReasoningText | OutputCall
    ) -> list[ResponseEvent]:
        """A new item, after the last one is closed. `shown` is it while there is nothing in it yet."""
        events = self._closed("completed")
        self._output.append(item)
        self._open = grows
        return [*events, self._item_event("response.output_item.added", shown)]

    def _closed(self, status: Status) -> list[ResponseEvent]:
        """The last item cannot grow any more."""
        part, self._open = self._open, None
        if part is None:
            return []
        item = self._output[-1]
        item.status = status
        if isinstance(part, OutputCall):
            fields = {"name": part.name, "arguments": part.arguments}
            events = [self._event("response.function_call_arguments.done").model_copy(update=fields)]
        else:
            text = {"content_index": 0, "text": part.text} | _no_logprobs(part)
            done = {"content_index": 0, "part": part}
            events = [
                self._event(f"response.{part.type}.done").model_copy(update=text),
                self._event("response.content_part.done").model_copy(update=done),
            ]
        return [*events, self._item_event("response.output_item.done", item)]

    def _whole_event(self, type: str, response: Response) -> ResponseEvent:
        return ResponseEvent(type=type, sequence_number=self._next(), response=response)

    def _item_event(self, type: str, item: OutputItem) -> ResponseEvent:
        index = len(self._output) - 1
        return ResponseEvent(type=type, sequence_number=self._next(), output_index=index, item=item)

    def _event(self, type: str) -> ResponseEvent:
        """An event about what is in the last item."""
        index, item_id = len(self._output) - 1, self._output[-1].id
        return ResponseEvent(type=type, sequence_number=self._next(), output_index=index, item_id=item_id)

    def _next(self) -> int:
        self._count += 1
        return self._count - 1


def _no_logprobs(part: OutputText | ReasoningText) -> dict[str, list[None]]:
    return {"logprobs": []} if isinstance(part, OutputText) else {}


def _written(events: Sequence[ResponseEvent]) -> list[bytes]:
    return [format_sse_event(event=event.type, data_str=event.model_dump_json(by_alias=True)) for event in events]


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
