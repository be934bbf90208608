"""The chat page as people meet it: in a real browser, with a pointer and with keys, and with no way out of here."""

import re
import shutil

import pytest

from hfchat.serving.http.auth import ApiKeys, hash_key
from tests.serving.conftest import ScriptedEngine, running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
expect = playwright.expect
expect.set_options(timeout=20_000)  # machines are busy at times
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
# Only this machine has a name.
FLAGS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
LONG = "a" * 400


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running_driver:
        browser = running_driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with running(ScriptedEngine(), feedback=str(tmp_path_factory.mktemp("feedback") / "feedback.db")) as served:
        yield served


class Visitor:
    """Pages of one window, and what they have done. A new window costs a second, so most tests share one.

    Attributes:
        questions: The bodies that were sent to `/v1/chat/completions`.
        feedback: Those that were sent to `/v1/feedback`.
        problems: Requests to elsewhere, scripts that failed, and what the policy of a page did not allow.
    """

    def __init__(self, browser, **options):
        context = browser.new_context(**options)
        self.page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.close = context.close
        context.on("request", self._look_at)
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.on("console", lambda line: self.problems.append(line.text) if "Policy" in line.text else None)
        context.on("dialog", lambda dialog: self.problems.append(dialog.message))

    def open(self, url, feedback_settings):
        self.url, self.questions, self.feedback, self.problems = url, [], [], []
        page = self.page
        page.unroute_all()
        if feedback_settings is not None:
            page.route("**/v1/feedback/settings", lambda route: route.fulfill(json=feedback_settings))
        page.mouse.move(0, 0)
        page.goto(url)
        expect(page.locator("#kept")).not_to_be_empty()
        return page

    def _look_at(self, request):
        if not request.url.startswith(f"{self.url}/"):
            self.problems.append(request.url)
        if request.url.endswith("/v1/chat/completions"):
            self.questions.append(request.post_data_json)
        elif request.url.endswith("/v1/feedback"):
            self.feedback.append(request.post_data_json)


@pytest.fixture(scope="module")
def visitor(browser):
    visitor = Visitor(browser, viewport={"width": 1000, "height": 700})
    yield visitor
    visitor.close()


@pytest.fixture
def visit(browser, visitor, served):
    """`visit(engine, feedback_settings=None, **options)` opens the page of `served`, which then answers like `engine`;
    or of another server, given in place of an engine. With options, it is in a window of its own.

    In the end, every request must have gone to that server, and no script may have failed or been stopped.
    """
    visitors = []

    def open_page(engine, feedback_settings=None, **options):
        if isinstance(engine, ScriptedEngine):
            vars(served.engine).update(vars(engine))
        visitors.append(Visitor(browser, **options) if options else visitor)
        page = visitors[-1].open(served.url if isinstance(engine, ScriptedEngine) else engine.url, feedback_settings)
        page.visitor = visitors[-1]
        return page

    yield open_page
    for each in visitors:
        if each is visitor:
            each.page.goto("about:blank")  # nothing goes on
        else:
            each.close()
    assert [problem for each in visitors for problem in each.problems if problem != "about:blank"] == []


def ask(page, question):
    page.get_by_label("Message", exact=True).fill(question)
    page.keyboard.press("Enter")


def answers(page):
    return page.locator(".assistant .text")


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def contents(messages):
    return [message["content"] for message in messages]


def test_an_answer_streams_in_and_stopping_it_frees_its_place(visit, served, eventually):
    page = visit(ScriptedEngine(held=True))
    ask(page, "Hi")
    expect(answers(page)).to_have_text("Hello")
    assert served.engine.active == 1
    expect(button(page, "Edit this message")).to_be_disabled()
    button(page, "Stop the answer").click()
    eventually(lambda: served.engine.active == 0)
    expect(page.locator(".note")).to_have_text("You stopped this answer.")
    served.engine.release()
    ask(page, "Again")
    expect(answers(page).last).to_have_text("Hello, world!")
    assert contents(served.engine.prompts[-1]) == ["Hi", "Hello", "Again"]


