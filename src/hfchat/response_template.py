"""How models write their answers: what is thought first, tool calls, and the rest.

A tokenizer says it in its `response_template` (transformers, docs/source/en/chat_response_parsing.md), which
`tokenizer.parse_response` reads. Where it says nothing, the style is one that is known by its chat template.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CallForm:
    """How calls are written, for a grammar that leaves no other choice.

    A call itself is `{"<name_key>": "...", "<arguments_key>": {...}}`.

    Attributes:
        opening: Text before the first call, `<tool_call>\\n`.
        between: Text between two calls; None where an answer can have only one.
        closing: Text after the last call.
        name_key: Key of the function's name.
        arguments_key: Key of its arguments.
    """

    opening: str
    between: str | None
    closing: str
    name_key: str = "name"
    arguments_key: str = "arguments"


@dataclass(frozen=True)
class ResponseStyle:
    """How a model writes its answers.

    Attributes:
        template: A `response_template` of transformers.
        call_form: How calls are written; None where they can be read, but not be forced.
        thinking: What opens and closes the reasoning, `("<think>", "</think>")`; None where there is none.
    """

    template: Mapping[str, Any]
    call_form: CallForm | None = None
    thinking: tuple[str, str] | None = None
