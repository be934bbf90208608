import json
from dataclasses import asdict

import pytest

from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.suite import TaskEntry
from hfchat.evaluation.task import Record, result
from hfchat.results import Bootstrap

PAIRS = [{"en": f"Number {i} is here.", "de": f"Die Nummer {i} ist da."} for i in range(4)]
CHATS = [
    {"messages": [{"role": "user", "content": row["en"]}, {"role": "assistant", "content": row["de"]}]}
    for row in PAIRS
]


def _file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def chats(tmp_path):
    return _file(tmp_path / "chats.jsonl", CHATS)


@pytest.fixture
def pairs(tmp_path):
    return _file(tmp_path / "pairs.jsonl", PAIRS)


def _task(**settings):
    return TaskEntry.parse(settings).build()


def test_columns_make_the_same_examples_as_messages(chats, pairs):
    of_messages, of_columns = _task(dataset_name=chats), _task(dataset_name=pairs, prompt="{en}", references="de")
    for task in (of_messages, of_columns):
        task.prepare()
    assert [example.prompt for example in of_columns.examples] == [example.prompt for example in of_messages.examples]
    assert [example.references for example in of_columns.examples] == [[row["de"]] for row in PAIRS]


def test_a_system_message_and_several_references(tmp_path):
    rows = [{"q": "Hello {x}", "refs": ["Hallo", "Servus"]}]
    task = _task(
        dataset_name=_file(tmp_path / "rows.jsonl", rows), prompt="Say: {q}", references="refs", system="Be brief."
    )
    task.prepare()
    (example,) = task.examples
    assert example.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say: Hello {x}"},
    ]
    assert example.references == ["Hallo", "Servus"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "{fr}", "references": "de"}, "answers: prompt: there is no column 'fr', only \\['de', 'en'\\]"),
        ({"prompt": "{en}", "references": "fr"}, "has no column 'fr'"),
        ({}, "has no column 'messages'"),
    ],
)
def test_what_is_wrong_with_the_data_is_one_line(pairs, settings, message):
    with pytest.raises(UserError, match=message) as error:
        _task(dataset_name=pairs, **settings).prepare()
    assert "\n" not in str(error.value)