def test_another_answer_and_an_edited_question_fork_what_is_sent(visit, served):
    engine = served.engine
    page = visit(ScriptedEngine(["First"]))
    ask(page, "One?")
    expect(answers(page)).to_have_text("First")
    engine.pieces = ["Second"]
    button(page, "Another answer").click()
    expect(answers(page)).to_have_text("Second")
    assert contents(engine.prompts[-1]) == ["One?"]
    assert [sampling.temperature for sampling in engine.samplings] == [0, 0.7]  # at 0 it would be the same again
    button(page, "Previous version").click()
    expect(answers(page)).to_have_text("First")
    expect(page.locator(".versions")).to_have_text("Version 1/2")
    ask(page, "Two?")
    expect(answers(page)).to_have_text(["First", "Second"])
    assert contents(engine.prompts[-1]) == ["One?", "First", "Two?"]

    button(page, "Edit this message").first.click()
    page.get_by_label("Edit your message").fill("Three?")
    page.keyboard.press("Enter")
    expect(page.locator(".user .text")).to_have_text("Three?")
    expect(answers(page)).to_have_text("Second")
    assert contents(engine.prompts[-1]) == ["Three?"]
    button(page, "Previous version").click()
    expect(page.locator(".user .text")).to_have_text(["One?", "Two?"])
    button(page, "New chat").click()
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()


HOSTILE = """\
<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
<iframe srcdoc="<script>parent.hacked=3</script>">
[a](javascript:window.hacked=4) [b](data:text/html,x) [c](//evil.example/x) [d]( javascript:window.hacked=5)
<javascript:window.hacked=6> <https://evil.example/auto> https://evil.example/bare
![e](https://evil.example/pixel.png) ![f](javascript:window.hacked=7)
[g](https://evil.example/"onmouseover="window.hacked=8) [**h**](https://evil.example/h)
`<b>` **<i onclick=window.hacked=9>** | <a href=javascript:1>

| <svg onload=window.hacked=10> | x |
| --- | --- |
| ![i](https://evil.example/i.png) | </table><style>*{display:none}</style> |

```html"><script>window.hacked=11</script>
</code></pre><script>window.hacked=12</script>
"""


def test_nothing_that_a_model_writes_is_more_than_text(visit):
    page = visit(ScriptedEngine([HOSTILE, HOSTILE.replace("\n", "\n> ")]))
    ask(page, "Attack")
    expect(button(page, "Another answer")).to_be_visible()
    inside = page.locator(".assistant .text *")
    names = set(inside.evaluate_all("nodes => nodes.map((node) => node.localName)"))
    assert not names & {"script", "img", "iframe", "svg", "style", "i", "b"}
    attributes = set(inside.evaluate_all("nodes => nodes.flatMap((node) => node.getAttributeNames())"))
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "srcdoc", "style")}
    links = page.locator(".assistant .text a")
    assert set(links.evaluate_all("nodes => nodes.map((node) => node.protocol)")) == {"https:"}
    assert set(links.evaluate_all("nodes => nodes.map((node) => node.rel)")) == {"noopener noreferrer nofollow"}
    expect(page.locator(".assistant .text")).to_contain_text("h (evil.example)")  # a link says where it leads
    for link in links.all():
        link.hover()
    assert page.evaluate("window.hacked") is None


