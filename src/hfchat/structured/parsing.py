"""What a model has written, taken apart while it comes: its reasoning, its tool calls, and the text.

transformers' parser does it (`tokenizer.get_response_parser`, `tokenizer.parse_response`), by the model's style
(`hfchat.response_template`). It raises where a call is broken, and forgets what stood there. So it is asked twice:
first for the places of calls, of which it keeps the text as it is, and then for what one such text says.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import regex

from hfchat.chat import CallPart, Function, Json
from hfchat.response_template import CALLS, REASONING, ResponseStyle, Thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_JSON = ("json", "python-call-list")  # parsers of calls that know types, so that "7" is no number

_PROMPT_END = 64  # tokens at the end of a prompt, of which the last ones may begin the answer


@dataclass(frozen=True)
class Parsed:
    """A part of an answer, or all of it.

    Attributes:
        text: What is said.
        reasoning: What was thought before it.
        calls: The tool calls, each of them whole.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()


class AnswerParser:
    """Takes an answer apart. However it is cut into pieces, what comes out is the same when joined.

    Text before and after a call is kept. What should be a call, but is not valid JSON, calls no function that was
    offered, or is cut off, is text as the model wrote it. White space between and after calls is dropped.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        style: ResponseStyle | None,
        functions: Sequence[Function] = (),
        prompt_end: str = "",
    ):
        """
        Args:
            tokenizer: The model's.
            style: How the model writes; None: all is text.
            functions: Those that may be called. Without any, what looks like a call is text.
            prompt_end: The end of the prompt, special tokens kept: it may have opened the reasoning.
        """
        self._tokenizer = tokenizer
        self._functions = {function.name: function for function in functions}
        self._calls = 0
        self._held: str | None = None  # white space after a call, dropped unless text follows
        self._plain: Literal["text", "reasoning"] | None = None  # what it is at, if the parser holds nothing back
        self._marks = frozenset(style.marks if style else "")
        self._template: Json = style.template if style else {"fields": {}}
        splitting = _splitting(self._template, bool(self._functions))
        prefix = begun_answer(self._template, prompt_end) if style else ""
        self._parser = None
        if splitting is not None:
            self._parser = tokenizer.get_response_parser(splitting, prefix="" if prefix.isspace() else prefix)

    def push(self, text: str) -> Parsed:
        """What is known of the answer with this piece, and was not before."""
        if self._parser is None:
            return Parsed(text)
        if not text:
            return Parsed()
        # White space at the end may belong to a call. Without it, the parser need not see plain text.
        is_plain = bool(self._marks) and self._marks.isdisjoint(text) and not text[-1].isspace()
        if is_plain and self._plain is not None:
            return Parsed(text) if self._plain == "text" else Parsed(reasoning=text)
        parsed = self._read(self._parser.feed(text))
        self._plain = None
        if is_plain and parsed.text.endswith(text):
            self._plain = "text"
        elif is_plain and parsed.reasoning.endswith(text):
            self._plain = "reasoning"
        return parsed

    def finish(self) -> Parsed:
        """What was held back, when the answer has ended."""
        if self._parser is None:
            return Parsed()
        _, events = self._parser.finalize()
        return self._read(events)

    def _read(self, events: Iterable[Json]) -> Parsed:
        text, reasoning, calls = "", "", []
        for event in events:
            field, kind = event["field"], event["type"]
            if field == CALLS:
                if kind != "region_close":
                    continue
                raw = "".join(event["value"].values())
                found = self._calls_in(raw)
                if found:
                    calls += found
                    self._held = ""
                else:
                    text += self._said(raw)
            elif kind == "region_chunk" and field in REASONING:
                reasoning += event["text"]
            elif kind == "region_chunk":
                text += self._said(event["text"])
        return Parsed(text, reasoning, tuple(calls))

    def _said(self, text: str) -> str:
        if self._held is None:
            return text
        text = self._held + text
        self._held = text if text.isspace() else None
        return "" if self._held is not None else text

    def _calls_in(self, raw: str) -> list[CallPart]:
        """The calls in a text; none if one of them is broken."""
        content = self._template["fields"][CALLS].get("content", "text")
        tools = [_tool(function) for function in self._functions.values()] if content not in _JSON else None
        try:
            message = self._tokenizer.parse_response(raw, self._template, prefix="", tools=tools)
            found = message.get(CALLS) or []
            calls = found if isinstance(found, list) else [found]
            parts = [self._part(call["function"], self._calls + number) for number, call in enumerate(calls)]
        except Exception:  # whatever is wrong with it: content and transforms are the model's
            return []
        self._calls += len(parts)
        return parts

    def _part(self, function: Json, index: int) -> CallPart:
        """A call.

        Raises:
            ValueError: If no such function was offered, or its arguments are not what JSON, or a text, can hold.
        """
        name, arguments = function["name"], function["arguments"]
        if name not in self._functions or not isinstance(arguments, dict):
            raise ValueError
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        written.encode()  # which has no halves of surrogate pairs
        return CallPart(index, name, written)


def begun_answer(template: Json, prompt_end: str) -> str:
    """What of an answer stands at the end of its prompt: what follows the last place where answers begin."""
    literals = template.get("start_anchor", ())
    literals = [literals] if isinstance(literals, str) else literals
    anchor = template.get("start_anchor_pattern") or "|".join(map(regex.escape, literals))
    ends = [found.end() for found in regex.finditer(anchor, prompt_end, regex.DOTALL)]
    if ends:
        return prompt_end[ends[-1] :]
    opening = "<think>"  # where a prompt opens the reasoning in a chat template that nobody here knows
    return opening if prompt_end.rstrip().endswith(opening) else ""


def end_of_prompt(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text at the end of a prompt, special tokens kept, in which the answer may have begun."""
    return tokenizer.decode(ids[-_PROMPT_END:])


