"""`hfchat chat` in a pipe: what it shows, asks, saves and refuses, against a server that says what a script says."""

import io
import json

import pytest

from hfchat.cli import main
from hfchat.data.conversation_formats import convert, find_format
from hfchat.data.rows import Row
from tests.servers.chat_api import chat_api, error

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def streamed(*deltas, finish_reason="stop"):
    """A streamed answer of these deltas."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish_reason})
    events = [json.dumps({"object": "chat.completion.chunk", "choices": [choice]}) for choice in choices]
    body = "".join(f"data: {event}\n\n" for event in [*events, '{"choices": [], "usage": {}}', "[DONE]"])
    return 200, {"Content-Type": "text/event-stream"}, body


def called(*parts):
    return {"tool_calls": list(parts)}


def echo(request):
    return streamed({"role": "assistant"}, {"content": "You said "}, {"content": request["messages"][-1]["content"]})


@pytest.fixture
def chat(monkeypatch, capsys):
    """Runs the command in a pipe: lines in; exit status, standard output and standard error out."""

    def run(*arguments, lines=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        status = 0
        try:
            main(["chat", *map(str, arguments)])
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return run


def test_every_line_is_a_turn_of_one_conversation(chat):
    with chat_api(echo) as server:
        options = ("--system", "Be brief.", "--temperature", 0.5, "--max-tokens", 9, "--seed", 3)
        status, out, _ = chat(server.url, *options, lines="one\n\n//two é\n")
    assert (status, out) == (0, "You said one\nYou said /two é\n")
    assert server.requests[-1] == {
        "model": "scripted",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "You said one"},
            {"role": "user", "content": "/two é"},
        ],
        "stream": True,
        "temperature": 0.5,
        "max_tokens": 9,
        "seed": 3,
    }
    assert "authorization" not in server.headers[-1]


def test_reasoning_is_apart_from_what_is_piped_on(chat):
    thinking = ({"reasoning_content": "Hm"}, {"reasoning": "..."}, {"content": "Yes"})
    with chat_api(lambda request: streamed(*thinking)) as server:
        status, out, err = chat(server.url, lines="Well?\n")
    assert (status, out) == (0, "Yes\n")
    assert "Hm..." in err


def test_a_call_is_shown_and_its_result_asked_for(chat, tmp_path):
    def script(request):
        if request["messages"][-1]["role"] == "tool":
            return streamed({"content": f"It is {request['messages'][-1]['content']}."})
        begin = {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"town":'}}
        other = {"index": 1, "id": "b", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        rest = {"index": 0, "function": {"arguments": ' "Zürich"}'}}
        return streamed(
            {"content": "Let me see."}, called(begin), called(rest), called(other), finish_reason="tool_calls"
        )

    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([TOOL]))
    saved = tmp_path / "saved.jsonl"
    with chat_api(script) as server:
        lines = f"How is it in Zürich?\nsunny\n/no command: rain\n/save {saved}\n"
        status, out, err = chat(server.url, "--tools", tools, lines=lines)
    assert status == 0, err
    assert out == 'Let me see.\nweather {\n  "town": "Zürich"\n}\nweather {}\nIt is /no command: rain.\n'
    assert server.requests[0]["tools"] == [TOOL]
    results = server.requests[1]["messages"][2:]
    assert results == [
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        {"role": "tool", "tool_call_id": "b", "content": "/no command: rain"},
    ]

    # The saved conversation is one that the recipe takes, whole.
    row = json.loads(saved.read_text(encoding="utf-8"))
    assert row["tools"] == [TOOL]
    example = convert(find_format(row), Row(row, "the file"))
    assert [turn["role"] for turn in example["messages"]] == ["user", "assistant", "tool", "tool", "assistant"]
    first = example["messages"][1]
    assert first["content"] == "Let me see."
    arguments = [json.loads(call["function"]["arguments"]) for call in first["tool_calls"]]
    assert arguments == [{"town": "Zürich"}, {}]


def test_a_retry_is_another_answer_to_the_last_question(chat, tmp_path):
    answers = iter(["first", "second", "third"])
    with chat_api(lambda request: streamed({"content": next(answers)})) as server:
        lines = (
            f"Hi\n/retry\n/system New.\n/retry\n/save {tmp_path / 'saved.jsonl'}\n/save {tmp_path / 'saved.jsonl'}\n"
        )
        status, out, _ = chat(server.url, "--seed", 5, lines=lines)
    assert (status, out) == (0, "first\nsecond\nthird\n")
    assert [request["seed"] for request in server.requests] == [5, 6, 7]
    assert server.requests[1]["messages"] == [{"role": "user", "content": "Hi"}]
    assert server.requests[2]["messages"][0] == {"role": "system", "content": "New."}
    rows = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text().splitlines()]
    assert len(rows) == 2  # nothing that was saved is lost
    assert [message["content"] for message in rows[0]["messages"]] == ["New.", "Hi", "third"]


def test_a_refused_question_is_taken_back_and_the_chat_goes_on(chat):
    def script(request):
        text = request["messages"][-1]["content"]
        if text == "bad":
            return error(400, "messages: too\nlong")
        if text == "broken":
            return 200, {"Content-Type": "text/event-stream"}, 'data: {"error": {"message": "out of memory"}}\n\n'
        return streamed({"content": str(len(request["messages"]))})

    with chat_api(script) as server:
        status, out, err = chat(server.url, lines="bad\nbroken\ngood\n/retry\nbad\n/retry\n/wrong\n/quit\nnever\n")
    assert out == "1\n1\n"
    assert "400: messages: too long\nout of memory\n" in err
    assert "there is no /wrong" in err
    assert [request["messages"][-1]["content"] for request in server.requests[-2:]] == ["bad", "bad"]
    assert status == 1  # not all was answered


def test_a_cut_answer_is_said_to_be_one(chat):
    with chat_api(lambda request: streamed({"content": "Once"}, finish_reason="length")) as server:
        _, out, err = chat(server.url, lines="Tell me\n")
    assert out == "Once\n"
    assert "limit of tokens" in err


def test_a_model_and_a_key_of_the_environment(chat, monkeypatch):
    monkeypatch.setenv("HFCHAT_TEST_KEY", "secret")
    with chat_api(echo, models=("one", "two")) as server:
        status, _, err = chat(server.url, lines="Hi\n")
        assert status == 2
        assert "2 models: one, two; name one with --model" in err
        status, out, _ = chat(server.url, "--model", "two", "--api-key-env", "HFCHAT_TEST_KEY", lines="Hi\n")
    assert out == "You said Hi\n"
    assert server.headers[-1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["http://127.0.0.1:1/v1"], "no server answers there"),
        (["http://host:port/v1"], "is not a valid URL"),
        (["https:///v1"], "is not a valid URL"),
        (["http://127.0.0.1:1/v1", "--engine", "vllm"], "unrecognized arguments: --engine vllm"),
        (["http://127.0.0.1:1/v1", "--api-key-env", "HFCHAT_NO_SUCH"], "HFCHAT_NO_SUCH"),
        (["folder", "--api-key-env", "PATH"], "is for a URL"),
        (["folder", "--port", "80"], "--port"),
        (["folder", "--tools", "/no/such.json"], "--tools /no/such.json: cannot be read"),
        (["folder", "--tools", __file__], "is not JSON"),
        (["folder", "--temperature", "hot"], "--temperature"),
        ([], "MODEL_OR_URL"),
    ],
)
def test_bad_input_is_one_line_and_status_2(chat, arguments, word):
    status, _, err = chat(*arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert word in err


def test_a_key_that_is_not_known_is_one_line(chat, serve, scripted):
    from hfchat.serving.http.auth import ApiKeys

    url = f"{serve(scripted(), keys=ApiKeys({})).url}/v1"
    status, _, err = chat(url, lines="Hi\n")
    assert status == 2
    assert (
        err == f"error: {url}: the server wants an API key; name its environment variable with --api-key-env (401)\n"
    )
    status, _, err = chat(url, "--api-key-env", "PATH", lines="Hi\n")
    assert "does not know the API key of --api-key-env" in err