def test_markdown_is_shown_as_it_is_meant(visit):
    text = (
        "# Title\n\n1. one *and* `**code**`\n   - **deep**\n     goes on\n2. two\n\n```py\nx = 1\n```\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n---\nend"
    )
    page = visit(ScriptedEngine([text]))
    ask(page, "Show")
    expect(button(page, "Another answer")).to_be_visible()
    html = re.sub(r' (class|tabindex|role|aria-label|type)="[^"]*"', "", answers(page).inner_html())
    assert html == (
        '<h3>Title</h3><ol start="1"><li>one <em>and</em> <code>**code**</code>'
        "<ul><li><strong>deep</strong> goes on</li></ul></li><li>two</li></ol>"
        "<figure><figcaption><span>py</span><button>Copy</button></figcaption><pre><code>x = 1</code></pre></figure>"
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>"
        "</div><blockquote><p>quoted</p></blockquote><hr><p>end</p>"
    )


def test_a_model_that_repeats_itself_builds_no_tower(visit, served):
    """Thousands of elements, each in the one before, are more than browsers can lay out."""
    page = visit(ScriptedEngine(context_length=10**6))
    deepest = "node => { let d = 0; while (node.lastElementChild) { node = node.lastElementChild; d++; } return d; }"
    for text in ("> " * 1000, "**" * 1000, "[" * 1000, "\n".join(" " * depth + "- a" for depth in range(100))):
        served.engine.pieces = [text]
        ask(page, "Go on")
        expect(button(page, "Another answer")).to_be_visible()
        assert answers(page).evaluate(deepest) < 20, text[:10]
        button(page, "New chat").click()


def test_a_thumb_and_what_goes_with_it(visit):
    page = visit(ScriptedEngine(["It is 5."]))
    ask(page, "2 + 2?")
    button(page, "Bad answer").click()
    dialog = page.get_by_role("dialog", name="Say more about this answer")
    expect(dialog).to_be_visible()
    assert len(page.visitor.feedback) == 1  # the thumb counts, whatever becomes of the rest
    dialog.get_by_label("Wrong").check()
    dialog.get_by_label("Comment").fill("Count again.")
    button(dialog, "Send").click()
    button(page, "Thank you. Change it…").click()
    expect(dialog.get_by_label("Wrong")).to_be_checked()
    dialog.get_by_label("What the answer should have been").fill("It is 4.")
    with page.expect_response("**/v1/feedback"):
        button(dialog, "Send").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("status")).to_contain_text("Thank you")
    thumb, more, corrected = page.visitor.feedback
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", thumb["answer_id"])
    nothing = {"choice": 0, "rating": None, "correction": None, "comment": None, "tags": [], "preferred_over": None}
    assert re.fullmatch(r"page-[0-9a-f]+", thumb["user"])
    assert thumb == nothing | {"answer_id": thumb["answer_id"], "rating": "down", "user": thumb["user"]}
    assert more == thumb | {
        "comment": "Count again.",
        "tags": ["wrong"],
    }  # a text that nobody changed corrects nothing
    assert corrected == more | {"correction": "It is 4."}
    expect(button(page, "Bad answer")).to_have_attribute("aria-pressed", "true")
    button(page, "Bad answer").click()
    expect(button(page, "Bad answer")).to_have_attribute("aria-pressed", "false")
    assert page.visitor.feedback[3:] == [thumb | {"rating": None}]


def test_feedback_that_is_refused_is_not_shown_as_given(visit):
    page = visit(ScriptedEngine())
    error = {"message": "gone", "type": "invalid_request_error", "param": "answer_id", "code": "answer_not_found"}
    page.route("**/v1/feedback", lambda route: route.fulfill(status=404, json={"error": error}))
    ask(page, "Hi")
    for _ in range(2):  # the second time is no taking back
        with page.expect_response("**/v1/feedback"):
            button(page, "Good answer").click()
        expect(page.locator(".note")).to_contain_text("The server does not have this answer any more")
        expect(button(page, "Good answer")).to_have_attribute("aria-pressed", "false")
    assert [said["rating"] for said in page.visitor.feedback] == ["up", "up"]


