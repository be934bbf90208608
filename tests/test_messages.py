import pytest

from hfchat.errors import UserError
from hfchat.messages import ROLES_WITH_TOOLS, check_messages, find_fault

USER = {"role": "user", "content": "Time?"}
ANSWER = {"role": "assistant", "content": "Noon."}
RESULT = {"role": "tool", "content": "12:00"}


def calls(*found):
    return {"role": "assistant", "content": None, "tool_calls": list(found)}


CALL = {"type": "function", "function": {"name": "time", "arguments": {"zone": "UTC"}}}


@pytest.mark.parametrize(
    "messages",
    [
        [USER, calls(CALL)],
        [USER, calls(CALL, CALL), RESULT, RESULT, ANSWER],
        [USER, calls(CALL), RESULT, calls(CALL), RESULT, ANSWER | {"tool_calls": None}],
        [USER, calls({"name": "time", "arguments": '{"zone": "UTC"}'}), RESULT, ANSWER],
        [USER, calls({"name": "time", "arguments": None, "function": None}), RESULT, ANSWER],
    ],
)
def test_a_conversation_may_use_tools_where_they_may_speak(messages):
    assert find_fault(messages, ROLES_WITH_TOOLS) is None
    with pytest.raises(UserError, match=r"row 3: turn 1 \(assistant\) calls tools; it must be text alone"):
        check_messages(messages, "row 3")


@pytest.mark.parametrize(
    ("messages", "reason", "words"),
    [
        ([USER, RESULT, ANSWER], "not_alternating", "turn 1 is a tool's result, but no tool was called before it"),
        ([USER, calls(CALL), RESULT, ANSWER, RESULT, ANSWER], "not_alternating", "turn 4 is a tool's result"),
        ([USER, calls({"function": {"arguments": {}}})], "malformed", "turn 1 (assistant) has a tool call"),
        ([USER, calls("time")], "malformed", "without a name"),
        ([USER, calls({"name": "", "arguments": {}})], "malformed", "without a name"),
        ([USER, calls({"name": "time", "arguments": "{"})], "malformed", "calls time with arguments that"),
        ([USER, calls({"name": "time", "arguments": "[1]"})], "malformed", "that are not a JSON object"),
        ([USER, calls({"name": "time", "arguments": [1]})], "malformed", "that are not a JSON object"),
        ([USER | {"tool_calls": [CALL]}, ANSWER], "bad_role", "turn 0 (user) calls tools; only the assistant may"),
        ([USER, calls()], "empty_turn", "turn 1 (assistant) has no content"),
        ([USER | {"content": [{"text": "Hi"}]}, ANSWER], "malformed", "turn 0 (user) must have a text for its"),
        ([USER, calls(CALL), RESULT], "no_assistant_turn", "not the tool's"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_use_of_tools_is_said(messages, reason, words):
    fault = find_fault(messages, ROLES_WITH_TOOLS)
    assert fault[0] == reason
    assert words in fault[1]
