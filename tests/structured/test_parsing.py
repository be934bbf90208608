"""An answer comes in pieces, and what is read of it is the same however it was cut."""

import json
import random

import pytest

from hfchat.chat import CallPart, Function
from hfchat.response_template import known_style
from hfchat.structured.parsing import AnswerParser

HERMES = known_style("<tool_call>")
THINKING = known_style("<tool_call> <think> </think>")
LLAMA = known_style('<|start_header_id|> "parameters": ')
MISTRAL = known_style("[TOOL_CALLS]")
MISTRAL_ARGS = known_style("[TOOL_CALLS] [ARGS]")
QWEN_XML = known_style("<tool_call> <function= <parameter=")
FUNCTIONS = [Function("get"), Function("put", {"properties": {"n": {"type": "integer"}}})]
BEGINS = "<|im_start|>assistant\n"


def parse(tokenizer, style, pieces, functions=FUNCTIONS, prompt_end=BEGINS):
    parser = AnswerParser(tokenizer, style, functions, prompt_end)
    parts = [*map(parser.push, pieces), parser.finish()]
    text, reasoning = ("".join(getattr(part, field) for part in parts) for field in ("text", "reasoning"))
    return text, reasoning, [(call.name, call.arguments) for part in parts for call in part.calls]


def cuts(text, count=25):
    draw = random.Random(text)
    yield [text]
    yield list(text)
    for _ in range(count):
        places = sorted(draw.sample(range(len(text) + 1), min(len(text), draw.randint(1, 12))))
        yield [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def call(name="get", arguments='{"a": null, "b": "é"}'):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


READ = ("get", '{"a": null, "b": "é"}')
ANSWERS = [
    # Text and calls.
    (HERMES, "Just text < and > tool_call.\n\n", ("Just text < and > tool_call.\n\n", "", [])),
    (HERMES, call(), ("", "", [READ])),
    (HERMES, f"I look.\n{call()}\n", ("I look.", "", [READ])),
    (HERMES, f"{call()}\n{call('put', '{}')}", ("", "", [READ, ("put", "{}")])),
    (HERMES, f"I look.\n\n{call()}\nDone.\n", ("I look.\nDone.\n", "", [READ])),
    (HERMES, f"a <<{call()}", ("a <<", "", [READ])),
    (HERMES, f"<think>{call()}", ("<think>", "", [READ])),
    # Broken calls are the text that the model wrote.
    (HERMES, f"a\n{call('nobody')}\n{call()} b", (f"a\n{call('nobody')} b", "", [READ])),
    (HERMES, call()[:-30], (call()[:-30], "", [])),
    *[
        (HERMES, f"a {broken} b", (f"a {broken} b", "", []))
        for broken in (
            call(arguments='"text"'),
            call(arguments="[1]"),
            call(arguments='{"a": NaN}'),
            call(arguments='{"a": 1e999}'),
            call(arguments='{"a": "\\ud800"}'),
            call(arguments='{"a": }'),
            call(arguments="[" * 100_000),
            '<tool_call>{"name": "get"}</tool_call>',
            '<tool_call>{"arguments": {}}</tool_call>',
            '<tool_call>{"name": ["get"], "arguments": {}}</tool_call>',
            '<tool_call>{"name": "get", "arguments": {}} and more</tool_call>',
            "<tool_call></tool_call>",
            "<tool_call>[]</tool_call>",
        )
    ],
    # Reasoning.
    (THINKING, f"<think>\nIf a < b\n\n</think>\n\nSo.\n{call()}", ("So.", "If a < b", [READ])),
    (THINKING, "<think>a << b\n<</think>c", ("c", "a << b\n<", [])),
    (THINKING, "<think>never closed </thin", ("", "never closed </thin", [])),
    (THINKING, "Text with <think> in it</think>", ("Text with <think> in it</think>", "", [])),
    # Other styles.
    (LLAMA, '{"name": "get", "parameters": {"a": 1}}', ("", "", [("get", '{"a": 1}')])),
    (LLAMA, '<|python_tag|>{"type": "function", "name": "get", "parameters": {}}', ("", "", [("get", "{}")])),
    (LLAMA, '{"name": "Ada", "age": 36}', ('{"name": "Ada", "age": 36}', "", [])),
    (LLAMA, '{"name": "get", "parameters": {}} too', ('{"name": "get", "parameters": {}} too', "", [])),
    (LLAMA, 'See {"name": "get", "parameters": {}}', ('See {"name": "get", "parameters": {}}', "", [])),
    (LLAMA, "<|python_tag|>get.call()", ("<|python_tag|>get.call()", "", [])),
    (
        MISTRAL,
        'So [TOOL_CALLS] [{"name": "get", "arguments": {}, "id": "1"}, {"name": "put", "arguments": {"n": 1}}]',
        ("So", "", [("get", "{}"), ("put", '{"n": 1}')]),
    ),
    (MISTRAL, '[TOOL_CALLS][{"name": "nobody", "arguments": {}}]', None),
    (
        MISTRAL_ARGS,
        'So[TOOL_CALLS]get[ARGS]{"a": 1}[TOOL_CALLS]put[CALL_ID]123456789[ARGS]{"n": 2}',
        ("So", "", [("get", '{"a": 1}'), ("put", '{"n": 2}')]),
    ),
    (
        QWEN_XML,
        "So\n<tool_call>\n<function=put>\n<parameter=n>\n7\n</parameter>\n</function>\n</tool_call>",
        ("So", "", [("put", '{"n": 7}')]),
    ),
]


@pytest.mark.parametrize(("style", "answer", "expected"), ANSWERS)
def test_an_answer_is_read_the_same_however_it_is_cut(tokenizer, style, answer, expected):
    # A long one is cut less often.
    for pieces in [[answer]] if len(answer) > 10_000 else cuts(answer):
        assert parse(tokenizer, style, pieces) == (expected or (answer, "", []))


@pytest.mark.parametrize(
    ("style", "answer"), [(style, answer) for style, answer, expected in ANSWERS if expected and expected[2]]
)
def test_calls_are_those_of_transformers_own_parser(tokenizer, style, answer):
    tools = [{"type": "function", "function": {"name": f.name, "parameters": f.parameters}} for f in FUNCTIONS]
    _, _, calls = parse(tokenizer, style, [answer])
    message = tokenizer.parse_response(answer, style.template, prefix="", tools=tools)
    theirs = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    assert calls == [
        (name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in theirs if name != "nobody"
    ]


@pytest.mark.parametrize("style", [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, QWEN_XML, None])
@pytest.mark.parametrize("answer", [answer for _, answer, _ in ANSWERS if len(answer) < 10_000])
def test_where_no_function_is_offered_all_is_text(tokenizer, style, answer):
    assert parse(tokenizer, style, list(answer), functions=[]) == (answer, "", [])


@pytest.mark.parametrize(
    ("prompt_end", "answer", "expected"),
    [
        (f"{BEGINS}<think>\n", "So.\n</think>\n\nYes.", ("Yes.", "So.", [])),
        (f"{BEGINS}<think>\n", "So, never closed", ("", "So, never closed", [])),
        (f"{BEGINS}<think>\n\n</think>\n\n", "Yes. <think>", ("Yes. <think>", "", [])),
        ("<\uff5cUser\uff5c>Hi<\uff5cAssistant\uff5c><think>\n", "So.</think>Yes.", ("Yes.", "So.", [])),
        ("a template that nobody knows <think>\n", "So.</think>Yes.", ("Yes.", "So.", [])),
        # What was said before the answer is not part of it.
        (f"<think> <tool_call>{BEGINS}", "Yes.", ("Yes.", "", [])),
        ("<think> <tool_call>", "Yes.", ("Yes.", "", [])),
    ],
)
def test_the_prompt_may_have_opened_the_reasoning(tokenizer, prompt_end, answer, expected):
    for pieces in cuts(answer):
        assert parse(tokenizer, THINKING, pieces, prompt_end=prompt_end) == expected


def test_a_call_comes_as_soon_as_it_is_whole_and_text_at_once(tokenizer):
    parser = AnswerParser(tokenizer, THINKING, FUNCTIONS)
    assert parser.push("Hello there").text == "Hello there"
    assert parser.push(" <").text == ""
    assert parser.push(" 1").text == " < 1"
    assert parser.push(f"\n{call()}").text == ""
    assert parser.push("\nNext").calls == (CallPart(0, *READ),)


def test_white_space_without_end_is_not_held_back(tokenizer):
    parser = AnswerParser(tokenizer, THINKING, FUNCTIONS)
    assert len(parser.push("a" + " " * 100).text) > 60
