"""What guards do to the reasoning, the text and the calls of an answer: the same however it is cut into parts."""

import asyncio
import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfchat.chat import CallPart, whole_calls
from hfchat.safety.guards_file import load_guards
from hfchat.serving.engines.engine import Piece
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.record import RequestRecord
from hfchat.serving.openai.formats import Part
from hfchat.serving.openai.guarding import Guarding
from tests.serving.conftest import MODEL

REDACT = "- {type: lexicon, action: redact, applies_to: [answer]}"
BLOCK = "- {type: lexicon, action: block, message: No., applies_to: [answer]}"
WHOLE = "- {type: lexicon, action: block, message: No., release: whole, applies_to: [answer]}"
PERSONAL = "- {type: pii, action: redact, applies_to: [answer]}"
FLAG = "- {type: lexicon, action: flag, applies_to: [answer]}"


def guarding(guards, tmp_path):
    path = tmp_path / "guards.yaml"
    path.write_text(guards, encoding="utf-8")
    return Guarding(load_guards(path), Slots(1, 1))


def parts_of(answer, cuts):
    """An answer, which is of reasoning, texts and calls, in parts that are cut at these places."""
    parts = []
    for number, (kind, content) in enumerate(answer):
        places = [0, *sorted({cut % (len(content) + 1) for cut in cuts[number::3]} - {0, len(content)}), len(content)]
        pieces = [content[begin:end] for begin, end in pairwise(places)]
        if kind == "call":  # its name is in the first part
            name, _, arguments = content.partition("(")
            parts.append(Part(0, "", calls=(CallPart(0, name),)))
            half = cuts[0] % (len(arguments) + 1) if cuts else 0
            parts += [Part(0, "", calls=(CallPart(0, None, half),)) for half in (arguments[:half], arguments[half:])]
        else:
            parts += [Part(0, piece) if kind == "text" else Part(0, "", reasoning=piece) for piece in pieces]
    return [*parts, Part(0, "", finish_reason="stop")]


def sent(guarding, parts, is_json=False):
    """What is sent of an answer in all, and each part of it."""
    record = RequestRecord()

    async def generated():
        for part in parts:
            yield part

    async def read():
        return [part async for part in guarding.answer(generated(), record, is_json)]

    out = asyncio.run(read())
    whole = {
        "reasoning": "".join(part.reasoning for part in out),
        "text": "".join(part.text for part in out),
        "calls": [(call.name, call.arguments) for call in whole_calls(c for part in out for c in part.calls)],
        "finish_reason": out[-1].finish_reason,
    }
    return whole, record.findings


