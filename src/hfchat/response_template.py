"""How models write their answers: what is thought first, tool calls, and the rest.

A tokenizer says it in its `response_template` (transformers, docs/source/en/chat_response_parsing.md), which
`tokenizer.parse_response` reads. Where it says nothing, the style is one of those in `response_templates/`, which are
known by what chat templates contain.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from hfchat.chat import Json
from hfchat.errors import UserError
from hfchat.token_ids import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALLS = "tool_calls"
REASONING = ("reasoning_content", "reasoning", "thinking")  # names that response templates have for it

# Ends of the prompts of chat templates: an answer begins after the last of them.
_ANSWER_BEGINS = [
    "<|im_start|>assistant\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "[/INST]",
    "<\uff5cAssistant\uff5c>",  # DeepSeek
    "<|assistant|>",
]
_STYLES = ("qwen_xml", "hermes", "mistral_args", "mistral", "llama3")
# A regular expression that comes with a model runs on the event loop: a text of this length must not take longer.
_TRIAL_CHARACTERS = 3_000
_TRIAL_S = 0.25
_LITERAL = r"\\\W|[^\\.^$*+?{}\[\]|()]"  # a character of a regular expression that stands for itself


# What a prompt leaves to the model: the reasoning is open already, it may be opened, or there is no reasoning.
Thinking = Literal["open", "may", "no"]


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
        thinking: What opens and closes the reasoning, `("<think>", "</think>")`; None where nothing does.
        marks: Characters of which one is in all that is not text but the first words; empty where that is not known.
    """

    template: Json
    call_form: CallForm | None = None
    thinking: tuple[str, str] | None = None
    marks: str = ""

    @property
    def has_calls(self) -> bool:
        """Whether it has tool calls."""
        return CALLS in self.template["fields"]

    @property
    def has_reasoning(self) -> bool:
        """Whether it has reasoning."""
        return any(name in self.template["fields"] for name in REASONING)

    def special_tokens(self, tokenizer: "PreTrainedTokenizerBase", *, with_calls: bool) -> frozenset[int]:
        """The special tokens that reasoning and calls are marked with: a decoder must keep their text."""
        fields = self.template["fields"]
        read = [fields[name] for name in (*REASONING, *([CALLS] if with_calls else [])) if name in fields]
        marks = json.dumps([[field.get(key) for key in _ANCHORS] for field in read], ensure_ascii=False)
        marks = marks.replace("\\", "")  # that of regular expressions, and that of JSON
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}
        special = special_tokens(tokenizer).items()
        return frozenset(id for id, text in special if text.replace("\\", "") in marks and id not in ends)


_ANCHORS = ("open", "open_pattern", "close", "close_pattern")


def response_style(tokenizer: "PreTrainedTokenizerBase") -> ResponseStyle | None:
    """How the model of a tokenizer writes its answers; None where it is not known, and all it writes is text.

    Raises:
        UserError: If the tokenizer has a response template that is wrong, or has a regular expression that takes long.
    """
    declared = getattr(tokenizer, "response_template", None)
    known = known_style(tokenizer.chat_template or "")
    if declared is None or (known is not None and declared == known.template):
        return known
    return _declared_style(tokenizer, declared)


def known_style(chat_template: str) -> ResponseStyle | None:
    """The style that is known by what a chat template contains."""
    calls = next((style for name in _STYLES if _is_like(style := _read(name), chat_template)), None)
    thinking = _read("thinking") if _is_like(_read("thinking"), chat_template) else None
    if calls is None and thinking is None:
        return None
    # The text of an answer is what is left, without the white space and the special tokens at its end.
    end = "|".join(filter(None, [calls["ends"] if calls else "", r"\Z"]))
    fields = {
        "reasoning_content": thinking["reasoning_content"] if thinking else None,
        CALLS: calls[CALLS] if calls else None,
        "content": {
            "close_pattern": rf"(?:(?<!\s)\s{{1,32}})?(?:{end})",
            "content": "text",
            "content_args": {"strip": False},
            "repeats": True,
            "join": "",
        },
    }
    template = {
        "defaults": {"role": "assistant"},
        "start_anchor": list(_ANSWER_BEGINS),
        "fields": {name: field for name, field in fields.items() if field is not None},
    }
    return ResponseStyle(
        template,
        call_form=CallForm(**calls["call_form"]) if calls and calls["call_form"] else None,
        thinking=("<think>", "</think>") if thinking else None,
        marks="".join(style["marks"] for style in (calls, thinking) if style),
    )