def test_going_on_with_another_answer_says_which_was_better(visit):
    page = visit(ScriptedEngine())
    ask(page, "Hi")
    button(page, "Good answer").click()
    button(page, "Another answer").click()
    expect(page.locator(".versions")).to_have_text("Version 2/2")
    expect(button(page, "Good answer")).to_have_attribute("aria-pressed", "false")
    first = page.visitor.feedback[0]
    ask(page, "Go on")
    expect(answers(page)).to_have_count(2)
    expect(button(page, "Good answer")).to_have_count(2)
    preference = page.visitor.feedback[1]
    assert (preference["rating"], preference["preferred_over"]) == (None, first["answer_id"])
    assert preference["answer_id"] != first["answer_id"]
    ask(page, "And on")
    expect(button(page, "Good answer")).to_have_count(3)
    assert len(page.visitor.feedback) == 2


def test_who_wants_nothing_to_be_kept(visit):
    page = visit(ScriptedEngine(), {"enabled": True, "keeps_conversations": True, "logs_content": False})
    expect(page.locator("#notice")).to_have_text(
        "This is an AI. It can be wrong: check what matters. The server keeps the conversation."
    )
    button(page, "Settings").click()
    page.get_by_label("Private").check()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Longest answer, in tokens").fill("7")
    page.get_by_label("Temperature, 0 to 2").fill("0.5")
    button(page, "Done").click()
    expect(page.locator("#notice")).to_contain_text("Private: the server keeps nothing")
    ask(page, "Hi")
    expect(button(page, "Another answer")).to_be_visible()
    expect(button(page, "Good answer")).to_have_count(0)
    [body] = page.visitor.questions
    assert body["store"] is False
    assert (body["temperature"], body["max_tokens"]) == (0.5, 7)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    expect(page.locator("#notice")).to_contain_text("The server keeps the conversation.")
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_a_log_with_content_is_told(visit):
    page = visit(ScriptedEngine(), {"enabled": True, "keeps_conversations": False, "logs_content": True})
    expect(page.locator("#notice")).to_contain_text("The server writes the conversation into its log.")


def test_a_server_that_takes_no_feedback_is_not_offered_any(visit):
    page = visit(ScriptedEngine(), {"enabled": False, "keeps_conversations": False, "logs_content": False})
    expect(page.locator("#notice")).to_contain_text("The page forgets the chat when you close it.")
    ask(page, "Hi")
    expect(button(page, "Another answer")).to_be_visible()
    expect(button(page, "Good answer")).to_have_count(0)


def test_errors_in_words_and_a_second_try(visit, served):
    page = visit(ScriptedEngine())
    error = {"message": "The server is busy.", "type": "rate_limit_error", "param": None, "code": "server_busy"}
    refusals = [
        lambda route: route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": error}),
        lambda route: route.abort("connectionrefused"),
        lambda route: route.fulfill(content_type="text/event-stream", body=": cut\n\n"),
    ]
    page.route("**/v1/chat/completions", lambda route: refusals.pop(0)(route) if refusals else route.continue_())
    ask(page, "Hi")
    expect(page.locator(".error span")).to_have_text("The server is busy.")
    expect(button(page, "Try again in 1 s")).to_be_visible()
    for words in ("The server cannot be reached", "The connection was lost"):
        button(page, "Try again").click()
        expect(page.locator(".error span")).to_contain_text(words)
    button(page, "Try again").click()
    expect(answers(page)).to_have_text("Hello, world!")
    assert contents(served.engine.prompts[-1]) == ["Hi"]
    served.engine.context_length = 1
    ask(page, "Too much")
    expect(page.locator(".error span")).to_contain_text("longer than the model can read")
    served.engine.context_length = 100
    ask(page, "Less")
    expect(answers(page).last).to_have_text("Hello, world!")
    assert contents(served.engine.prompts[-1]) == ["Hi", "Hello, world!", "Less"]


