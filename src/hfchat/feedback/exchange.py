"""What the server hands to the store: an answer with its conversation, and what somebody says about it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NotRequired, TypedDict

from hfchat.chat import Json

Rating = Literal["up", "down"]


class CalledFunction(TypedDict):
    """A function, and what it is called with: a JSON object."""

    name: str
    arguments: Json


class Call(TypedDict):
    """A tool call. That of an answer needs no id; one of an earlier turn has that which its result names."""

    id: NotRequired[str]
    type: Literal["function"]
    function: CalledFunction


class Turn(TypedDict):
    """A message of a conversation, as chat templates take it."""

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


class GuardFinding(TypedDict):
    """What a guard found in a prompt or an answer (`hfchat.safety.guards.Finding`)."""

    guard: str
    place: str
    action: str
    categories: Sequence[str]


@dataclass(frozen=True)
class Exchange:
    """An answer, and all that led to it.

    Attributes:
        answer_id: OpenAI's id of the response, `chatcmpl-...`; it may hold several answers to the same prompt.
        choice: Which of them, from 0.
        created_at: When it was asked for, with a time zone.
        model: Its name in the API.
        messages: The conversation as the model got it, after the guards.
        text: The answer as it was sent, without its calls and its reasoning.
        finish_reason: OpenAI's; None if it was not sent to its end, for example because the client went away.
        sampling: The parameters that chose its tokens, by OpenAI's names.
        findings: What the guards found in the prompt and in all its answers.
        user: The end user that the request names; "" if it names nobody.
        api_key: The name of the API key that asked; "" where keys are not used.
        model_version: Which version of the model; None if it has none.
        template_fingerprint: The fingerprint of its chat template (`hfchat.chat_template`); None for an upstream.
        tools: Those that the model was offered, as `hfchat.chat.Chat` has them.
        tool_calls: Those of the answer.
        reasoning: What the model thought before the answer.
    """

    answer_id: str
    choice: int
    created_at: datetime
    model: str
    messages: Sequence[Turn]
    text: str
    finish_reason: str | None
    sampling: Mapping[str, object]
    findings: Sequence[GuardFinding] = ()
    user: str = ""
    api_key: str = ""
    model_version: str | None = None
    template_fingerprint: str | None = None
    tools: Sequence[Json] = ()
    tool_calls: Sequence[Call] = ()
    reasoning: str = ""


@dataclass(frozen=True)
class Opinion:
    """What somebody says about an answer. With nothing in it, it takes back what the same person said before.

    Attributes:
        answer_id: The response.
        choice: Which of its answers.
        rating: Whether the answer is good.
        correction: What the answer should have been: its text, "" if it should have been calls alone.
        comment: In the person's own words.
        tags: Labels such as "wrong" or "rude".
        preferred_over: Another response to the same prompt, whose first answer was discarded for this one.
        user: Who says it; "" for nobody in particular.
        api_key: The name of the API key it came with; "" where keys are not used.
        corrected_calls: The calls that belong to the correction.
    """

    answer_id: str
    choice: int = 0
    rating: Rating | None = None
    correction: str | None = None
    comment: str | None = None
    tags: tuple[str, ...] = ()
    preferred_over: str | None = None
    user: str = ""
    api_key: str = ""
    corrected_calls: tuple[Call, ...] = ()

    @property
    def says_something(self) -> bool:
        return any(said is not None for said in (self.rating, self.correction, self.comment, self.preferred_over)) or (
            bool(self.tags)
        )


def functions_of(calls: Sequence[Call]) -> list[CalledFunction]:
    """What is called, without the ids, which are other ones each time."""
    return [call["function"] for call in calls]


def words_of(text: str, calls: Sequence[Call]) -> str:
    """All that an answer says, for those who look for words in it: its text, and its calls as JSON, a line each."""
    called = [json.dumps(function, ensure_ascii=False) for function in functions_of(calls)]
    return "\n".join([text, *called] if text else called)
