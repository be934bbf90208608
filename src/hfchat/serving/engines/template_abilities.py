"""What a model's chat template can write: tools, calls, results, and the variables that a request may set."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from hfchat.chat import Chat, Json
from hfchat.chat_template import template_variables, thinking_switch
from hfchat.messages import arguments_as_text

_RESERVED = {"messages", "conversation", "tools", "self", "kwargs"}
_ID = "hfchat001"  # nine letters and digits, which is all that Mistral's templates take
_ARGUMENTS = '{"hfchat_key": null}'


class RefusedError(ValueError):
    """A template has no place for what a request asks for.

    Attributes:
        field: The field of the request.
    """

    def __init__(self, message: str, field: str):
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class TemplateAbilities:
    """Asks the chat template of a tokenizer, by its variables and by what it makes of a call."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def variables(self) -> frozenset[str]:
        """The variables that the template reads, see `hfchat.chat_template.template_variables`."""
        return template_variables(self.tokenizer.chat_template or "")

    @cached_property
    def switch(self) -> str | None:
        """The variable that turns reasoning on and off."""
        return thinking_switch(self.tokenizer.chat_template or "")

    @cached_property
    def writes_results(self) -> bool:
        """Whether it writes what a tool has given back."""
        return any("hfchat_result" in self._try(arguments) for arguments in (json.loads(_ARGUMENTS), _ARGUMENTS))

    @cached_property
    def writes_calls(self) -> bool:
        """Whether it writes the calls of the assistant."""
        return any("hfchat_function" in self._try(arguments) for arguments in (json.loads(_ARGUMENTS), _ARGUMENTS))

    @cached_property
    def writes_text_of_arguments(self) -> bool:
        """Whether it writes arguments that are JSON in a string as they are, with what a mapping would lose."""
        return _ARGUMENTS in self._try(_ARGUMENTS)

    def options(self, chat: Chat) -> Json:
        """The variables of the template that a request sets.

        Raises:
            RefusedError: If the template does not read one of them, or it is not the request's to set.
        """
        options = dict(chat.template_options)
        # What a template reads and the server says itself, by the names of the library's own arguments too.
        reserved = _RESERVED | {*inspect.signature(self.tokenizer.apply_chat_template).parameters} - {"documents"}
        reserved |= {*self.tokenizer.special_tokens_map}
        for name in options:
            if name in reserved or name.endswith("_token"):
                raise RefusedError("it is set by the server", f"chat_template_kwargs.{name}")
            if name not in self.variables:
                raise RefusedError("the chat template of this model does not read it", f"chat_template_kwargs.{name}")
        if chat.reasoning_effort is None:
            return options
        # An effort is a variable of the template like the others, under the name that this one has for it.
        name, value = self._effort(chat.reasoning_effort)
        if options.setdefault(name, value) != value:
            raise RefusedError(f"chat_template_kwargs.{name} says something else", "reasoning_effort")
        return options

    def _effort(self, effort: str) -> tuple[str, Any]:
        # A switch says it for certain; a template that only reads efforts may not know this one.
        if effort == "none" and self.switch is not None:
            return self.switch, False
        if "reasoning_effort" in self.variables:
            return "reasoning_effort", effort
        if effort == "none":
            raise RefusedError("the chat template of this model has no switch for thinking", "reasoning_effort")
        raise RefusedError("the chat template of this model has no efforts to choose from", "reasoning_effort")

    def messages(self, chat: Chat) -> list[Json]:
        """The messages as the template can write them: arguments, ids of calls and names of tools.

        Raises:
            RefusedError: If it cannot write calls, or results, that are there.
        """
        names: dict[str, str] = {}
        short_ids = "[TOOL_CALLS]" in (self.tokenizer.chat_template or "")
        messages: list[Json] = []
        for number, message in enumerate(chat.messages):
            changed = dict(message)
            # The assistant has called something,
            if message.get("tool_calls"):
                if not self.writes_calls:
                    raise RefusedError("the chat template of this model writes no calls", f"messages[{number}]")
                changed["tool_calls"] = [self._call(call, short_ids) for call in message["tool_calls"]]
                names |= {call["id"]: call["function"]["name"] for call in message["tool_calls"] if "id" in call}
            # or a tool has answered.
            if message["role"] == "tool":
                if not self.writes_results:
                    raise RefusedError(
                        "the chat template of this model writes no results of tools", f"messages[{number}]"
                    )
                asked = message.get("tool_call_id", "")
                changed.setdefault("name", names.get(asked, "tool"))
                changed["tool_call_id"] = _nine(asked) if short_ids else asked
            messages.append(changed)
        return messages

    def _call(self, call: Json, short_ids: bool) -> Json:
        function = dict(call["function"])
        if self.writes_text_of_arguments and isinstance(function["arguments"], Mapping):
            function["arguments"] = arguments_as_text(function["arguments"])
        written = {**call, "function": function}
        if short_ids and "id" in call:
            written["id"] = _nine(call["id"])
        return written

    def _try(self, arguments: Any) -> str:
        """What the template makes of a call and its result; nothing if it refuses them."""
        function = {"name": "hfchat_function", "arguments": arguments}
        messages = [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": _ID, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": _ID, "name": "hfchat_function", "content": "hfchat_result"},
        ]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False)
        except (jinja2.TemplateError, ValueError, TypeError, AttributeError, KeyError):
            return ""


def _nine(id: str) -> str:
    """Nine letters and digits in place of an id, the same for the same."""
    return id if re.fullmatch("[A-Za-z0-9]{9}", id) else hashlib.sha256(id.encode()).hexdigest()[:9]
