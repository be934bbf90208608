import copy
import json

import pytest
from datasets import Dataset

from hfchat import chat_template
from hfchat.dataset import as_before_arrow
from hfchat.errors import UserError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye."},
    {"role": "assistant", "content": "Goodbye."},
]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city, now: 'rain' & more.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


WITH_TOOLS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is Köln?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [call("weather", city="Köln"), call("time")]},
    {"role": "tool", "content": '{"sky": "grey"}'},
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "Grey. Rome?"},
    {"role": "user", "content": "Yes."},
    {"role": "assistant", "content": None, "tool_calls": [call("weather", city="Rome")]},
    {"role": "tool", "content": "sun"},
    {"role": "assistant", "content": "Sunny."},
]

# As Qwen2.5's template writes it (trl/chat_templates/qwen2_5.jinja).
RENDERED = """<|im_start|>system
Be brief.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "weather", "description": "The weather in a city, now: 'rain' & more.", \
"parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
{"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
How is Köln?<|im_end|>
<|im_start|>assistant
Let me see.
<tool_call>
{"name": "weather", "arguments": {"city": "Köln"}}
</tool_call>
<tool_call>
{"name": "time", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
{"sky": "grey"}
</tool_response>
<tool_response>
12:00
</tool_response><|im_end|>
<|im_start|>assistant
Grey. Rome?<|im_end|>
<|im_start|>user
Yes.<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "weather", "arguments": {"city": "Rome"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
sun
</tool_response><|im_end|>
<|im_start|>assistant
Sunny.<|im_end|>
"""


def render(tokenizer, messages, tools=None, **settings):
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **settings)


def test_a_conversation_in_text_alone_is_chatml(tokenizer):
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n"
        "<|im_start|>assistant\nGoodbye.<|im_end|>\n"
    )
    assert render(tokenizer, MESSAGES) == expected
    assert render(tokenizer, MESSAGES, tools=[]) == expected
    assert render(tokenizer, MESSAGES, add_generation_prompt=True) == expected + "<|im_start|>assistant\n"
    assert render(tokenizer, [message | {"tool_calls": None, "name": None} for message in MESSAGES]) == expected


def test_tools_their_calls_and_their_results_are_written_as_servers_parse_them(tokenizer):
    assert render(tokenizer, WITH_TOOLS, TOOLS) == RENDERED
    without_system = RENDERED.replace("Be brief.\n\n", "")
    assert render(tokenizer, WITH_TOOLS[1:], TOOLS) == without_system


def test_what_is_called_and_the_end_of_that_turn_is_supervised_and_no_result(tokenizer):
    encoded = tokenizer.apply_chat_template(
        WITH_TOOLS, tools=TOOLS, return_dict=True, return_assistant_tokens_mask=True
    )
    supervised = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    turns = RENDERED.split("<|im_start|>assistant\n")[1:]
    assert tokenizer.decode(supervised) == "".join(turn.partition("<|im_end|>")[0] + "<|im_end|>" for turn in turns)


@pytest.mark.parametrize("answer", [2, 5, 7, 9])
def test_a_prompt_with_tools_is_a_prefix_of_the_conversation(tokenizer, answer):
    prompt = render(tokenizer, WITH_TOOLS[:answer], TOOLS, add_generation_prompt=True)
    assert render(tokenizer, WITH_TOOLS, TOOLS).startswith(prompt)


def test_arguments_may_be_json_as_in_openai_s_api(tokenizer):
    def as_json(message):
        calls = [
            {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            }
            for call in message.get("tool_calls", [])
        ]
        return message | ({"tool_calls": calls} if calls else {})

    assert render(tokenizer, [as_json(message) for message in WITH_TOOLS], TOOLS) == RENDERED