def test_an_empty_reference_names_its_row(tmp_path):
    rows = [*PAIRS, {"en": "x", "de": " "}]
    with pytest.raises(UserError, match=r"rows.jsonl \(validation\) row 5: de must be a text"):
        _task(dataset_name=_file(tmp_path / "rows.jsonl", rows), prompt="{en}", references="de").prepare()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["blue"], "headline": "blue"}, "answers: metrics: there is no 'blue', only bleu"),
        ({"metrics": ["bleu"]}, "answers: headline: 'rougeL' is not among the metrics"),
        ({"prompt": "{en}"}, "answers: prompt and references: set both"),
        ({"max_samples": 0}, "answers: max_samples: must be at least 1, not 0"),
        ({"max_samples": "many"}, "answers: 'max_samples' must be a valid integer"),
        ({"max_sample": 3}, "unknown key 'max_sample' of the kind answers; did you mean 'max_samples'"),
        ({"kind": "answer"}, "there is no kind 'answer'; there are answers, "),
        ({"name": "a/b"}, "the name 'a/b' must be a word"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        TaskEntry.parse({"dataset_name": "none.jsonl", **settings})


def test_a_data_set_must_be_named():
    with pytest.raises(ValueError, match=r"tasks: answers: needs 'dataset_name'"):
        TaskEntry.parse("answers")


def test_scores_are_of_the_files_alone(chats, tmp_path):
    task = _task(dataset_name=chats, metrics=["bleu", "rougeL", "perplexity"])
    task.prepare()
    for name, answer in {"right": "Die Nummer {} ist da.", "wrong": "Nein."}.items():
        records = [
            Record(i, example.prompt, list(example.references), answer=answer.format(i), answer_tokens=3, ended=i > 0,
                   targets=list(example.targets), losses=[6.0], target_tokens=[3])
            for i, example in enumerate(task.examples)
        ]  # fmt: skip
        write_records(tmp_path / f"{name}.jsonl", records)
    found = asdict(result(task, ["wrong", "right"], tmp_path, Bootstrap(200, 1)))
    assert found["dataset"]["n"] == 4
    assert found["scores"]["right"]["bleu"]["score"] == pytest.approx(100)
    assert found["scores"]["right"]["rougeL"]["score"] == 1
    assert found["scores"]["right"]["perplexity"]["score"] == pytest.approx(2.718281828**2)
    assert found["scores"]["right"]["ended"]["score"] == 0.75
    assert found["scores"]["wrong"]["rougeL"]["score"] == 0
    (comparison,) = found["comparisons"]
    assert (comparison["model"], comparison["baseline"]) == ("right", "wrong")
    assert comparison["metrics"]["rougeL"]["difference"] == 1
    assert list(found["metrics"]) == ["bleu", "rougeL", "perplexity", "answer_tokens", "ended"]
    assert [record.scores["rougeL"] for record in read_records(tmp_path / "right.jsonl")] == [1, 1, 1, 1]


def test_a_model_is_asked_for_likelihoods_only_where_they_are_measured(chats, chat_model, tmp_path):
    model = LocalModel("tiny", str(chat_model), batch_size=4, dtype="float32")
    for metrics, losses in ((["rougeL"], 0), (["rougeL", "bits_per_byte"], 1)):
        task = _task(dataset_name=chats, metrics=metrics, max_new_tokens=4)
        task.prepare()
        task.collect(model, tmp_path / str(losses))
        records = read_records(tmp_path / str(losses) / "tiny.jsonl")
        assert [len(record.losses) for record in records] == [losses] * 4


USER, ASSISTANT = CHATS[0]["messages"]


def test_the_last_answer_is_the_reference(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, {"role": "user", "content": "Why?"}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "So."}], "topic": "x"}, CHATS[1]]
    task = _task(dataset_name=_file(tmp_path / "rows.jsonl", rows))
    task.prepare()
    first, second = task.examples
    assert (first.prompt, first.references) == (turns, ["So."])
    assert (second.prompt, second.references) == (CHATS[1]["messages"][:1], [CHATS[1]["messages"][1]["content"]])


def test_a_folder_is_read_by_its_split(tmp_path):
    _file(tmp_path / "train.jsonl", CHATS)
    _file(tmp_path / "validation.jsonl", CHATS[:1])
    task = _task(dataset_name=str(tmp_path))
    task.prepare()
    assert len(task.examples) == 1
    with pytest.raises(UserError, match=r"cannot load split 'test'"):
        _task(dataset_name=str(tmp_path), split="test").prepare()


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "row 2: has no messages"),
        ([USER], "row 2: the last turn must be the assistant's, not the user's"),
        ([ASSISTANT], "row 2: has no turn before the answer"),
        ([USER, {"role": "assistant", "content": " "}], r"row 2: turn 1 \(assistant\) has no content"),
        ([{"content": "Hi"}, ASSISTANT], "row 2: turn 0 has the role None"),
    ],
)
def test_bad_conversations_are_named(tmp_path, messages, message):
    rows = [CHATS[0], {"messages": messages}]
    with pytest.raises(UserError, match=message) as error:
        _task(dataset_name=_file(tmp_path / "rows.jsonl", rows)).prepare()
    assert "\n" not in str(error.value)


def test_a_suite_can_set_the_tokenizer_of_bleu(tmp_path):
    record = Record(0, "?", ["第1个柜子是蓝色的。"], answer="第1个柜子是蓝色的。")
    for settings, tokenize in (({}, "zh"), ({"tokenize": "char"}, "char")):
        write_records(tmp_path / "m.jsonl", [record])
        task = _task(dataset_name="x", metrics=["bleu"], headline="bleu", **settings)
        statistics = task.measure("m", tmp_path).statistics["bleu"]
        assert statistics.of_all() == pytest.approx(100)
        assert f"|tok:{tokenize}|" in statistics.signature


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenize": "flores200"}, "tasks: answers: tokenize: flores200 would fetch a model from the network"),
        ({"tokenize": "13b"}, "tasks: answers: tokenize: there is no '13b', only none, zh, 13a"),
        ({"tokenize": "zh", "metrics": ["rougeL"]}, "tokenize: is of BLEU, which is not among the metrics"),
    ],
)
def test_a_wrong_tokenizer_is_named_before_any_work(settings, message):
    with pytest.raises(ValueError, match=message):
        _task(dataset_name="x", **settings)