def test_a_turn_that_a_filter_stopped_is_shown_and_not_sent_again(visit, served):
    page = visit(ScriptedEngine(["I cannot say that."], finish_reason="content_filter"))
    ask(page, "Bad words")
    expect(page.locator(".note")).to_contain_text("The server's filter stepped in.")
    expect(answers(page)).to_have_text("I cannot say that.")
    ask(page, "Good words")
    expect(answers(page)).to_have_count(2)
    assert contents(served.engine.prompts[-1]) == ["Good words"]


def test_an_answer_that_breaks_off_keeps_what_came(visit):
    page = visit(ScriptedEngine(fail_after=2))
    ask(page, "Hi")
    expect(page.locator(".error span")).to_contain_text("scripted failure")
    expect(answers(page)).to_have_text("Hello,")


def test_scrolling_follows_only_who_is_at_the_end(visit, served):
    engine = ScriptedEngine(["line\n\n" * 60, *["more\n\n"] * 60], held=True, context_length=10_000)
    page = visit(engine)
    scroll = page.locator("#scroll")
    ask(page, "Hi")
    expect(answers(page)).to_contain_text("line")
    from_end = "node => node.scrollHeight - node.scrollTop - node.clientHeight"
    page.wait_for_timeout(50)
    assert scroll.evaluate(from_end) < 2
    scroll.evaluate("node => { node.scrollTop = 100 }")
    expect(button(page, "Latest ↓")).to_be_visible()
    served.engine.release()
    expect(button(page, "Another answer")).to_be_attached()
    assert scroll.evaluate("node => node.scrollTop") == 100
    button(page, "Latest ↓").click()
    assert scroll.evaluate(from_end) < 2


def test_all_of_it_with_the_keyboard(visit, served, eventually):
    page = visit(ScriptedEngine())
    focused = page.locator(":focus")

    def tab_to(name):
        for _ in range(20):
            page.keyboard.press("Tab")
            if focused.count() and focused.evaluate("node => node.ariaLabel || node.textContent.trim()") == name:
                outline = focused.evaluate("node => getComputedStyle(node).outline")
                assert "solid 3px" in outline, name  # it shows where one is
                return
        raise AssertionError(f"{name} is not within reach")

    expect(page.locator("#input")).to_be_focused()
    page.keyboard.type("Hi")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Hello, world!")  # read out as a whole
    assert contents(served.engine.prompts[-1]) == ["Hi\nthere"]
    expect(page.locator("#input")).to_be_focused()
    tab_to("Edit this message")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(button(page, "Edit this message")).to_be_focused()
    tab_to("Another answer")
    served.engine.held = True
    page.keyboard.press("Enter")
    expect(button(page, "Stop the answer")).to_be_focused()
    page.keyboard.press("Escape")
    eventually(lambda: served.engine.active == 0)
    expect(page.locator("#input")).to_be_focused()
    tab_to("Previous version")
    page.keyboard.press("Space")
    expect(button(page, "Previous version")).to_be_focused()
    tab_to("Bad answer")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(button(page, "Say more…")).to_be_focused()
    tab_to("Settings")
    page.keyboard.press("Enter")
    expect(page.get_by_label("System prompt")).to_be_focused()
    page.keyboard.press("Escape")
    expect(button(page, "Settings")).to_be_focused()


def test_axe_finds_nothing(visit):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    engine = ScriptedEngine(["# A\n\n- `b` [c](https://d.example)\n\n```py\ne\n```\n\n| f |\n|---|\n| g |\n\n> h"])
    page = visit(engine)

    def check(state):
        for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found = axe.run(page, options={"resultTypes": ["violations"], **rules}).response["violations"]
            assert [(rule["id"], node["html"]) for rule in found for node in rule["nodes"]] == [], (state, scheme)

    check("welcome")
    ask(page, "Hi")
    button(page, "Another answer").click()
    expect(button(page, "Good answer")).to_be_visible()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "Fail")
    expect(button(page, "Try again")).to_be_visible()
    button(page, "Edit this message").first.click()
    check("conversation")
    button(page, "Cancel").click()
    button(page, "Bad answer").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    check("feedback")
    button(page, "Cancel").click()
    button(page, "Settings").click()
    check("settings")
    button(page, "Done").click()
    button(page, "About this model").click()
    expect(page.get_by_role("dialog")).to_contain_text("without a card")
    check("card")