def test_what_was_thought_is_written_and_learned_before_what_is_said(tokenizer):
    messages = [
        {"role": "user", "content": "Odd?"},
        {"role": "assistant", "content": "No.", "reasoning_content": "4 is 2 + 2.\n"},
        {"role": "user", "content": "Time?", "reasoning_content": None},
        {"role": "assistant", "content": None, "reasoning_content": "A call.", "tool_calls": [call("time")]},
        {"role": "tool", "content": "12:00"},
        {"role": "assistant", "content": "Noon.", "reasoning_content": None},
    ]
    said = [
        "<think>\n4 is 2 + 2.\n</think>\n\nNo.<|im_end|>",
        '<think>\nA call.\n</think>\n\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call><|im_end|>',
        "Noon.<|im_end|>",
    ]
    turns = render(tokenizer, messages).split("<|im_start|>assistant\n")[1:]
    assert [turn.partition("<|im_end|>")[0] + "<|im_end|>" for turn in turns] == said
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    supervised = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(supervised) == "".join(said)


def test_a_null_that_somebody_wrote_is_written(tokenizer):
    tool = {"type": "function", "function": {"name": "go", "parameters": {"enum": ["x", None], "default": None}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call("go", to=None, by=[None])]}
    text = render(tokenizer, [{"role": "user", "content": "Go."}, called], [tool])
    assert json.dumps(tool) in text
    assert '{"name": "go", "arguments": {"to": null, "by": [null]}}' in text


def test_what_arrow_adds_to_rows_is_left_out(tokenizer):
    """In a column of its own, all calls get the arguments of all, and all tools the parameters of all."""
    other = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "tool_calls": [call("go", to={"x": [{"y": 1}]})]},
    ]
    tools = [{"type": "function", "function": {"name": "go", "parameters": {"properties": {"to": {"title": "To"}}}}}]
    rows = Dataset.from_list([{"messages": WITH_TOOLS, "tools": TOOLS}, {"messages": other, "tools": tools}])
    assert rows[1]["messages"][1]["tool_calls"][0]["function"]["arguments"]["city"] is None
    read = [as_before_arrow(row, rows.features.arrow_schema) for row in rows]
    first, second = (render(tokenizer, row["messages"], row["tools"]) for row in read)
    assert (first, second) == (RENDERED, render(tokenizer, other, tools))
    assert '{"name": "go", "arguments": {"to": {"x": [{"y": 1}]}}}' in second


def test_the_template_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    assert render(AutoTokenizer.from_pretrained(tmp_path), WITH_TOOLS, TOOLS) == RENDERED


def test_supervised_is_what_the_assistant_says_and_its_end_of_turn(tokenizer):
    encoded = tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    supervised = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(supervised) == "Hi.<|im_end|>Goodbye.<|im_end|>"


def test_the_prompt_is_a_prefix_of_the_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(MESSAGES[:3], tokenize=False)
    assert whole == prompt + "Hi.<|im_end|>\n"


