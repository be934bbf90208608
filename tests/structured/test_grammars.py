"""What an answer may be, with calls, JSON and reasoning: texts that it may be, and that it may not."""

import pytest
from tokenizers import AddedToken

from hfchat.chat import Chat
from hfchat.response_template import CallForm, ResponseStyle
from hfchat.structured.grammars import GrammarError, answer_grammar
from hfchat.structured.masks import GrammarCompiler
from hfchat.token_ids import special_tokens
from tests.structured.conftest import is_allowed

HERMES = ResponseStyle(
    {}, CallForm("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"), ("<think>", "</think>")
)
MISTRAL = ResponseStyle({}, CallForm("[TOOL_CALLS][", ", ", "]"), ("[THINK]", "[/THINK]"))
LLAMA = ResponseStyle({}, CallForm("", None, "", arguments_key="parameters"))
STYLES = {"hermes": HERMES, "mistral": MISTRAL, "llama": LLAMA}
WEATHER = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}},
    {"type": "function", "function": {"name": "time", "parameters": None}},
]
LOOSE = [{"type": "function", "function": {**tool["function"], "strict": False}} for tool in TOOLS]


@pytest.fixture(scope="module")
def special(tokenizer):
    """The tokenizer with the marks of Mistral's calls as special tokens, as Mistral has them."""
    import copy

    special = copy.deepcopy(tokenizer)
    marks = ["[TOOL_CALLS]", "[THINK]", "[/THINK]"]
    special.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return special


@pytest.fixture(scope="module")
def special_compiler(special):
    return GrammarCompiler(special, len(special), {special.eos_token_id})


@pytest.fixture
def allowed(special, special_compiler):
    """Whether a chat may be answered by a text."""

    def is_one(chat, style, text, thinking="no"):
        grammar = answer_grammar(chat, style, thinking, special_tokens(special))
        return grammar is None or is_allowed(special_compiler, special, grammar, text)

    return is_one


def call(style, *arguments, name="weather"):
    form = style.call_form
    calls = [f'{{"name": "{name}", "{form.arguments_key}": {each}}}' for each in arguments]
    return form.opening + (form.between or "").join(calls) + form.closing


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_call_that_must_be_made_is_all_there_is(allowed, style):
    for chosen in ("required", {"type": "function", "function": {"name": "weather"}}):
        chat = Chat([], LOOSE, chosen)
        assert allowed(chat, style, call(style, '{"days": 3}'))
        assert not allowed(chat, style, "It rains.")
        assert not allowed(chat, style, "Let me see. " + call(style, '{"days": 3}'))
        # the schema is followed, strict or not, and has no other arguments
        for wrong in ('{"days": 8}', "{}", '{"days": 3, "city": "Rome"}', '{"days": 3', '"3"'):
            assert not allowed(chat, style, call(style, wrong))
        assert not allowed(chat, style, call(style, '{"days": 3}', name="wether"))
    assert allowed(Chat([], LOOSE, "required"), style, call(style, '{"zone": ["UTC"]}', name="time"))
    assert not allowed(chat, style, call(style, "{}", name="time"))


@pytest.mark.parametrize("style", [HERMES, MISTRAL])
def test_calls_are_as_many_as_may_be(allowed, style):
    two = call(style, '{"days": 3}', '{"days": 4}')
    assert allowed(Chat([], TOOLS, "required"), style, two)
    assert not allowed(Chat([], TOOLS, "required", parallel_tool_calls=False), style, two)
    assert allowed(Chat([], TOOLS, "required", parallel_tool_calls=False), style, call(style, '{"days": 3}'))
    assert not allowed(Chat([], TOOLS, "required"), style, call(style, *['{"days": 3}'] * 129))


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_strict_function_is_called_by_its_schema_or_not_at_all(allowed, style):
    chat = Chat([], TOOLS)
    assert allowed(chat, style, "It rains. <tool> [1]")
    assert allowed(chat, style, "")
    assert allowed(chat, style, call(style, '{"days": 3}'))
    assert not allowed(chat, style, call(style, '{"days": 8}'))
    assert not allowed(chat, style, call(style, "{}", name="wether"))
    assert allowed(chat, style, call(style, '{"days": "8"}', name="time"))  # not strict: any object
    assert not allowed(chat, style, call(style, "8", name="time"))
    assert not allowed(chat, style, call(style, '{"days": 3}') + " There.")
    if style is not LLAMA:  # whose calls are answers that begin with one
        assert allowed(chat, style, "Let me see.\n" + call(style, '{"days": 3}'))
        assert not allowed(chat, style, "Let me see.\n" + call(style, '{"days": 8}'))
        assert not allowed(chat, style, "x" + style.call_form.opening)