def test_a_phone_scrolls_in_one_direction(visit):
    width = 320  # the narrowest that WCAG 2.2 asks for (1.4.10)
    text = f"{LONG}\n\n`{LONG}`\n\n```\n{LONG}\n```\n\n| {LONG} | {LONG} |\n|---|---|\n| 1 | 2 |\n\n- {LONG}\n> {LONG}"
    phone = {"viewport": {"width": width, "height": 640}, "has_touch": True, "is_mobile": True}
    page = visit(ScriptedEngine([text], context_length=10_000), **phone)

    def check():
        widths = "[document.documentElement.scrollWidth, document.querySelector('main').scrollWidth]"
        assert page.evaluate(widths) == [width, width]
        outside = (
            "nodes => nodes.filter((node) => node.getBoundingClientRect().right > innerWidth).map(({ id }) => id)"
        )
        assert page.locator("header *, footer *, dialog[open], dialog[open] form *").evaluate_all(outside) == []

    check()
    ask(page, LONG)
    button(page, "Another answer").click()
    expect(page.locator(".versions")).to_have_text("Version 2/2")
    button(page, "Edit this message").click()
    check()
    button(page, "Bad answer").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    check()
    page.keyboard.press("Escape")
    button(page, "Settings").click()
    check()


def test_a_model_and_its_limits_are_one_click_away(visit):
    page = visit(ScriptedEngine())
    button(page, "About this model").click()
    dialog = page.get_by_role("dialog", name="tiny-chat")
    expect(dialog).to_contain_text("comes without a card")
    button(dialog, "Close").click()
    card = {"id": "tiny-chat", "text": "# Tiny\n\n## Limits\n\nMany.", "limits": "## Limits\n\nMany."}
    page.route("**/v1/models/tiny-chat/card", lambda route: route.fulfill(json=card))
    button(page, "About this model").click()
    expect(dialog.get_by_role("heading", name="Limits")).to_be_visible()
    expect(dialog.get_by_text("Many.").first).to_be_visible()
    expect(dialog.get_by_text("The whole card")).to_be_visible()


def test_one_of_several_models(visit):
    page = visit(ScriptedEngine())
    expect(page.get_by_label("Model", exact=True)).to_be_hidden()
    models = {"data": [{"id": "base"}, {"id": "tiny-chat"}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    page.get_by_label("Model", exact=True).select_option("tiny-chat")
    ask(page, "Hi")
    expect(answers(page)).to_have_text("Hello, world!")
    assert page.visitor.questions[-1]["model"] == "tiny-chat"


def test_with_api_keys(visit, serve, scripted):
    keys = ApiKeys({"alice": hash_key("alice-key")})
    served = serve(scripted(), keys=keys)
    page = visit(served, http_credentials={"username": "", "password": "alice-key"})
    page.goto(f"{served.url}/docs")
    expect(page.get_by_text("/v1/chat/completions").first).to_be_visible()
    page.goto(served.url)
    ask(page, "Hi")
    expect(answers(page)).to_have_text("Hello, world!")
    keys.name_of = ApiKeys({"alice": hash_key("new-key")}).name_of  # the server has begun anew, with other keys
    ask(page, "Hello")
    dialog = page.get_by_role("dialog", name="This server wants an API key")
    dialog.get_by_label("API key").fill("wrong-key")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("The server does not know this key.")).to_be_visible()
    dialog.get_by_label("API key").fill("new-key")
    button(dialog, "Use this key").click()
    expect(answers(page)).to_have_text(["Hello, world!"] * 2)
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
