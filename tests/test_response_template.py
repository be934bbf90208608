"""What a tokenizer says about its model's answers, or what is known by its chat template."""

import copy

import pytest
from transformers import AutoTokenizer

from hfchat.chat_template import CHAT_TEMPLATE, fingerprint, set_chat_template
from hfchat.errors import UserError
from hfchat.response_template import CallForm, known_style, response_style

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OWN = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<reason>", "close": "</reason>"},
        "tool_calls": {
            "open": "<|call|>",
            "close": "<|end_call|>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {},
    },
}


@pytest.fixture
def declaring(tokenizer):
    def make(template, chat_template=CHATML + "{# <|call|> #}"):
        made = copy.deepcopy(tokenizer)
        made.chat_template, made.response_template = chat_template, template
        return made

    return make


def test_our_template_is_saved_with_its_response_template(tokenizer, tmp_path):
    made = copy.deepcopy(tokenizer)
    before = fingerprint(made)
    set_chat_template(made)
    assert fingerprint(made) == before
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.response_template == made.response_template == known_style(CHAT_TEMPLATE).template
    assert response_style(loaded) == known_style(CHAT_TEMPLATE)
    asked = [{"role": "user", "content": "?"}]
    call = {"type": "function", "function": {"name": "get", "arguments": {"a": [1, "é"]}}}
    answer = {"role": "assistant", "content": "I look.", "tool_calls": [call, call]}
    prompt = loaded.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = loaded.apply_chat_template([*asked, answer], tokenize=False)
    assert loaded.parse_response(whole.removeprefix(prompt), prefix=prompt) == answer


def test_a_model_whose_template_writes_neither_calls_nor_reasoning_has_no_style(declaring):
    assert response_style(declaring(None, CHATML)) is None


def test_a_declared_template_comes_first_and_its_call_form_is_one_that_it_reads_back(declaring):
    style = response_style(declaring(OWN))
    assert style.template == OWN
    assert style.call_form == CallForm("<|call|>", "<|end_call|><|call|>", "<|end_call|>", "name", "arguments")
    assert style.thinking == ("<reason>", "</reason>")


@pytest.mark.parametrize("change", [{"content": "kv-lines"}, {"open": "<|other|>"}])
def test_calls_that_can_only_be_read_have_no_form(declaring, change):
    changed = copy.deepcopy(OWN)
    changed["fields"]["tool_calls"] |= change
    assert response_style(declaring(changed)).call_form is None


def test_a_template_that_an_older_version_saved_keeps_its_call_form(declaring):
    older = copy.deepcopy(known_style(CHAT_TEMPLATE).template)
    older["fields"]["tool_calls"]["open_pattern"] = r"<tool_call>\s*"
    style = response_style(declaring(older, CHAT_TEMPLATE))
    assert style.call_form == known_style(CHAT_TEMPLATE).call_form


@pytest.mark.parametrize(
    "wrong",
    [[], {"fields": {}}, {"fields": {"content": {}}}, {"start_anchor": "x", "fields": {"content": {"open": 1}}}],
)
def test_a_template_that_is_wrong_is_told(declaring, wrong):
    with pytest.raises(UserError, match=r"response_template of tokenizer_config.json is wrong"):
        response_style(declaring(wrong))


@pytest.mark.parametrize(
    "pattern", [r"(a+)+<call>", r"(?:\s*\w*)*<call>", r"<call>(?:x|xx|x{3})*y", r"\s*\s*\s*\s*<call>", r"(.*,){11}x"]
)
def test_a_regular_expression_that_can_take_for_ever_is_refused(declaring, pattern):
    changed = copy.deepcopy(OWN)
    del changed["fields"]["tool_calls"]["open"]
    changed["fields"]["tool_calls"]["open_pattern"] = pattern
    with pytest.raises(UserError, match="can take for ever"):
        response_style(declaring(changed))


@pytest.mark.parametrize("name", ["<tool_call> <function= <parameter=", "[TOOL_CALLS] [ARGS]"])
def test_the_known_ones_are_not_refused_when_they_are_declared(declaring, name):
    changed = copy.deepcopy(known_style(f"{name} <think> </think>").template)
    changed["defaults"] = {"role": "assistant", "declared": True}
    assert response_style(declaring(changed)).template == changed
