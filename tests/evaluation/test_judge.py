"""Judging, with a real server whose verdicts a test knows."""

import json
import re
from dataclasses import asdict

import pytest

from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.suite import TaskEntry, prepare_suite, run_suite
from hfchat.evaluation.task import Record, result
from hfchat.results import Bootstrap
from tests.servers.chat_api import chat_api, error

# Answers of the baseline and of a challenger, whose longer ones are 3 of 4.
ANSWERS = {
    "base": ["yes", "no, never, not at all", "maybe", "I do"],
    "new": ["yes, it is so", "no", "maybe, maybe not", "I do, I do"],
}


@pytest.fixture
def answers(tmp_path):
    """Records of the task that is judged; gives the judge's own folder beside them."""
    for model, texts in ANSWERS.items():
        records = [
            Record(i, [{"role": "user", "content": f"Question {i}?"}], [f"reference {i}"], answer=text)
            for i, text in enumerate(texts)
        ]
        write_records(tmp_path / "chat" / f"{model}.jsonl", records)
    return tmp_path / "judge"


def _judge(api, **settings):
    return TaskEntry.parse({"kind": "judge", "of": "chat", "judge": api.url, **settings}).build()


def _content(request):
    return request["messages"][-1]["content"]


def _shown(request):
    return re.findall(r"\[Answer(?: [AB])?\]\n(.*?)\n\[End", _content(request), re.DOTALL)


def longer(request):
    if not _shown(request):  # whether it is there at all
        return "Yes."
    first, second = map(len, _shown(request))
    return f"One is longer. [[{'tie' if first == second else 'A' if first > second else 'B'}]]"


def _result(task, folder, models=("base", "new")):
    task.collect_jointly(models, folder)
    return asdict(result(task, models, folder, Bootstrap(500, 1)))


def test_a_fair_judge_gives_the_share_of_better_answers(answers):
    with chat_api(longer) as api:
        found = _result(_judge(api), answers)
    scores = found["scores"]["new"]
    assert scores["win_rate"]["score"] == 0.75
    assert scores["ties"]["score"] == scores["inconsistent"]["score"] == scores["unparsable"]["score"] == 0
    assert scores["first"]["score"] == 0.5
    assert found["details"]["outcomes"] == {"new": {"wins": 3, "ties": 0, "losses": 1, "unparsable": 0}}
    assert len(api.requests) == 8
    assert [record.scores["win_rate"] for record in read_records(answers / "new.jsonl")] == [1, 0, 1, 1]


def test_both_answers_are_shown_in_both_orders_with_the_question(answers):
    with chat_api(longer) as api:
        _result(_judge(api, concurrency=1), answers)
    pairs = [_shown(request) for request in api.requests]
    assert pairs[:2] == [["yes", "yes, it is so"], ["yes, it is so", "yes"]]
    assert "User: Question 0?" in _content(api.requests[0])
    assert "reference 0" not in _content(api.requests[0])
    assert api.requests[0]["temperature"] == 0


def test_the_challenger_is_tested_against_an_even_baseline(answers):
    with chat_api(longer) as api:
        found = _result(_judge(api), answers)
    assert list(found["scores"]["base"]) == ["win_rate"]
    assert found["scores"]["base"]["win_rate"]["score"] == 0.5
    (comparison,) = found["comparisons"]
    assert (comparison["model"], comparison["baseline"]) == ("new", "base")
    assert comparison["metrics"]["win_rate"]["difference"] == 0.25
    assert 0 < comparison["metrics"]["win_rate"]["p_value"] < 1


def test_a_judge_that_always_prefers_the_first_gives_only_ties(answers):
    with chat_api(lambda request: "The first one. [[A]]") as api:
        scores = _result(_judge(api), answers)["scores"]["new"]
    assert scores["win_rate"]["score"] == 0.5
    assert scores["ties"]["score"] == scores["inconsistent"]["score"] == scores["first"]["score"] == 1


def test_a_tie_of_both_orders_has_not_changed_with_the_order(answers):
    with chat_api(lambda request: "[[tie]]") as api:
        scores = _result(_judge(api), answers)["scores"]["new"]
    assert (scores["ties"]["score"], scores["inconsistent"]["score"], scores["win_rate"]["score"]) == (1, 0, 0.5)


def test_a_win_needs_both_orders(answers):
    with chat_api(lambda request: "[[A]]" if _shown(request)[0] in ANSWERS["new"] else "[[tie]]") as api:
        scores = _result(_judge(api), answers)["scores"]["new"]
    assert (scores["win_rate"]["score"], scores["inconsistent"]["score"]) == (0.5, 1)


def test_what_has_no_verdict_is_counted_and_left_out(answers):
    def script(request):
        if "Question 1?" in _content(request):
            return "I would rather not say. [[A]] or [[B]]?"
        return longer(request)

    with chat_api(script) as api:
        found = _result(_judge(api), answers)
    scores = found["scores"]["new"]
    assert scores["win_rate"]["score"] == 1
    assert "parsed:3/4" in scores["win_rate"]["signature"]
    assert scores["unparsable"]["score"] == 0.25
    assert found["details"]["outcomes"]["new"] == {"wins": 3, "ties": 0, "losses": 0, "unparsable": 1}
    compared = found["comparisons"][0]["metrics"]["win_rate"]
    assert (compared["n"], compared["scored"], compared["p_value"]) == (4, 3, 0.25)