def thinking_at(style: ResponseStyle | None, prompt_end: str, may_think: bool) -> Thinking:
    """Whether a prompt has opened the reasoning, or else the model may do so.

    Args:
        style: How the model writes.
        prompt_end: The end of the prompt, special tokens kept.
        may_think: Whether the chat template has a switch for reasoning, and it was not turned off.
    """
    if style is None or style.thinking is None:
        return "no"
    # The prompt itself may have begun the reasoning, or begun and ended it.
    opening, closing = style.thinking
    begun = begun_answer(style.template, prompt_end)
    if opening.strip() in begun and closing.strip() not in begun:
        return "open"
    return "may" if may_think and closing.strip() not in begun else "no"


def _splitting(template: Json, reads_calls: bool) -> Json | None:
    """The same template, with which nothing can go wrong, and calls are handed out as they were written.

    None if nothing is to be told apart.
    """
    fields: dict[str, dict] = {}
    for name, field in template["fields"].items():
        opening = _pattern(field, "open")
        if opening is None:
            fields[name] = {}  # what is left is text
        elif name != CALLS:
            # Reasoning is text too, so no content parser can fail on it.
            fields[name] = {key: field[key] for key in _ANCHORS if key in field}
        elif reads_calls:
            fields[name] = {
                # The second group is what stands at the end where nothing closes the call.
                "open_pattern": f"(?P<hfchat_opening>{opening})(?P<hfchat_closing>)",
                "content_args": {"strip": False},
                "repeats": True,
                "transform": {"opening": "{hfchat_opening}", "body": "{content}", "closing": "{hfchat_closing}"},
            }
            closing = _pattern(field, "close")
            if closing is not None:
                fields[name]["close_pattern"] = f"(?P<hfchat_closing>{closing})"
    if all(_pattern(field, "open") is None for field in fields.values()):
        return None
    return {"fields": fields, "start_anchor": "\0"}  # the prompt's end is cut already


_ANCHORS = ("open", "open_pattern", "close", "close_pattern")


def _pattern(field: Json, anchor: str) -> str | None:
    """An anchor of a field as a regular expression; None if it has none."""
    if f"{anchor}_pattern" in field:
        return field[f"{anchor}_pattern"]
    literals = field.get(anchor)
    if literals is None:
        return None
    literals = [literals] if isinstance(literals, str) else literals
    return "|".join(regex.escape(literal) for literal in sorted(literals, key=len, reverse=True))


def _tool(function: Function) -> Json:
    return {"type": "function", "function": {"name": function.name, "parameters": function.parameters}}
