"""Guards in a running server: what the client gets, in a stream and as a whole, is what they let through."""

import json
import logging
import secrets

import httpx
import openai
import pytest

from hfchat.safety import guards_file
from hfchat.safety.guards import Guards
from hfchat.safety.guards_file import load_guards
from hfchat.safety.judges import Moderation
from tests.servers.llamacpp import Scripted as ScriptedLlamaCpp
from tests.servers.llamacpp import ScriptedChildEngine
from tests.serving.conftest import MODEL

HI = [{"role": "user", "content": "Hi"}]
BLOCK = "- {type: lexicon, action: block, message: No., applies_to: [%s]}"
REDACT = "- {type: lexicon, action: redact, applies_to: [%s]}"


@pytest.fixture(params=["in this process", "llamacpp"])
def engine(request, scripted, tmp_path):
    """Makes engines that say what they are told to: `engine(pieces=[...])`; each kind is guarded alike."""
    if request.param == "in this process":
        return scripted

    def over_a_child(finish_reason="stop", **script):
        folder = tmp_path / secrets.token_hex(4)
        folder.mkdir()
        stop_type = {"stop": "eos", "length": "limit"}[finish_reason]
        return ScriptedChildEngine(ScriptedLlamaCpp(folder, stop_type=stop_type, **script))

    return over_a_child


@pytest.fixture
def guarded(serve, engine, tmp_path):
    """Serve these pieces behind guards: `guarding("- {type: ...}", pieces=[...])`."""

    def start(guards, **pieces):
        path = tmp_path / "guards.yaml"
        path.write_text(guards, encoding="utf-8")
        return serve(engine(**pieces), guards=load_guards(path))

    return start


def both(served, **fields):
    """An answer as a whole and as a stream: text, reason to finish, tokens of it."""
    create = served.openai.chat.completions.create
    whole = create(model=MODEL, messages=HI, **fields)
    chunks = list(create(model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}, **fields))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    streamed = "".join(choice.delta.content or "" for choice in choices)
    choice = whole.choices[0]
    answers = [
        (choice.message.content, choice.finish_reason, whole.usage.completion_tokens),
        (streamed, choices[-1].finish_reason, chunks[-1].usage.completion_tokens),
    ]
    assert answers[0] == answers[1]
    assert [chunk.finish_reason for chunk in choices[:-1]] == [None] * (len(choices) - 1)
    return answers[0]


def test_an_answer_is_redacted_over_the_borders_of_its_pieces(guarded):
    served = guarded(REDACT % "answer", pieces=["Oh s", "h", "\u200bi", "t", ", no"], finish_reason="length")
    assert both(served) == ("Oh ***, no", "length", 5)


def test_a_stream_has_nothing_of_what_is_redacted(guarded):
    served = guarded(REDACT % "answer", pieces=["Oh s", "h", "i", "t", ", no"])
    events = [line.removeprefix("data: ") for line in served.chat(stream=True).text.splitlines() if line]
    texts = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
    texts = [text for text in texts if text]
    assert texts[0] == "Oh "
    assert "".join(texts) == "Oh ***, no"


def test_a_block_ends_the_answer_and_the_generation(guarded, eventually):
    served = guarded(BLOCK % "answer", pieces=["Well, ", "shit", ". ", "more", " and more"], finish_reason="length")
    assert both(served) == ("Well, \n\nNo.", "content_filter", 3)
    eventually(lambda: served.engine.active == 0)
    assert served.http.get("/health").json()["running"] == 0