@functools.cache
def _read(name: str) -> dict:
    return json.loads(files("hfchat").joinpath("response_templates", f"{name}.json").read_text(encoding="utf-8"))


def _is_like(style: dict, chat_template: str) -> bool:
    known = all(mark in chat_template for mark in style["known_by"])
    return known and not any(mark in chat_template for mark in style.get("unlike", ()))


def _declared_style(tokenizer: "PreTrainedTokenizerBase", template: dict) -> ResponseStyle:
    name = tokenizer.name_or_path
    try:
        tokenizer.get_response_parser(template, prefix="")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: the response_template of tokenizer_config.json is wrong: {error}") from error
    for pattern in _patterns(template):
        if not _is_quick(pattern):
            raise UserError(
                f"{name}: the response_template of tokenizer_config.json has a regular expression that can take for "
                f"ever: {pattern[:200]}; write it without repeats in repeats, or take the response_template out"
            )
    return ResponseStyle(template, _form_of(tokenizer, template), _thinking_of(template))


def _form_of(tokenizer: "PreTrainedTokenizerBase", template: dict) -> CallForm | None:
    """The form that the model's chat template writes, and its response template reads back."""
    field = template["fields"].get(CALLS, {})
    known = [_read(name)["call_form"] for name in _STYLES]
    forms = [CallForm(**form) for form in known if form is not None]
    if isinstance(field.get("open"), str):
        opening, closing = field["open"], field.get("close", "")
        closing = closing if isinstance(closing, str) else ""
        between = closing + opening if closing and field.get("repeats") else None
        forms += [CallForm(opening, between, closing, "name", key) for key in ("arguments", "parameters")]
    for form in forms:
        mark = form.opening.strip() or f'"{form.arguments_key}": '
        if mark in (tokenizer.chat_template or "") and _reads_back(tokenizer, template, form):
            return form
    return None


def _reads_back(tokenizer: "PreTrainedTokenizerBase", template: dict, form: CallForm) -> bool:
    call = json.dumps({form.name_key: "f", form.arguments_key: {"a": 1}})
    try:
        message = tokenizer.parse_response(form.opening + call + form.closing, template, prefix="")
        found = [(call["function"]["name"], call["function"]["arguments"]) for call in message[CALLS]]
    except (ValueError, KeyError, TypeError):
        return False
    return found == [("f", {"a": 1})]


def _thinking_of(template: dict) -> tuple[str, str] | None:
    named: list[dict] = [template["fields"][name] for name in REASONING if name in template["fields"]]
    field = named[0] if named else {}
    if isinstance(field.get("open"), str) and isinstance(field.get("close"), str):
        return field["open"], field["close"]
    patterns = field.get("open_pattern", ""), field.get("close_pattern", field.get("close", ""))
    is_known = "<think>" in patterns[0] and "</think>" in patterns[1]
    return ("<think>", "</think>") if is_known else None


def _patterns(value: Any, key: str = "") -> Iterator[str]:
    """The regular expressions in a response template."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _patterns(item, name)
    elif isinstance(value, str) and key.endswith("_pattern"):
        yield value


def _is_quick(pattern: str) -> bool:
    """Whether it was done in time with texts that take long where repeats can share what they match."""
    import regex

    compiled = regex.compile(pattern, regex.DOTALL)
    # Long runs of what the pattern may repeat, between its own beginning and end: regex looks for these first.
    words = {"a", "1", " ", "\n", "<", ">", '"', "{", "[", "\\", "_", "é", *regex.findall(r"\w|\w+|[^\w\s]", pattern)}
    words |= {f"{word} " for word in words} | {f"{word}," for word in words}
    begins = regex.sub(r"\\(\W)", r"\1", regex.match(rf"(?:{_LITERAL})*", pattern)[0])
    ends = regex.sub(r"\\(\W)", r"\1", regex.search(rf"(?:{_LITERAL})*$", pattern)[0])
    try:
        for word in words:
            run = word * (_TRIAL_CHARACTERS // len(word))
            for text in (run, begins + run, f"{run}\0{ends}", f"{begins}{run}\0{ends}"):
                compiled.search(text, timeout=_TRIAL_S)
                compiled.search(text, partial=True, timeout=_TRIAL_S)
    except TimeoutError:
        return False
    return True
