"""The one chat template of the project, its special tokens, and the fingerprint that travels with both.

The format is ChatML, which SmolLM2, Qwen and many others speak, with one difference to the templates they ship:
the `{% generation %}` marks around the assistant's text *and* its end-of-turn token. Trainers derive the
supervised tokens from these marks, so the model learns to stop. What a model's template says as the system where a
conversation says nothing is kept: the model was trained after it.

Tools, their calls and their results are written as Qwen2.5 and Hermes models write them, which servers can parse (vLLM
calls the parser `hermes`). The arguments of a call are a mapping or, as in OpenAI's API, JSON in a string, which is
written as it is. A null in them, or in a tool, is written like any other value.

What the assistant thought, its `reasoning_content`, is written before its text as Qwen3 and DeepSeek-R1 write it,
between `<think>` and `</think>`, and learned with it. It is written in each turn that has it, also in earlier ones: so
a model reads in the history what it was trained on, and no turn is learned after a history that it will never see.
"""

import hashlib
import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.models import add_special_tokens
from hfchat.response_template import known_style

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"  # separates documents: the first and the last token of each
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"  # the assistant's last token, and what generation stops at
PAD = "<|pad|>"  # never the end-of-turn token: padding gets no loss, and a model must learn to stop
SPECIAL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END, PAD]

CHAT_TEMPLATE = files("hfchat").joinpath("chat_template.jinja").read_text(encoding="utf-8").strip()

_RECORD = "chat_template_fingerprint"
_SWITCHES = ("enable_thinking", "thinking")  # variables that turn reasoning on and off
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # transformers' own marks, no part of Jinja


def default_system_message(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the tokenizer's template says as the system where a conversation says nothing; empty if nothing.

    Only a template that writes ChatML counts: with another one, a model must learn the format anew, and with it all it
    had learned to do after such a message. A message with today's date does not count, because it would stay the date
    of the training.
    """
    template = tokenizer.chat_template or ""
    if TURN_START not in template or "strftime_now" in template:  # not rendered: others may refuse such a conversation
        return ""
    text = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    before, opened, rest = text.partition(f"{TURN_START}system\n")
    message, closed, _ = rest.partition(f"{TURN_END}\n{TURN_START}user\n?{TURN_END}")
    return message if before in ("", tokenizer.bos_token) and opened and closed else ""


def _with_default_system_message(message: str) -> str:
    """The project's template, with what the system says where a conversation says nothing."""
    if not message:
        return CHAT_TEMPLATE
    literal = json.dumps(message, ensure_ascii=False)
    return (
        "{%- if not messages or messages[0]['role'] != 'system' -%}\n"
        f"{{%- set messages = [{{'role': 'system', 'content': {literal}}}] + messages -%}}\n"
        "{%- endif -%}\n"
    ) + CHAT_TEMPLATE


def set_chat_template(
    tokenizer: "PreTrainedTokenizerBase", *, add_tokens: bool = False, system_message: str | None = None
) -> list[int]:
    """Give `tokenizer` the project's template, its end-of-turn token as EOS, and a pad token that is not EOS.

    Its `response_template` says how answers by that template are read: `tokenizer.parse_response` and pipelines do it.

    Args:
        tokenizer: Changed in place.
        add_tokens: Add the turn tokens that it lacks.
        system_message: What the system says where a conversation says nothing: empty for nothing, None for what it
            says in the template that the tokenizer has. A chat model has learned to be who it is after that message:
            SmolLM2-135M-Instruct refuses 6 to 8 of 40 harmful requests with its own, and none without
            (benchmarks/RESULTS.md).

    Returns:
        The ids that were added: the model needs embeddings for them.

    Raises:
        UserError: If the vocabulary lacks a token.
    """
    # The tokens that the template needs.
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (TURN_START, TURN_END) if token not in vocabulary]
    if PAD not in vocabulary and END_OF_TEXT not in vocabulary:
        missing.append(PAD)
    if missing and not add_tokens:
        raise UserError(
            f"{tokenizer.name_or_path}: the vocabulary has no {' and no '.join(missing)}; "
            "start from a chat model that speaks ChatML, or from a tokenizer made by recipes/train_tokenizer.py"
        )
    add_special_tokens(tokenizer, missing)
    # The template, and the roles of its tokens.
    if system_message is None:
        system_message = default_system_message(tokenizer)
    tokenizer.chat_template = _with_default_system_message(system_message)
    style = known_style(CHAT_TEMPLATE)
    tokenizer.response_template = None if style is None else dict(style.template)
    tokenizer.eos_token = TURN_END
    tokenizer.pad_token = PAD if PAD in vocabulary or PAD in missing else END_OF_TEXT
    return tokenizer.convert_tokens_to_ids(missing)