def test_padding_is_not_the_end_of_a_turn(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token == chat_template.TURN_END


def test_the_fingerprint_survives_saving_and_a_changed_template_is_refused(tokenizer, chat_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(chat_model)
    reloaded = AutoTokenizer.from_pretrained(chat_model)
    chat_template.check_chat_template(reloaded, model.config)
    reloaded.chat_template = reloaded.chat_template.replace("'\\n'", "' '", 1)
    with pytest.raises(UserError, match="differ from those of the training"):
        chat_template.check_chat_template(reloaded, model.config)
    chat_template.check_chat_template(reloaded, model.config, allow_mismatch=True)
    reloaded.init_kwargs.pop("chat_template_fingerprint")
    with pytest.raises(UserError, match=r"config\.json says"):
        chat_template.check_chat_template(reloaded, model.config)


def test_another_end_of_turn_token_is_another_fingerprint(tokenizer):
    before = chat_template.fingerprint(tokenizer)
    eos = tokenizer.eos_token
    try:
        tokenizer.eos_token = chat_template.END_OF_TEXT
        assert chat_template.fingerprint(tokenizer) != before
    finally:
        tokenizer.eos_token = eos


def test_a_base_model_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        with pytest.raises(UserError, match="no chat template"):
            chat_template.check_chat_template(tokenizer)
    finally:
        tokenizer.chat_template = template


DEFAULT = 'You are "Ada"{{%}}.'

# As SmolLM2's template has it.
CHATML_WITH_A_DEFAULT = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    f"{{{{ '<|im_start|>system\n{DEFAULT}<|im_end|>\n' }}}}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def with_a_default(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = CHATML_WITH_A_DEFAULT
    return changed


def test_what_the_system_says_by_default_is_kept(with_a_default):
    before = [
        render(with_a_default, messages, add_generation_prompt=generate)
        for messages in (MESSAGES, MESSAGES[1:])
        for generate in (False, True)
    ]
    chat_template.set_chat_template(with_a_default)
    after = [
        render(with_a_default, messages, add_generation_prompt=generate)
        for messages in (MESSAGES, MESSAGES[1:])
        for generate in (False, True)
    ]
    assert after == before
    assert DEFAULT in after[-1]
    kept = with_a_default.chat_template
    chat_template.set_chat_template(with_a_default)
    assert with_a_default.chat_template == kept


def test_what_the_system_says_by_default_is_not_learned(with_a_default):
    chat_template.set_chat_template(with_a_default)
    tokens = with_a_default.apply_chat_template(
        MESSAGES[1:], return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    learned = [id_ for id_, mask in zip(tokens["input_ids"], tokens["assistant_masks"], strict=True) if mask]
    assert with_a_default.decode(learned) == "Hi.<|im_end|>Goodbye.<|im_end|>"


def test_with_a_default_system_message_tools_are_written_after_it(with_a_default):
    chat_template.set_chat_template(with_a_default)
    assert render(with_a_default, WITH_TOOLS[1:], TOOLS) == RENDERED.replace("Be brief.", DEFAULT, 1)


def test_the_default_system_message_can_be_another_or_none(with_a_default):
    chat_template.set_chat_template(with_a_default, system_message="Be kind.")
    assert chat_template.default_system_message(with_a_default) == "Be kind."
    chat_template.set_chat_template(with_a_default, system_message="")
    assert with_a_default.chat_template == chat_template.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}",
        "{{ raise_exception('needs a system turn') }}",
        "{{ '<|im_start|>system\n' + strftime_now('%d') + '<|im_end|>\n<|im_start|>user\n?<|im_end|>\n' }}",
    ],
)
def test_a_template_that_is_not_chatml_or_says_the_date_has_no_default(with_a_default, template):
    with_a_default.chat_template = template
    assert chat_template.default_system_message(with_a_default) == ""


def test_a_vocabulary_without_turn_tokens_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(UserError, match=r"no <\|im_start\|> and no <\|im_end\|>"):
        chat_template.set_chat_template(plain)


@pytest.mark.parametrize(
    ("pad", "problem"), [("<|im_end|>", "would never learn to stop"), (None, "another one to pad")]
)
def test_a_tokenizer_that_pads_with_its_end_of_turn_or_not_at_all_is_refused(tokenizer, pad, problem):
    chat_template.check_end_of_turn(tokenizer)
    changed = copy.deepcopy(tokenizer)
    changed.pad_token = pad
    with pytest.raises(UserError, match=problem):
        chat_template.check_end_of_turn(changed)


@pytest.mark.parametrize(
    ("template", "switch"),
    [
        ("{% if enable_thinking is defined %}<think>{% endif %}", "enable_thinking"),
        ("{% generation %}{{ '<think>' if thinking else '' }}{% endgeneration %}", "thinking"),
        ("{# enable_thinking #}what you are thinking", None),
    ],
)
def test_the_switch_for_thinking_is_a_variable_that_the_template_reads(template, switch):
    assert chat_template.thinking_switch(template) == switch
