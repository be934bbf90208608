"""A developer tries a model with tools on the page: in a real browser, and what needs none of it in node."""

import json
import shutil
import subprocess
from importlib.resources import files

import pytest

from hfchat.chat import CallPart
from hfchat.serving.engines.engine import Piece
from tests.serving.conftest import ScriptedEngine, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
PAGE = files("hfchat") / "serving" / "page"
in_node = pytest.mark.skipif(NODE is None, reason="there is no node to run the page's scripts in")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
WEATHER = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": WEATHER}]


def calling(*cities, text="", reasoning=""):
    calls = tuple(CallPart(index, "weather", json.dumps({"city": city})) for index, city in enumerate(cities))
    return [Piece("", 1, reasoning=reasoning), Piece(text, 1), Piece("", 1, calls=calls), Piece("", 1)]


# ---------------------------------------------------------------------------------------------------------- in node


def run(module, *calls):
    """The results of functions of a module of the page, each called as `(name, *arguments)`."""
    script = """
const module = await import(process.argv[1]);
const calls = JSON.parse(process.argv[2]);
console.log(JSON.stringify(calls.map(([name, ...given]) => module[name](...given) ?? null)));
"""
    command = [NODE, "--input-type=module", "-e", script, (PAGE / module).as_uri(), json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@in_node
def test_json_is_made_readable_and_nothing_in_it_is_changed():
    given = '{"a": [1, 2.50, {"b": "x:{,}\\"]"}], "c": {}, "d": [ ], "e":12345678901234567890}'
    shown, broken, number = run("json.js", ["pretty", given], ["pretty", '{"a": '], ["pretty", "1.0"])
    assert shown == (
        '{\n  "a": [\n    1,\n    2.50,\n    {\n      "b": "x:{,}\\"]"\n    }\n  ],\n'
        '  "c": {},\n  "d": [],\n  "e": 12345678901234567890\n}'
    )
    assert (broken, number) == ('{"a": ', "1.0")


@in_node
def test_which_answers_are_json():
    answers = ['{"a": 1}', "[1]", '{"a": 1', "{ hello }", "[link](x)", "[1] says so", "3", '"a"', "", "```\n{}\n```"]
    found = run("json.js", *(["jsonAnswer", answer] for answer in answers))
    assert found == ['{\n  "a": 1\n}', "[\n  1\n]", '{"a": 1', *[None] * 7]


@in_node
def test_what_is_pasted_is_read_or_said_to_be_wrong():
    assert run("tools.js", ["readTools", " "], ["readTools", json.dumps(WEATHER)]) == [
        {"tools": []},
        {"tools": TOOLS},
    ]
    wrong = {
        "[{": "This is not JSON",
        "[1]": "Tool 1 must be an object",
        "[{}]": "Tool 1 has no name",
        '[{"name": "a b"}]': 'not "a b"',
        '[{"name": "a"}, {"type": "function", "function": {"name": "a"}}]': "Two functions are called a",
        '[{"name": "a", "parameters": []}]': '"parameters" must be a JSON schema',
    }
    for (text, words), found in zip(wrong.items(), run("tools.js", *(["readTools", t] for t in wrong)), strict=True):
        assert words in found["problem"], text
    schema = {"type": "object"}
    whole = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    given = ["", json.dumps(schema), json.dumps(whole), '{"type": "json_object"}']
    formats = run("tools.js", *(["readSchema", text] for text in given))
    assert [found["format"] for found in formats] == [None, whole, whole, {"type": "json_object"}]
    assert "is an object" in run("tools.js", ["readSchema", "[]"])[0]["problem"]
    calls = ["", '[{"name": "f", "arguments": {"a": 1}}]', '{"name": "g", "arguments": {}}', '{"name": "f"}']
    none, one, unknown, without = run("tools.js", *(["readCalls", text, ["f"]] for text in calls))
    assert none == {"calls": []}
    assert one == {"calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    assert "one of f" in unknown["problem"]
    assert '"arguments" must be an object' in without["problem"]


@in_node
def test_calls_go_back_with_their_results_and_not_without_them():
    script = """
const { Conversation, messagesTo } = await import(process.argv[1]);
const talk = new Conversation();
const answered = (turn, content, calls = [], finishReason = "stop") => (
  Object.assign(talk.add(turn, "assistant", content), { calls, finishReason }));
const call = (id) => ({ id, name: "f", arguments: "{}" });
let calling = answered(talk.add(talk.root, "user", "1"), "Wait.", [call("a"), call("b")], "tool_calls");
const results = Object.assign(talk.add(calling, "tool", ""), { results: ["x", "y"] });
const first = messagesTo(results);
calling.reasoning = "Hm.";
const answer = answered(results, "Done.");
// Nobody typed the results of these: the text stays, and a question whose answer was a call alone goes.
const open = answered(talk.add(answer, "user", "2"), "Let me see.", [call("c")], "tool_calls");
const alone = answered(talk.add(open, "user", "3"), "", [call("d")], "tool_calls");
console.log(JSON.stringify([first, messagesTo(talk.add(alone, "user", "4"))]));
"""
    command = [NODE, "--input-type=module", "-e", script, (PAGE / "conversation.js").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, last = json.loads(done.stdout)
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ("a", "b")]
    assert first == [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
        {"role": "tool", "tool_call_id": "b", "content": "y"},
    ]
    assert last == [
        first[0],
        first[1] | {"reasoning_content": "Hm."},
        *first[2:],
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "Let me see."},
        {"role": "user", "content": "4"},
    ]


# -------------------------------------------------------------------------------------------------------- in Chromium


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    database = str(tmp_path_factory.mktemp("feedback") / "feedback.db")
    with running(ScriptedEngine(context_length=10_000), feedback=database) as served:
        yield served


@pytest.fixture(scope="module")
def page(served):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    playwright.expect.set_options(timeout=20_000)  # machines are busy at times
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.problems = []
        page.on("console", lambda line: page.problems.append(line.text) if "Policy" in line.text else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        yield page
        assert page.problems == []
        browser.close()


@pytest.fixture
def visit(page, served):
    """Opens the page anew, with tools pasted; returns it, and the list of what it sends, each `(path, body)`."""

    def open_page(engine, tools=TOOLS):
        vars(served.engine).update(vars(engine))
        sent = []
        page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
        page.goto(served.url)
        paste(page, "Tools", json.dumps(tools))
        return page, lambda path: [one.post_data_json for one in sent if one.url.endswith(path)]

    return open_page


def expect(*args):
    from playwright.sync_api import expect

    return expect(*args)


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def paste(page, label, text):
    button(page, "Settings").click()
    page.locator("#settings details").evaluate("details => { details.open = true; }")
    page.get_by_label(label, exact=True).fill(text)
    button(page, "Done").click()


def ask(page, question):
    page.get_by_label("Message", exact=True).fill(question)
    page.keyboard.press("Enter")


@in_chromium
def test_a_model_calls_and_goes_on_with_what_is_typed(visit, served):
    page, sent = visit(ScriptedEngine(calling("Rome", "Oslo", text="Let me see.", reasoning="Two."), "tool_calls"))
    ask(page, "Rome or Oslo?")
    cards = page.locator(".call")
    expect(cards).to_have_count(2)
    results = page.get_by_label("Result of weather")
    expect(results.first).to_be_focused()
    expect(cards.locator("pre").first).to_be_hidden()
    cards.locator("summary").first.click()
    expect(cards.locator("pre").first).to_have_text('{\n  "city": "Rome"\n}')
    expect(page.locator(".assistant .text")).to_have_text("Let me see.")
    expect(page.get_by_role("status")).to_contain_text("The model calls weather and weather. Type what comes back.")
    assert sent("/v1/chat/completions")[0]["tools"] == TOOLS

    vars(served.engine).update(pieces=["Rome."], finish_reason="stop")
    results.first.fill("18")
    results.last.fill("5 <b>")
    page.locator(".results").get_by_role("button", name="Send").click()
    expect(page.locator(".assistant .text").last).to_have_text("Rome.")
    expect(page.locator(".tool .text")).to_have_text("weather18weather5 <b>")
    expect(page.locator(".results")).to_have_count(0)
    question, answer, *told = sent("/v1/chat/completions")[1]["messages"]
    assert question == {"role": "user", "content": "Rome or Oslo?"}
    assert answer["reasoning_content"] == "Two."
    assert [call["function"]["arguments"] for call in answer["tool_calls"]] == ['{"city": "Rome"}', '{"city": "Oslo"}']
    assert [(one["role"], one["content"]) for one in told] == [("tool", "18"), ("tool", "5 <b>")]
    assert [one["tool_call_id"] for one in told] == [call["id"] for call in answer["tool_calls"]]

    # Another answer, other results, and another question go on from there.
    vars(served.engine).update(pieces=["Oslo."])
    button(page, "Another answer").last.click()
    expect(page.locator(".assistant .text").last).to_have_text("Oslo.")
    button(page, "Change the results").click()
    expect(page.get_by_label("Result of weather").first).to_have_value("18")
    page.get_by_label("Result of weather").first.fill("-1")
    page.locator(".results").get_by_role("button", name="Send").click()
    expect(page.locator(".tool .versions")).to_have_text("Version 2/2")
    ask(page, "Thanks")
    expect(page.locator(".assistant .text")).to_have_count(3)
    roles = [one["role"] for one in sent("/v1/chat/completions")[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]


@in_chromium
def test_thinking_is_folded_and_streams(visit, served):
    page, _ = visit(ScriptedEngine([Piece("", 1, reasoning="I wonder <i>"), "Yes.", "!"], held=True))
    ask(page, "Hm?")
    expect(page.locator(".thoughts summary")).to_have_text("Thinking…")
    expect(page.locator(".thoughts div")).to_be_hidden()
    page.locator(".thoughts summary").click()
    expect(page.locator(".thoughts div")).to_have_text("I wonder <i>")
    served.engine.release()
    expect(page.locator(".assistant .text")).to_have_text("Yes.!")
    expect(page.locator(".thoughts summary")).to_have_text("Thoughts")
    expect(page.locator(".thoughts div")).to_be_visible()  # what was opened stays open


@in_chromium
def test_an_answer_by_a_schema_is_shown_as_json(visit):
    page, sent = visit(ScriptedEngine(['{"city":', '"Rome"}']))
    paste(page, "JSON schema of the answer", '{"type": "object"}')
    ask(page, "Where?")
    expect(page.locator(".assistant .text figure pre")).to_have_text('{\n  "city": "Rome"\n}')
    format = sent("/v1/chat/completions")[0]["response_format"]
    assert format == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}


@in_chromium
def test_tools_that_are_none_are_said_to_be_wrong(visit):
    page, sent = visit(ScriptedEngine())
    paste(page, "Tools", '[{"name": "a b"}]')
    problem = page.locator("#tools-problem")
    expect(problem).to_contain_text('not "a b"')
    expect(page.locator("#settings")).to_be_visible()  # it cannot be done with
    page.keyboard.press("Escape")
    ask(page, "Hi")
    expect(page.locator(".error span")).to_contain_text("Look at the settings. Tool 1: a name is")
    assert sent("/v1/chat/completions") == []


@in_chromium
def test_a_call_is_corrected(visit):
    page, sent = visit(ScriptedEngine(calling("Paris"), "tool_calls"))
    ask(page, "Oslo?")
    button(page, "Bad answer").click()
    dialog = page.get_by_role("dialog", name="Say more about this answer")
    calls = dialog.get_by_label("The calls that it should have had")
    expect(calls).to_have_value(
        '[\n  {\n    "name": "weather",\n    "arguments": {\n      "city": "Paris"\n    }\n  }\n]'
    )
    calls.fill('[{"name": "wether", "arguments": {}}]')
    expect(dialog.locator("#feedback-calls-problem")).to_contain_text("one of weather")
    calls.fill('[{"name": "weather", "arguments": {"city": "Oslo"}}]')
    with page.expect_response("**/v1/feedback") as told:
        button(dialog, "Send").click()
    assert told.value.status == 200
    right = [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
    assert sent("/v1/feedback")[-1]["correction"] == {"content": "", "tool_calls": right}
    # It is there when it is looked at again, and nothing that was not changed is a correction.
    button(page, "Thank you. Change it…").click()
    expect(calls).to_have_value(
        '[\n  {\n    "name": "weather",\n    "arguments": {\n      "city": "Oslo"\n    }\n  }\n]'
    )