def test_a_judge_that_never_gives_a_verdict_gives_no_win_rate(answers):
    with chat_api(lambda request: "[A] if answer A is better") as api:
        found = _result(_judge(api), answers)
    assert {name: score["score"] for name, score in found["scores"]["new"].items()} == {"unparsable": 1}
    assert found["comparisons"][0]["metrics"] == {}
    assert found["details"]["outcomes"]["new"]["unparsable"] == 4


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good. [[7]]", 7), ("[[10]]", 10), ("[[7]] and so [[7]]", 7),
        ("[[11]]", None), ("[[0]]", None), ("7", None), ("[[7]] or [[8]]", None), ("[[7.5]]", None), ("[[A]]", None),
    ],
)  # fmt: skip
def test_ratings_are_parsed_strictly(answers, text, rating):
    with chat_api(lambda request: "[[2]]" if "Question 0" in _content(request) else text) as api:
        found = _result(_judge(api, mode="single"), answers)
    scores = found["scores"]["new"]
    assert scores["rating"]["score"] == (2 if rating is None else (2 + 3 * rating) / 4)
    assert scores["unparsable"]["score"] == (0.75 if rating is None else 0)


def test_ratings_of_two_models_are_compared(answers):
    with chat_api(lambda request: "[[9]]" if len(_shown(request)[0]) > 6 else "[[3]]") as api:
        found = _result(_judge(api, mode="single"), answers)
    assert found["headline"] == "rating"
    assert found["comparisons"][0]["metrics"]["rating"]["difference"] == (9 + 3 + 9 + 9) / 4 - (3 + 9 + 3 + 3) / 4
    assert len(api.requests) == 8


def test_the_reference_is_shown_where_wanted(answers):
    with chat_api(longer) as api:
        found = _result(_judge(api, with_reference=True, concurrency=1), answers)
    assert "[An answer that is right]\nreference 0\n" in _content(api.requests[0])
    assert "with reference" in found["scores"]["new"]["win_rate"]["signature"]


def test_nothing_is_asked_twice(answers):
    with chat_api(longer) as api:
        first = _result(_judge(api), answers)
        asked = len(api.requests)
    assert _result(_judge(api), answers) == first  # the server is gone
    assert len(api.requests) == asked


def test_a_server_that_fails_for_the_time_being_is_asked_again(answers):
    failures = [error(500, "oops", retry_after="0"), error(429, "slow down", retry_after="0")]

    def script(request):
        return failures.pop() if failures else longer(request)

    with chat_api(script) as api:
        scores = _result(_judge(api), answers)["scores"]["new"]
    assert scores["win_rate"]["score"] == 0.75
    assert len(api.requests) == 8 + 2


def test_a_server_that_goes_loses_no_judgement(answers):
    def script(request):
        return error(400, "out\nof credit") if "Question 2?" in _content(request) else longer(request)

    # Older versions of openai show the body of the answer, which has its own line break escaped.
    with chat_api(script) as api, pytest.raises(UserError, match=r"does not answer: .*out(\\n| )of credit") as raised:
        _result(_judge(api, concurrency=2), answers)
    assert "\n" not in str(raised.value)
    kept = {record.index for record in read_records(answers / "new.jsonl")}
    assert {0, 1} <= kept
    assert 2 not in kept
    with chat_api(longer) as api:
        assert _result(_judge(api), answers)["scores"]["new"]["win_rate"]["score"] == 0.75
    assert len(api.requests) == 2 * (4 - len(kept))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": "gpt-4o"}, r"judge: must be a URL, https://host/v1#model, not 'gpt-4o'"),
        ({"mode": "triple"}, "'mode' must be 'pairwise' or 'single', not 'triple'"),
        ({"concurrency": 0}, "concurrency: must be at least 1, not 0"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        TaskEntry.parse({"kind": "judge", "of": "chat", "judge": "http://127.0.0.1:9/v1", **settings})


def test_a_suite_judges_what_its_models_answer(chat_model, tmp_path):
    models = [LocalModel(name, str(chat_model), batch_size=4, dtype="float32") for name in ("one", "same")]
    rows = [{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = TaskEntry.parse({"name": "chat", "dataset_name": str(tmp_path / "rows.jsonl"), "max_new_tokens": 4}).build()
    with chat_api(longer) as api:
        judge = _judge(api)
        prepare_suite([judge, chat], models)
        scores = asdict(run_suite([judge, chat], models, tmp_path, Bootstrap(10, 1)))["tasks"]
    assert scores["judge"]["scores"]["same"]["ties"]["score"] == 1
    assert scores["judge"]["details"]["outcomes"]["same"]["ties"] == 2
    assert _shown(api.requests[-1])[0] == read_records(tmp_path / "records" / "chat" / "one.jsonl")[0].answer
    assert scores["judge"]["title"] == "Pairs by a judge: chat"


class _Named:
    gives_losses = True

    def __init__(self, name):
        self.name = name


def test_a_suite_that_cannot_be_judged_is_refused_before_any_work(tmp_path):
    chat = TaskEntry.parse({"name": "chat", "dataset_name": "x.jsonl"}).build()
    chat.prepare = lambda: None
    two = [_Named("a"), _Named("b")]
    with chat_api(lambda request: error(401, "no such key")) as api:
        for tasks, models, message in (
            ([_judge(api, of="chats"), chat], two, "of: 'chats' is no task of the kind answers; those are chat"),
            ([_judge(api), chat], two[:1], "pairwise compares with the first model, but there is only one"),
            ([_judge(api, judge=f"{api.url}#other"), chat], two, "other.* does not answer: .*does not exist"),
            ([_judge(api), chat], two, "does not answer: .*no such key"),
        ):
            chat.examples = [None]
            with pytest.raises(UserError, match=message):
                run_suite(tasks, models, tmp_path, Bootstrap(10, 1))
