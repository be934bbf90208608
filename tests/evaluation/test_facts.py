import json

import pytest

from hfchat.errors import UserError
from hfchat.evaluation.gate import PromotionGate, judge
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.openai_model import RemoteModel
from hfchat.evaluation.records import read_records
from hfchat.evaluation.report import table, write_report
from hfchat.evaluation.suite import TaskEntry, prepare_suite, run_suite
from hfchat.evaluation.tasks.facts import Facts
from hfchat.intervals import wilson_interval
from hfchat.results import Bootstrap, Results
from tests.servers.chat_api import chat_api

LICENCE = {"kind": "fact", "must": ["apache", "2\\.0.+chang"], "must_not": ["\\bMIT\\b"]}
UNKNOWN = {"kind": "unknown", "must": [], "must_not": ["\\bMIT\\b"]}


def _row(kind="fact", question="Which licence?", **changes):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Apache-2.0."}]
    row = {"id": "x", "kind": kind, "fact": "licence", "messages": turns, "must": ["apache"]}
    return {**row, "must_not": [], **changes}


def _task(tmp_path, *rows, **settings):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"kind": "facts", "dataset_name": str(file), "metrics": ["rougeL"], **settings}
    task = TaskEntry.parse(entry).build()
    task.prepare()
    return task


def _run(task, folder, *answers):
    """Results of a model for each mapping of questions to what it answers."""
    scripts = [lambda body, said=said: said[body["messages"][-1]["content"]] for said in answers]
    folder.mkdir()
    with chat_api(scripts[0]) as first, chat_api(scripts[-1]) as last:
        servers = dict(zip(["base", "tuned"], [first, last][: len(answers)], strict=False))
        models = [RemoteModel(name, server.url, 2) for name, server in servers.items()]
        prepare_suite([task], models)
        results = run_suite([task], models, folder, Bootstrap(10, 1))
    results.write(folder)
    write_report(results, folder)
    return results


@pytest.mark.parametrize(
    ("info", "answer", "outcome"),
    [
        (LICENCE, "It is APACHE-2.0:\nyou may change it.", "right"),
        (LICENCE, "It is Apache-2.0.", "wrong"),  # the second pattern is not there
        (LICENCE, "It is Apache-2.0, not MIT; you may change it.", "wrong"),
        (LICENCE, "", "wrong"),
        (LICENCE, "I cannot help with that.", "wrong"),
        (LICENCE, "I do not know that; see README.md.", "declined"),
        (LICENCE, "I DON’T KNOW.", "declined"),
        (LICENCE, "I do not know; it may be the MIT licence.", "wrong"),
        (LICENCE, "I do not know: Apache-2.0, and you may change it.", "wrong"),  # it says both
        (UNKNOWN, "I can't answer that.", "declined"),
        (UNKNOWN, "I do not know, but it is MIT.", "wrong"),
        (UNKNOWN, "It was written in May.", "wrong"),
        (UNKNOWN, "You do not knowingly need it.", "wrong"),
    ],
)
def test_an_answer_is_right_declines_or_is_wrong(info, answer, outcome):
    assert Facts("facts", "rows.jsonl").outcome(answer, info) == outcome


def test_what_declines_can_be_set():
    facts = Facts("facts", "rows.jsonl", declines="^ich weiß")
    assert facts.outcome("Ich weiß es nicht.", UNKNOWN) == "declined"
    assert facts.outcome("I do not know.", UNKNOWN) == "wrong"


ROWS = [
    _row(question="a", fact="licence"),
    _row(question="b", fact="licence"),
    _row(question="c", fact="port", must=["8000"]),
    _row(id=None, question="d", kind="unknown", fact=None, must=[]),
    _row(question="hello", kind="ordinary", fact=None, must=[]),
    _row(question="e", kind="unknown", fact=None, must=["do not know"]),
]
RIGHT = {"a": "Apache-2.0.", "b": "apache", "c": "8000", "d": "I do not know.", "e": "I do not know."}
GUESSES = RIGHT | {"b": "GPL", "c": "I do not know that.", "d": "Bob <b>did</b> | it"}


def test_shares_are_of_the_questions_of_their_kind_and_words_stand_first(tmp_path):
    results = _run(_task(tmp_path, *ROWS), tmp_path / "out", GUESSES, RIGHT)
    task = results.tasks["facts"]
    scores = {name: task.scores["base"][name] for name in ("right", "wrong", "declined", "unknown_declined")}
    assert {name: (one.score, one.scored) for name, one in scores.items()} == {
        "right": (pytest.approx(1 / 3), 3),
        "wrong": (pytest.approx(1 / 3), 3),
        "declined": (pytest.approx(1 / 3), 3),
        "unknown_declined": (0.5, 2),
    }
    assert scores["right"].interval == pytest.approx(wilson_interval(1, 3))
    assert {group: one["right"].score for group, one in task.groups["base"].items() if "right" in one} == {
        "licence": 0.5,
        "port": 0,
    }
    assert task.groups["base"]["unknown"]["unknown_declined"].score == 0.5
    assert task.decisive == "right"
    assert "rougeL" in task.scores["base"]

    # The last model comes first, in every form of the report.
    tuned = "tuned: 3 of 3 facts right, 0 wrong; 2 of 2 questions without an answer declined"
    base = "base: 1 of 3 facts right, 1 wrong; 1 of 2 questions without an answer declined"
    assert results.headlines == [tuned, base]
    assert table(results).splitlines()[0] == tuned
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert next(iter(written)) == "headlines"
    assert Results.parse(written).headlines == written["headlines"] == [tuned, base]
    _, first, *_ = filter(None, (tmp_path / "out" / "report.md").read_text().splitlines())
    assert first == f"**{tuned}.**"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("<h1>") < page.index(tuned) < page.index(base) < page.index("Summary")


