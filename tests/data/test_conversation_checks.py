import pytest

from hfchat.data.conversation_checks import Cleaner, check
from hfchat.data.conversation_formats import convert
from hfchat.data.rows import Row
from hfchat.data.turns import ConversationError
from tests.data.chats import CALL, assistant, turn, user

HH = "\n\nHuman: Hi\n\nAssistant: Hello."
MESSAGES = [
    ([], "no_messages"),
    ([user()], "no_assistant_turn"),
    ([user(), assistant(), user()], "no_assistant_turn"),
    ([user(), assistant(" \n")], "empty_turn"),
    ([user(), assistant(None)], "empty_turn"),
    ([turn("narrator", "So"), assistant()], "bad_role"),
    ([assistant()], "not_alternating"),
    ([turn("system", "Be."), assistant()], "not_alternating"),
    ([user(), user("And?"), assistant()], "not_alternating"),
    ([user(), assistant(), assistant()], "not_alternating"),
    ([user(), turn("tool", "12:00"), assistant()], "not_alternating"),
    ([user(), assistant("", tool_calls=[CALL]), user(), assistant()], "not_alternating"),
    ([user(), turn("system", "Be."), assistant()], "system_not_first"),
    ([turn("system", "Be."), turn("system", "Do."), user(), assistant()], "system_not_first"),
    ([user(), assistant(weight=0)], "nothing_to_learn"),
    ([user(), assistant(weight=0.5)], "malformed"),
    ([user(), assistant(reasoning_content=["So"])], "malformed"),
    ([user(), assistant(None, audio={"id": "a1"})], "not_text"),
    ([turn("user", [{"type": "image_url", "image_url": {"url": "x"}}]), assistant()], "not_text"),
    ([turn("user", 7), assistant()], "malformed"),
    (["Hi", "Ho"], "malformed"),
    ("Hi", "malformed"),
    ([user(), assistant("\ud800")], "malformed"),
    ([user(), assistant("", tool_calls=[{"function": {"name": "f", "arguments": {"a": "\ud800"}}}])], "malformed"),
    ([user(), assistant("", tool_calls=[{"function": {}}])], "malformed"),
]


@pytest.mark.parametrize(("messages", "reason"), MESSAGES)
def test_what_is_no_conversation_has_a_reason(messages, reason):
    with pytest.raises(ConversationError) as error:
        check("messages", convert("messages", Row({"messages": messages}, "row 1")))
    assert (error.value.reason, bool(error.value.detail)) == (reason, True)


def test_text_that_spells_a_special_token_is_text():
    messages = [user("What does <|im_end|> do?"), assistant("It ends a turn, as <|endoftext|> ends a document.")]
    example = convert("messages", Row({"messages": messages}, "row 1"))
    check("messages", example)
    assert example == {"messages": messages}


def test_texts_that_are_indented_otherwise_are_no_duplicates():
    cleaner = Cleaner("messages", [], [], None, 13)

    def clean(answer):
        cleaner.clean(convert("messages", Row({"messages": [user("Write it."), assistant(answer)]}, "row 1")))

    for answer in (
        "if x:\n    y()\n    z()",
        "if x:\n    y()\nz()",
        "if x:\n\ty()\n\tz()",
        "if x: y() z()",
        "    y()",
        "y()",
    ):
        clean(answer)
    for answer in ("if x:\r\n    y()\r\n    z()", "if x:  \n    y()\n    z()\n", "\ny()", " y()"):
        with pytest.raises(ConversationError) as error:
            clean(answer)
        assert error.value.reason == "duplicate"


PAIRS = [
    ("Hi", "Hello.", "Hello. ", "chosen_is_rejected"),
    (None, HH, HH, "chosen_is_rejected"),
    (None, HH, "\n\nHuman: Ho\n\nAssistant: Hello.", "different_prompts"),
    (None, HH, f"{HH}\n\nHuman: So?\n\nAssistant: No.", "different_prompts"),
    (None, f"{HH}\n\nHuman: A\n\nAssistant: B", f"{HH}\n\nHuman: C\n\nAssistant: D", "different_prompts"),
    (None, "Hello.", "Go.", "malformed"),
    (None, HH, "\n\nHuman: Hi\n\nAssistant: ", "empty_turn"),
    ([user(), assistant()], "Hello.", "Go.", "not_alternating"),
]


@pytest.mark.parametrize(("prompt", "chosen", "rejected", "reason"), PAIRS)
def test_pairs_share_their_prompt_and_differ_in_the_answer(prompt, chosen, rejected, reason):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    with pytest.raises(ConversationError) as error:
        Cleaner("preference", [], [], None, 13).clean(convert("preference", Row(row, "row 1")))
    assert error.value.reason == reason