COLOUR = [{"text": "Locker 1 is blue.", "answer": '{"colour": "blue"}', "n": 1}]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            'Answer as {"colour": "..."}: {text}',
            r"""prompt: \{"colour": "..."\} is not a column; .* twice: \{\{ or \}\}""",
        ),
        ("Answer as {colour: blue}: {text}", r"prompt: \{colour: blue\} is not a column; .* twice: \{\{ or \}\}"),
        ("What is in { ? {text}", r"prompt: .*; a brace that is text is written twice: \{\{ or \}\}"),
        ("So } ends: {text}", r"prompt: Single '\}' encountered.*; a brace that is text is written twice"),
        ("{} {text}", r"prompt: \{\} is not a column; a brace that is text is written twice"),
        ("{text!r}", r"prompt: \{text!r\} is not a column"),
        ("{n:03d}", r"prompt: \{n:03d\} is not a column"),
    ],
)
def test_a_prompt_whose_braces_are_no_columns_says_to_double_them(prompt, message):
    with pytest.raises(ValueError, match=message):
        _task(dataset_name="x", prompt=prompt, references="answer")


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ('Answer as {{"colour": "..."}}: {text}', 'Answer as {"colour": "..."}: Locker 1 is blue.'),
        ("No. {n}: {answer}", 'No. 1: {"colour": "blue"}'),
        ("No column", "No column"),
    ],
)
def test_doubled_braces_are_text(tmp_path, prompt, asked):
    task = _task(dataset_name=_file(tmp_path / "rows.jsonl", COLOUR), prompt=prompt, references="answer")
    task.prepare()
    assert task.examples[0].prompt[-1]["content"] == asked


@pytest.mark.parametrize("prompt", ["{0}", "{text.x}", "{text[0]}", "{colour}"])
def test_a_column_that_is_not_there_says_to_double_braces(tmp_path, prompt):
    task = _task(dataset_name=_file(tmp_path / "rows.jsonl", COLOUR), prompt=prompt, references="answer")
    with pytest.raises(UserError, match=r"prompt: there is no column '.*', only .*written twice: \{\{ or \}\}"):
        task.prepare()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"q": None, "a": "4"},
            r"rows.jsonl \(validation\) row 2: q is empty \(null\); write something there, or remove",
        ),
        ({"q": "2+2?", "a": None}, r"row 2: a is empty \(null\)"),
        ({"q": " ", "a": "4"}, r"row 2: q must be a text, not ' '"),
    ],
)
def test_nothing_in_a_column_names_the_row_and_the_column(tmp_path, row, message):
    rows = [{"q": "1+1?", "a": "2"}, row]
    with pytest.raises(UserError, match=message):
        _task(dataset_name=_file(tmp_path / "rows.jsonl", rows), prompt="{q}", references="a").prepare()


@pytest.mark.parametrize(
    ("question", "references", "message"),
    [
        (["a", "b"], "x", "row 1: q must be a text, not"),
        ({"a": 1}, "x", "row 1: q must be a text, not"),
        ("x", [], r"row 1: a is empty \(null\)"),
        ("x", ["y", None], r"row 1: a is empty \(null\)"),
        ("x", {"y": "z"}, "row 1: a must be a text or a list of texts, not"),
        (3, 4.5, None),
        ("x", [1, 2], None),
    ],
)
def test_numbers_are_texts_and_other_types_are_named(tmp_path, question, references, message):
    task = _task(
        dataset_name=_file(tmp_path / "r.jsonl", [{"q": question, "a": references}]), prompt="{q}", references="a"
    )
    if message is not None:
        with pytest.raises(UserError, match=message):
            task.prepare()
        return
    task.prepare()
    (example,) = task.examples
    assert example.prompt[-1]["content"] == str(question)
    assert example.references == [str(one) for one in (references if isinstance(references, list) else [references])]