def template_variables(chat_template: str) -> frozenset[str]:
    """The variables that a chat template reads.

    Raises:
        jinja2.TemplateSyntaxError: If it is no template.
    """
    import jinja2.meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(_GENERATION.sub("", chat_template))))


def thinking_switch(chat_template: str) -> str | None:
    """The variable that turns reasoning on and off; None if the template has none."""
    variables = template_variables(chat_template)
    return next((name for name in _SWITCHES if name in variables), None)


def check_end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer that pads with its end of turn: padding gets no loss, so the end would get none either.

    Raises:
        UserError: If the two are the same, or one is missing.
    """
    name, end, pad = tokenizer.name_or_path, tokenizer.eos_token, tokenizer.pad_token
    if end is None or pad is None:
        raise UserError(
            f"{name}: needs an end-of-turn token and another one to pad with (eos is {end}, pad {pad}); use "
            "hfchat.chat_template.set_chat_template"
        )
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"{name}: the pad token is the end-of-turn token {end}, so the model would never learn to stop; use "
            "hfchat.chat_template.set_chat_template, or set another pad_token"
        )


def fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 over the template and the ids of the special tokens: everything that shapes a prompt but its text."""
    shape = [tokenizer.chat_template, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    shape += [tokenizer.convert_tokens_to_ids(token) for token in (TURN_START, TURN_END)]
    return hashlib.sha256(json.dumps(shape, ensure_ascii=False).encode()).hexdigest()[:16]


def record_fingerprint(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel | None" = None) -> str:
    """Record the fingerprint in what `save_pretrained` writes: tokenizer_config.json and the model's config.json."""
    value = fingerprint(tokenizer)
    tokenizer.init_kwargs[_RECORD] = value
    if model is not None:
        setattr(model.config, _RECORD, value)
    return value


def keep_fingerprint(tokenizer: "PreTrainedTokenizerBase", trained: str | None) -> None:
    """Record the fingerprint of the template that a model was trained with, if one is known, whatever is here now."""
    if trained is not None:
        tokenizer.init_kwargs[_RECORD] = trained


def recorded_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The fingerprint of the template that a model was trained with; None for one from elsewhere."""
    return tokenizer.init_kwargs.get(_RECORD)


def check_chat_template(
    tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig | None" = None, *, allow_mismatch: bool = False
) -> None:
    """Refuse a tokenizer that would not build the prompts its model was trained on.

    A model from elsewhere carries no fingerprint; it needs only some chat template.

    Raises:
        UserError: Without a chat template, or if it differs from the one recorded at training.
    """
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise UserError(
            f"{name}: has no chat template (chat_template.jinja), so it is a base model, not a chat model; "
            "fine-tune it with recipes/finetune.py first"
        )
    # What the training recorded must be what is here now.
    recorded = {
        "tokenizer_config.json": recorded_fingerprint(tokenizer),
        "config.json": getattr(config, _RECORD, None),
    }
    actual = fingerprint(tokenizer)
    for file, value in recorded.items():
        if value not in (None, actual) and not allow_mismatch:
            raise UserError(
                f"{name}: the chat template or its special tokens differ from those of the training ({file} says "
                f"{value}, found {actual}); restore the trained template, or pass --allow-template-mismatch to go on"
            )
