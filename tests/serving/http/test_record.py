"""What is left of a request: its id on every answer, its line in the log, and its part in the metrics."""

import io
import json
import logging
import re
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hfchat.safety.guards import Finding
from hfchat.serving.http.auth import ApiKeys, hash_key
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.logs import configure_logs
from hfchat.serving.http.metrics import Metrics
from hfchat.serving.http.record import AnswerRecord, RequestRecord

MODEL = "tiny-chat"


@pytest.fixture
def log(monkeypatch):
    """The lines of the server's log so far, as it writes them."""
    loggers = [logging.getLogger(name) for name in ("hfchat", "uvicorn")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    stderr = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        configure_logs()

    def read(message=None):
        lines = [json.loads(line) for line in stderr.getvalue().splitlines()]
        return [line for line in lines if message is None or line["message"] == message]

    yield read
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers = handlers


def test_the_handlers_of_other_libraries_stay_open(log, tmp_path):
    other = logging.FileHandler(tmp_path / "other.log")
    configure_logs()
    assert not other.stream.closed
    other.close()


def samples(served, **headers) -> dict[tuple, float]:
    """Values by name and labels."""
    text = served.http.get("/metrics", headers=headers).text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# --------------------------------------------------------------------------------------------------------------- id


def test_every_answer_has_an_id(serve, scripted):
    served = serve(scripted())
    engine = served.engine
    ids = [
        served.chat(),
        served.chat(stream=True),
        served.chat(n=0),
        served.http.get("/nothing"),
        served.http.get("/"),
    ]
    ids.append(served.http.get("/health", headers={"host": "evil.example"}))
    engine.encode = None
    ids.append(served.chat())
    assert [response.status_code for response in ids] == [200, 200, 400, 404, 200, 403, 500]
    ids = [response.headers["x-request-id"] for response in ids]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("order-7.b_2", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ('"', False), (b"\xff", False)],
)
def test_a_sane_id_is_kept(serve, scripted, given, kept):
    response = serve(scripted()).http.get("/health", headers={"x-request-id": given})
    assert (response.headers["x-request-id"] == given) == kept


# -------------------------------------------------------------------------------------------------------------- log


SECRET = "my secret"


class QuotingError(Exception):
    pass


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", ["encode", "stream"])
def test_a_traceback_does_not_quote_what_was_asked(serve, scripted, eventually, log, place, stream):
    """Messages of exceptions do: pydantic's, SQLAlchemy's, Jinja's, and many a `KeyError`."""

    def quote(*args):
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise QuotingError(f"cannot read {SECRET} of {args}") from error

    engine = scripted()
    setattr(engine, place, quote)
    served = serve(engine)
    served.chat(messages=[{"role": "user", "content": SECRET}], stream=stream)
    eventually(lambda: log("request"))
    (line,) = [line for line in log() if line["level"] == "ERROR"]
    assert SECRET not in json.dumps(log())
    assert "QuotingError" in line["exc_info"]
    assert "KeyError" in line["exc_info"]
    assert "test_record.py" in line["exc_info"]


def test_what_is_raised_outside_of_requests_says_why(log):
    try:
        raise OSError(SECRET)
    except OSError:
        logging.getLogger("hfchat.serving").exception("a version does not answer")
        logging.getLogger("uvicorn.error").exception("an application")
    ours, uvicorns = log()
    assert SECRET in ours["exc_info"]
    assert SECRET not in uvicorns["exc_info"]  # which may be of a request


def test_a_request_is_one_line_without_its_content(serve, scripted, eventually, log):
    served = serve(scripted(), keys=ApiKeys({"alice": hash_key("k")}))
    headers = {"authorization": "Bearer k", "x-request-id": "mine"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "my secret"}], "n": 2}
    served.http.post("/v1/chat/completions?key=oops", json=body, headers=headers)
    eventually(lambda: log("request"))
    (line,) = log("request")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", line.pop("time"))
    assert 0 < line.pop("seconds_to_first_token") <= line.pop("seconds")
    assert line == {
        "level": "INFO",
        "logger": "hfchat.serving.requests",
        "message": "request",
        "request_id": "mine",
        "method": "POST",
        "path": "/v1/chat/completions",
        "route": "/v1/chat/completions",
        "status": 200,
        "key": "alice",
        "prompt_tokens": 9,
        "completion_tokens": 10,
        "finish_reasons": ["stop", "stop"],
    }
    assert SECRET not in json.dumps(log())
    assert "Hello" not in json.dumps(log())
    assert "oops" not in json.dumps(log())


def test_content_is_logged_on_request(serve, scripted, eventually, log):
    served = serve(scripted(), log_content=True)
    served.chat(stream=True)
    served.complete(prompt=["a", "b"])
    eventually(lambda: len(log("request")) == 2)
    chat, completion = log("request")
    assert chat["prompts"] == {"messages": [{"role": "user", "content": "Hi"}]}
    assert chat["answers"] == ["Hello, world!"]
    assert completion["prompts"] == {"prompt": ["a", "b"]}
    assert completion["answers"] == ["Hello, world!"] * 2