FINE = [("reasoning", "Let me think. "), ("text", "I will look. "), ("call", 'find({"what": "a cat"}')]
ANSWERS = {
    "fine": FINE,
    "in the reasoning": [("reasoning", "Oh shit, no. So be it. "), *FINE[1:]],
    "in the text": [FINE[0], ("text", "Well, sh1t happens. And more"), FINE[2]],
    "at the end of the reasoning": [("reasoning", "Oh shit"), *FINE[1:]],
    "in an argument": [*FINE[:2], ("call", 'find({"what": ["a", "some shit"], "n": 3}')],
    "in a key": [*FINE[:2], ("call", 'find({"shit": 1}')],
    "in a name": [*FINE[:2], ("call", 'shit({"what": 1}')],
    "in escapes": [*FINE[:2], ("call", 'find({"what": "\\u0073hit"}')],
    "in the second call": [FINE[2], ("call", 'find({"what": "shit"}')],
    "in a call that broke off": [("call", 'find({"what": "shi'), ("call", 'find({"what": "shit')],
    "in reasoning after the text": [FINE[1], ("reasoning", "Oh shit."), ("text", "Done.")],
    "in text around a call": [("text", "Oh sh"), FINE[2], ("text", "it, well. ")],
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("guards", [REDACT, BLOCK, WHOLE, FLAG])
def test_an_answer_is_the_same_however_it_is_cut(tmp_path, guards, name):
    flags = guards == FLAG
    guards = guarding(guards, tmp_path)
    whole, findings = sent(guards, parts_of(ANSWERS[name], []))
    written = json.dumps(whole)
    assert bool(findings) == (name != "fine")
    assert flags or not {"shit", "sh1t"} & set(re.findall(r"\w+", written))

    @given(st.lists(st.integers(0, 200), max_size=40))
    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    def check(cuts):
        assert sent(guards, parts_of(ANSWERS[name], cuts)) == (whole, findings)

    check()


def test_what_is_redacted_and_what_is_blocked(tmp_path):
    redacting = guarding(REDACT, tmp_path)
    outcomes = {name: sent(redacting, parts_of(answer, []))[0] for name, answer in ANSWERS.items()}
    assert outcomes["in the reasoning"]["reasoning"] == "Oh ***, no. So be it. "
    assert outcomes["in the reasoning"]["calls"] == [("find", '{"what": "a cat"}')]
    assert outcomes["in an argument"]["calls"] == [("find", '{"what": ["a", "some ***"], "n": 3}')]
    assert outcomes["in escapes"]["calls"] == [("find", '{"what": "***"}')]
    assert outcomes["in reasoning after the text"]["reasoning"] == "\n\nOh ***."
    # What must stay as it is cannot be redacted.
    for name in ("in a key", "in a name"):
        blocked = outcomes[name]
        assert (blocked["calls"], blocked["finish_reason"]) == ([], "content_filter")
        assert blocked["text"] == "I will look. \n\nI cannot help with that."
    blocking = guarding(BLOCK, tmp_path)
    outcomes = {name: sent(blocking, parts_of(answer, []))[0] for name, answer in ANSWERS.items()}
    assert outcomes["in the reasoning"] == {
        "reasoning": "Oh ",
        "text": "No.",
        "calls": [],
        "finish_reason": "content_filter",
    }
    assert outcomes["in the text"]["text"] == "Well, \n\nNo."
    assert outcomes["in the second call"]["calls"] == []  # none of them: a client would run the first
    assert outcomes["fine"]["calls"] == [("find", '{"what": "a cat"}')]


def test_a_number_is_not_redacted_but_blocked(tmp_path):
    personal = guarding(PERSONAL, tmp_path)
    answer = [("call", 'pay({"to": "jane@gmail.com", "card": "4111 1111 1111 1111"}')]
    assert sent(personal, parts_of(answer, []))[0]["calls"] == [("pay", '{"to": "[email]", "card": "[card]"}')]
    answer = [("call", 'pay({"card": 4111111111111111}')]
    assert sent(personal, parts_of(answer, []))[0]["finish_reason"] == "content_filter"


def test_json_that_was_asked_for_stays_valid(tmp_path):
    answer = [("text", '{"mail": "jane@gmail.com", "n": [1, null]}')]
    personal = guarding(PERSONAL, tmp_path)
    for cuts in ([], [3, 11, 14, 20]):
        whole, _ = sent(personal, parts_of(answer, cuts), is_json=True)
        assert json.loads(whole["text"]) == {"mail": "[email]", "n": [1, None]}
    broken = [("text", '{"mail": "jane@gmail.com", "n": [1, nu')]  # `length`
    assert sent(personal, parts_of(broken, []), is_json=True)[0]["text"] == '{"mail": "[email]", "n": [1, nu'
    number = [("text", '{"card": 4111111111111111}')]
    assert sent(personal, parts_of(number, []), is_json=True)[0]["finish_reason"] == "content_filter"


@pytest.fixture
def guarded(serve, scripted, tmp_path):
    def start(guards, **script):
        path = tmp_path / "guards.yaml"
        path.write_text(guards, encoding="utf-8")
        return serve(scripted(**{"context_length": 1000} | script), guards=load_guards(path))

    return start


def test_a_call_in_a_running_server_is_held_until_it_is_known(guarded):
    calls = [
        Piece("", 1, calls=(CallPart(0, "find", '{"what": "sh'),)),
        Piece("", 1, calls=(CallPart(0, None, 'it"}'),)),
    ]
    served = guarded(REDACT, pieces=["So. ", *calls], finish_reason="tool_calls")
    whole = served.chat().json()["choices"][0]
    assert whole["message"]["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"what": "***"}'}
    assert whole["finish_reason"] == "tool_calls"
    events = [line.removeprefix("data: ") for line in served.chat(stream=True).text.splitlines() if line]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert call["function"] == {"name": "find", "arguments": '{"what": "***"}'}


CALL = {"id": "call_0", "type": "function", "function": {"name": "find", "arguments": '{"what": "some shit", "n": 1}'}}
TOOL = {
    "type": "function",
    "function": {"name": "find", "description": "Finds shit.", "parameters": {"type": "object"}},
}
NAMED = {"name": "shit", "arguments": "{}"}
ASKED = {
    "messages": [
        {"role": "user", "content": "Find shit"},
        {"role": "assistant", "content": None, "reasoning_content": "What shit?", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_0", "content": "Here is the shit"},
    ],
    "tools": [TOOL],
    "chat_template_kwargs": {"topic": "shit"},
}


def test_all_that_a_prompt_is_made_of_is_redacted(guarded):
    served = guarded(REDACT.replace("answer", "prompt"))
    assert served.chat(**ASKED).status_code == 200
    chat = served.engine.chats[-1]
    arguments = {"what": "some ***", "n": 1}
    assert chat.messages == [
        {"role": "user", "content": "Find ***"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "What ***?",
            "tool_calls": [CALL | {"function": {"name": "find", "arguments": arguments}}],
        },
        {"role": "tool", "content": "Here is the ***", "tool_call_id": "call_0"},
    ]
    assert chat.tools[0]["function"]["description"] == "Finds ***."
    assert chat.template_options == {"topic": "***"}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "shit"}}]},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"properties": {"shit": {}}}}}]},
        {
            "messages": [
                {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "shit", "arguments": "{}"}}]}
            ]
        },
        {"chat_template_kwargs": {"shit": 1}},
    ],
)
def test_a_prompt_whose_names_would_be_redacted_is_blocked(guarded, fields):
    served = guarded(REDACT.replace("answer", "prompt"))
    choice = served.chat(**fields).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("I cannot help with that.", "content_filter")
    assert served.engine.started == 0


def test_a_prompt_of_more_strings_than_guards_can_read_is_refused(guarded):
    served = guarded(BLOCK.replace("answer", "prompt"))
    body = {"chat_template_kwargs": {"a": [str(number) for number in range(20_001)]}}
    error = served.chat(**body).json()["error"]
    assert (error["param"], served.engine.started) == ("messages", 0)
    assert served.openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