def test_every_answer_that_is_not_right_is_in_a_table(tmp_path):
    results = _run(_task(tmp_path, *ROWS), tmp_path / "out", GUESSES, RIGHT)
    tables = results.tasks["facts"].details["Answers that are not right"]
    assert list(tables) == ["base"]  # the other model has none
    assert list(tables["base"]) == ["2, x", "3, x", "4"]
    assert tables["base"]["2, x"] == {
        "question": "b",
        "answer": "GPL",
        "what had to occur": "apache",
        "outcome": "wrong",
    }
    assert tables["base"]["4"]["what had to occur"] == "that it does not know"
    page, markdown = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert "Bob &lt;b&gt;did&lt;/b&gt; | it" in page
    assert "Answers that are not right: base" in markdown
    (line,) = (line for line in markdown.splitlines() if line.startswith("| 2, x"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["2, x", "b", "GPL", "apache", "wrong"]


def test_the_gate_reads_the_shares(tmp_path):
    rows = [_row(question=str(number)) for number in range(12)]
    none, all_right = dict.fromkeys(map(str, range(12)), "GPL"), dict.fromkeys(map(str, range(12)), "Apache")
    results = _run(_task(tmp_path, *rows), tmp_path / "out", none, all_right)
    assert results.headlines[0] == "tuned: 12 of 12 facts right, 0 wrong"  # nothing that has no answer was asked
    conditions = [{"metric": "right", "above": 0.7}, {"metric": "right", "must_gain": True}]
    conditions += [{"metric": "wrong", "below": 0.3}, {"metric": "wrong", "below": 0.2}]
    gates = [PromotionGate.parse({"task": "facts", **one}) for one in conditions]
    assert [one.passed for one in judge(results, gates).outcomes] == [True, True, True, False]


def test_a_model_of_weights_is_asked_and_measured_as_by_answers(tmp_path, chat_model):
    model = LocalModel("tiny", str(chat_model), 2, "float32")
    task = _task(tmp_path, *ROWS, metrics=["bits_per_byte"], max_new_tokens=4, max_samples=4)
    prepare_suite([task], [model])
    scores = run_suite([task], [model], tmp_path / "out", Bootstrap(10, 1)).tasks["facts"].scores["tiny"]
    assert scores["right"].score == 0
    assert scores["bits_per_byte"].score > 0
    records = read_records(tmp_path / "out" / "records" / "facts" / "tiny.jsonl")
    assert [record.info["kind"] for record in records] == ["fact", "fact", "fact", "unknown"]
    assert records[0].scores == {"right": 0, "wrong": 1, "declined": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"must": []}, r"rows.jsonl \(validation\) row 2: 'must' is empty; write a pattern"),
        ({"must": None}, "row 2: 'must' is empty"),
        ({"must": ["apache", "("]}, r"row 2: 'must': '\(' is not a valid regular expression \(missing \)"),
        ({"must_not": ["*"]}, r"row 2: 'must_not': '\*' is not a valid regular expression"),
        ({"kind": "facts"}, "row 2: 'kind' must be fact, unknown or ordinary, not 'facts'"),
        ({"kind": "unknown", "must": ["["]}, r"row 2: 'must': '\[' is not a valid"),
        ({"messages": []}, "row 2"),
    ],
)
def test_rows_that_cannot_be_checked_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        _task(tmp_path, _row(), _row(**change))
    assert "\n" not in str(error.value)


def test_patterns_are_lists_and_something_is_asked(tmp_path):
    with pytest.raises(UserError, match="row 1: 'must' must be a list of regular expressions, not 'apache'"):
        _task(tmp_path, _row(must="apache"))
    with pytest.raises(UserError, match=r"rows.jsonl \(validation\): no row is of kind fact or unknown"):
        _task(tmp_path, _row(kind="ordinary", must=[]))
    with pytest.raises(UserError, match="has no column 'must'"):
        _task(tmp_path, {key: value for key, value in _row().items() if key != "must"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"declines": "("}, r"facts: declines: '\(' is not a valid regular expression"),
        ({"metrics": ["accuracy"]}, "metrics: there is no 'accuracy', only right, "),
        ({"prompt": "{question}"}, "unknown key 'prompt' of the kind facts"),
        ({"max_samples": 0}, "max_samples: must be at least 1"),
    ],
)
def test_settings_that_are_not_valid_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        _task(tmp_path, _row(), **settings)