def test_errors_and_bugs_in_the_log(serve, scripted, eventually, log):
    served = serve(scripted())
    served.chat(model="another")
    served.chat(temperature="hot")
    served.engine.encode = None
    bug = served.chat()
    eventually(lambda: len(log("request")) == 3)
    lines = log("request")
    assert [line["status"] for line in lines] == [404, 400, 500]
    assert [line["error"] for line in lines] == ["model_not_found", "invalid_request_error", "server_error"]
    (trace,) = (line for line in log() if "exc_info" in line)
    assert "TypeError" in trace["exc_info"]
    assert trace["request_id"] == bug.headers["x-request-id"]


def test_probes_do_not_fill_the_log(serve, scripted, eventually, log):
    served = serve(scripted())
    for path in ("/health", "/ready", "/metrics"):
        served.http.get(path)
    served.chat()
    eventually(lambda: log("request"))
    assert [line["path"] for line in log("request")] == ["/v1/chat/completions"]
    served.engine.error = "down"
    served.http.get("/ready")
    eventually(lambda: len(log("request")) == 2)


# ---------------------------------------------------------------------------------------------------------- metrics


def test_metrics_of_requests_and_answers(serve, scripted, eventually):
    served = serve(scripted())
    served.chat(n=2)
    served.chat(stream=True, stop="wor")
    served.chat(temperature=3)
    served.http.get("/nothing/123")
    served.http.request("PROPFIND", "/nothing/124")  # the parser refuses words that are no method anywhere
    served.http.get("/page/chat.js")

    def count(route, status, method="POST"):
        return samples(served).get(
            ("hfchat_http_requests_total", ("method", method), ("route", route), ("status", status))
        )

    eventually(lambda: count("/page", "200", "GET") == 1)
    assert count("/v1/chat/completions", "200") == 2
    assert count("/v1/chat/completions", "400") == 1
    assert count("none", "404", "GET") == 1
    assert count("none", "404", "other") == 1
    values = samples(served)
    assert values["hfchat_answers_total", ("finish_reason", "stop"), ("version", "none")] == 3
    assert values["hfchat_prompt_tokens_total",] == 4
    assert values["hfchat_completion_tokens_total",] == 5 + 5 + 3
    assert values["hfchat_time_to_first_token_seconds_count",] == 3
    assert values["hfchat_time_per_output_token_seconds_count",] == 3
    assert values["hfchat_http_request_duration_seconds_count", ("route", "/v1/chat/completions")] == 3
    assert values["hfchat_engine_restarts_total",] == 0
    served.engine.restarts = 2
    assert samples(served)["hfchat_engine_restarts_total",] == 2


def test_metrics_of_what_goes_on(serve, scripted, eventually):
    served = serve(scripted(held=True), max_concurrent_requests=1)

    def gauges():
        values = samples(served)
        names = ("http_requests_in_flight", "answers_running", "answers_waiting")
        return [values[f"hfchat_{name}",] for name in names]

    assert gauges() == [0, 0, 0]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with (
        httpx.Client(base_url=served.url) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as first,
    ):
        lines = first.iter_lines()  # kept: a generator that is dropped closes the connection
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            served.http.post("/v1/chat/completions", json=body | {"n": 2}, timeout=0.3)
        eventually(lambda: gauges() == [1, 1, 0])
    eventually(lambda: gauges() == [0, 0, 0])
    gone = ("hfchat_http_requests_total", ("method", "POST"), ("route", "/v1/chat/completions"), ("status", "499"))
    assert samples(served)[gone] == 2


def test_findings_and_feedback_are_counted():
    metrics = Metrics(Slots(1, 1), in_flight=lambda: 0, engines=list)
    metrics.finding(Finding("words", "answer", "redact", ("obscene",)))
    metrics.feedback("up", "v2")
    metrics.feedback("up", "v2")
    metrics.feedback("up", None)
    text = metrics.text().decode()
    assert 'hfchat_guard_findings_total{action="redact",guard="words",place="answer"} 1.0' in text
    assert 'hfchat_feedback_total{rating="up",version="v2"} 2.0' in text
    assert 'hfchat_feedback_total{rating="up",version="none"} 1.0' in text


def test_refusals_of_the_model_are_counted():
    metrics = Metrics(Slots(1, 1), in_flight=lambda: 0, engines=list)
    refusal = "I'm sorry, but I can't help with that."
    answers = [AnswerRecord(texts=["Sure", "!"]), AnswerRecord(texts=[refusal]), AnswerRecord(texts=[refusal])]
    answers[2].finish_reason = "content_filter"  # a guard's words
    metrics.request(RequestRecord(version="v2", answers=answers))
    assert 'hfchat_refusals_total{version="v2"} 1.0' in metrics.text().decode()