def test_white_space_around_an_opening_is_no_way_around_the_schema(allowed):
    for opening in ("<tool_call>", "<tool_call> \n", "<tool_call>\n\n"):
        assert not allowed(Chat([], TOOLS), HERMES, opening + '{"name": "weather", "arguments": {}}\n</tool_call>')


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_tools_beside_a_format_are_a_call_or_json(allowed, style):
    chat = Chat([], LOOSE, response_format={"type": "json_object"})
    assert allowed(chat, style, '{"rain": true}')
    assert allowed(chat, style, call(style, '{"any": 1}'))
    assert not allowed(chat, style, "It rains.")
    if style is not LLAMA:  # whose calls are JSON objects too
        assert not allowed(chat, style, call(style, '{"days": 3}', name="wether"))
    must = Chat([], LOOSE, "required", response_format={"type": "json_object"})
    assert allowed(must, style, call(style, '{"days": 3}'))
    assert not allowed(must, style, '{"rain": true}')
    none = Chat([], TOOLS, "none", response_format={"type": "json_object"})
    assert allowed(none, style, '{"rain": true}')
    assert style is LLAMA or not allowed(none, style, call(style, '{"days": 3}'))


@pytest.mark.parametrize("chat", [Chat([]), Chat([], LOOSE), Chat([], TOOLS, "none")])
def test_what_may_be_any_text_has_no_grammar(chat):
    assert answer_grammar(chat, HERMES, "open") is None
    assert answer_grammar(Chat([], response_format={"type": "text"}), None, "no") is None


@pytest.mark.parametrize("style", [HERMES, MISTRAL])
@pytest.mark.parametrize(
    "chat", [Chat([], response_format={"type": "json_object"}), Chat([], TOOLS, "required"), Chat([], TOOLS)]
)
def test_reasoning_comes_before_the_answer(allowed, style, chat):
    opening, closing = style.thinking
    answer = '{"a": 1}' if chat.response_format else call(style, '{"days": 3}')
    wrong = call(style, '{"days": 8}')
    # a call in the reasoning is none
    thoughts = "\nso: <tool_call> {\n" if style is HERMES else "\nso: [TOOL CALLS] {\n"
    for gap in ("", "\n\n"):
        assert allowed(chat, style, thoughts + closing + gap + answer, "open")
        assert not allowed(chat, style, thoughts + closing + gap + wrong, "open")
        assert allowed(chat, style, opening + thoughts + closing + gap + answer, "may")
        assert not allowed(chat, style, opening + thoughts + closing + gap + wrong, "may")
    assert not allowed(chat, style, answer, "open")
    assert allowed(chat, style, answer, "may")
    assert not allowed(chat, style, wrong, "may")
    assert not allowed(chat, style, opening + thoughts, "may")
    assert (
        not allowed(chat, style, opening + thoughts + closing + "\n" * 9 + answer, "may") or chat.tool_choice == "auto"
    )


def test_it_is_refused_what_cannot_be_forced():
    silent = ResponseStyle({"fields": {}}, None, None)
    for style in (None, silent):
        for chat, field in [
            (Chat([], TOOLS), "tools[0].function.strict"),
            (Chat([], TOOLS, "required"), "tool_choice"),
            (Chat([], LOOSE, response_format={"type": "json_object"}), "response_format"),
        ]:
            with pytest.raises(GrammarError, match="not known how") as refused:
                answer_grammar(chat, style, "no")
            assert refused.value.field == field
    assert answer_grammar(Chat([], response_format={"type": "json_object"}), None, "no")


def test_the_schema_to_blame_is_named():
    wrong = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}
    with pytest.raises(GrammarError) as refused:
        answer_grammar(Chat([], [*LOOSE, wrong]), HERMES, "no")
    assert refused.value.field == "tools[2].function.parameters"
    schema = {"name": "s", "schema": {"not": {}}}
    with pytest.raises(GrammarError) as refused:
        answer_grammar(Chat([], response_format={"type": "json_schema", "json_schema": schema}), None, "no")
    assert refused.value.field == "response_format.json_schema.schema"
    wrong["function"]["parameters"] = {"type": "string"}
    with pytest.raises(GrammarError, match="an object") as refused:
        answer_grammar(Chat([], [wrong]), HERMES, "no")
    assert refused.value.field == "tools[0].function.parameters.type"


def test_a_description_writes_no_grammar(allowed):
    """Schemas and names go into a grammar as JSON; none can end it and begin another."""
    evil = '"}\nstart: /(.|\\n)*/\n%json {"'
    schema = {"type": "object", "properties": {evil: {"const": evil}}, "required": [evil], "description": evil}
    chat = Chat([], response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})
    assert not allowed(chat, None, "It rains.")