def test_a_blocked_prompt_is_answered_without_the_model(guarded):
    served = guarded(BLOCK % "prompt")
    create = served.openai.chat.completions.create
    bad = [{"role": "user", "content": "sh*t"}]
    answer = create(model=MODEL, messages=bad, n=2)
    assert [choice.message.content for choice in answer.choices] == ["No.", "No."]
    assert {choice.finish_reason for choice in answer.choices} == {"content_filter"}
    assert answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens == 4
    chunks = list(create(model=MODEL, messages=bad, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "No."
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert served.openai.completions.create(model=MODEL, prompt="shit").choices[0].text == "No."
    assert served.engine.started == 0
    assert both(served) == ("Hello, world!", "stop", 5)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_every_turn_of_a_prompt_is_guarded(guarded, role):
    served = guarded(BLOCK % "prompt")
    messages = [{"role": role, "content": [{"type": "text", "text": "sh"}, {"type": "text", "text": "it"}]}, *HI]
    answer = served.openai.chat.completions.create(model=MODEL, messages=messages)
    assert answer.choices[0].finish_reason == "content_filter"


def test_guards_do_not_read_what_the_model_cannot(guarded, monkeypatch):
    read = []
    monkeypatch.setattr(Guards, "prompt", lambda self, texts: read.append(texts))
    served = guarded(BLOCK % "prompt")
    assert served.chat(messages=[{"role": "user", "content": "refuse me"}]).status_code == 400
    assert served.complete(prompt="refuse me").status_code == 400
    assert read == []


def test_the_model_sees_a_redacted_prompt(guarded):
    served = guarded(REDACT % "prompt")
    served.openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "shit happens"}])
    assert served.engine.answered == [[{"role": "user", "content": "*** happens"}]]


def test_a_stop_string_ends_an_answer_where_it_does_without_guards(guarded):
    pieces = ["It is ", "so. ST", "OP shit", " and on"]
    served = guarded(BLOCK % "answer", pieces=pieces)
    assert both(served, stop="STOP") == ("It is so. ", "stop", 3)
    served = guarded("- {type: lexicon, action: block, release: whole, applies_to: [answer]}", pieces=pieces)
    assert both(served, stop="STOP") == ("It is so. ", "stop", 3)


def test_what_the_answers_of_one_request_hold_is_their_own(guarded):
    served = guarded(REDACT % "answer", pieces=["Oh ", "s", "h", "it", "."])
    chunks = served.openai.chat.completions.create(model=MODEL, messages=HI, n=3, stream=True)
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["Oh ***."] * 3


def test_log_probabilities_do_not_give_away_what_is_redacted(guarded):
    served = guarded(REDACT % "answer")
    with pytest.raises(openai.BadRequestError, match="logprobs: not with the guards") as refused:
        served.openai.chat.completions.create(model=MODEL, messages=HI, logprobs=True)
    assert refused.value.param == "logprobs"
    with pytest.raises(openai.BadRequestError, match="logprobs: not with the guards"):
        served.openai.completions.create(model=MODEL, prompt="Hi", logprobs=0)
    flagged = guarded("- {type: lexicon, action: flag}")
    assert flagged.chat(logprobs=True).status_code == (400 if "logprobs" in flagged.engine.cannot else 200)


def test_token_ids_do_not_go_round_the_guards(guarded):
    with pytest.raises(openai.BadRequestError, match="prompt: the guards") as refused:
        guarded(REDACT % "prompt").openai.completions.create(model=MODEL, prompt=[1, 2])
    assert refused.value.param == "prompt"
    assert guarded(REDACT % "answer").complete(prompt=[1, 2]).status_code == 200


def test_findings_are_logged_without_the_text(guarded, caplog):
    served = guarded("- {type: lexicon, action: flag, name: words}", pieces=["Sh", "it"])
    with caplog.at_level(logging.INFO, logger="hfchat.serving"):
        served.chat(messages=[{"role": "user", "content": "what the fuck"}])
    assert [record.message for record in caplog.records if record.name == "hfchat.serving"] == [
        "guard words: flag in the prompt: obscene",
        "guard words: flag in the answer: obscene",
    ]


@pytest.fixture
def broken_endpoint(monkeypatch):
    """Every moderation endpoint answers prompts, and fails for answers."""

    def answer(request):
        texts = json.loads(request.content)["input"]
        if texts != ["Hi"]:
            return httpx.Response(500)
        return httpx.Response(200, json={"results": [{"flagged": False, "categories": {}}]})

    monkeypatch.setattr(
        guards_file,
        "Moderation",
        lambda *settings: Moderation(*settings, transport=httpx.MockTransport(answer)),
    )


def test_an_answer_that_cannot_be_checked_is_not_given(guarded, broken_endpoint):
    served = guarded("- {type: moderation, url: 'http://guard', action: block}")
    response = served.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "guard_unavailable"
    assert "Hello" not in served.chat(stream=True).text
    assert served.chat(messages=[{"role": "user", "content": "other"}]).status_code == 503
    assert served.http.get("/health").json()["running"] == 0
    served = guarded("- {type: moderation, url: 'http://guard', action: block, on_error: allow}")
    assert both(served) == ("Hello, world!", "stop", 5)
