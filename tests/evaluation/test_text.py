import json
from dataclasses import asdict

import pytest

from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.perplexity import text_losses
from hfchat.evaluation.records import read_records
from hfchat.evaluation.suite import TaskEntry
from hfchat.evaluation.task import result
from hfchat.results import Bootstrap
from tests.conftest import SHARED_DATA, TEXTS

NO_RESAMPLES = Bootstrap(resamples=20)


def _task(dataset_name, **settings):
    return TaskEntry.parse(
        {"kind": "perplexity", "name": "held-out", "dataset_name": str(dataset_name), **settings}
    ).build()


@pytest.fixture
def tiny(chat_model):
    return LocalModel("tiny", str(chat_model), batch_size=4, dtype="float32")


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS[:5]))
    return file


def test_a_model_is_measured_from_its_records(tiny, texts, tmp_path):
    task = _task(texts, text_column="body", window=64, stride=24)
    task.prepare()
    task.check(tiny)
    task.collect(tiny, tmp_path / "records")
    scored = asdict(result(task, ["tiny"], tmp_path / "records", NO_RESAMPLES))
    losses, tokens = text_losses(tiny.model, tiny.tokenizer, TEXTS[:5], 1, 64, 24)
    score = scored["scores"]["tiny"]["bits_per_byte"]
    assert score["score"] == pytest.approx(sum(losses) / sum(len(text.encode()) for text in TEXTS[:5]) / 0.6931471805)
    assert score["n"] == 5
    assert scored["headline"] == "bits_per_byte"
    assert scored["scores"]["tiny"]["perplexity"]["signature"] == (
        f"perplexity|per:token|tokens:{sum(tokens)}|target:text|context:start-of-document|window:64|stride:24"
    )
    records = read_records(tmp_path / "records" / "tiny.jsonl")
    assert [record.losses[0] for record in records] == pytest.approx(losses, rel=1e-6)
    assert [record.target_tokens for record in records] == [[number] for number in tokens]
    assert [record.targets for record in records] == [[text] for text in TEXTS[:5]]
    assert all(record.scores["bits_per_byte"] > 0 for record in records)


def test_what_is_recorded_is_not_measured_again(tiny, texts, tmp_path, monkeypatch):
    task = _task(texts, text_column="body")
    task.prepare()
    task.collect(tiny, tmp_path / "records")
    before = asdict(result(task, ["tiny"], tmp_path / "records", NO_RESAMPLES))
    monkeypatch.setattr(LocalModel, "text_losses", None)
    task.collect(tiny, tmp_path / "records")
    assert asdict(result(task, ["tiny"], tmp_path / "records", NO_RESAMPLES)) == before


def test_a_window_is_by_default_the_models_context(tiny, texts, tmp_path):
    task = _task(texts, text_column="body", max_samples=1)
    task.prepare()
    task.collect(tiny, tmp_path / "records")
    (record,) = read_records(tmp_path / "records" / "tiny.jsonl")
    assert record.info == {"window": 128, "stride": 64}


def test_a_corpus_of_the_project(corpus):
    task = _task(corpus)
    task.prepare()
    assert [example.targets for example in task.examples] == [[text] for text in TEXTS[:6]]
    assert task.dataset().n == 6


def test_a_text_file_is_one_text_or_several(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n===\nTwo.\n===\n \n")
    for separator, expected in ((None, ["One.\n===\nTwo.\n===\n \n"]), ("\n===\n", ["One.", "Two."])):
        task = _task(tmp_path / "a.txt", separator=separator)
        task.prepare()
        assert [example.targets[0] for example in task.examples] == expected


def test_a_real_file_of_articles():
    file = SHARED_DATA / "pretrain" / "wikitext2-valid.txt"
    if not file.exists():
        pytest.skip("the shared data is not here")
    task = _task(file, separator="\n = ", max_samples=3)
    task.prepare()
    assert task.examples[0].targets[0].startswith("Homarus gammarus")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "held-out: window: must be at least 2, not 1"),
        ({"max_samples": 0}, "max_samples: must be at least 1, not 0"),
        ({"separator": "\n"}, "separator: is for a .txt file, which dataset_name rows.jsonl is not"),
        ({"strides": 3}, "unknown key 'strides' of the kind perplexity; did you mean 'stride'?"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _task("rows.jsonl", **settings)


def test_bad_data_is_refused_before_a_model_is_loaded(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"text": " "}\n')
    with pytest.raises(UserError, match=r"rows.jsonl \(validation\) row 2: text must be a text, not ' '"):
        _task(rows).prepare()
    with pytest.raises(UserError, match="has no column 'body', only"):
        _task(rows, text_column="body").prepare()
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        _task(tmp_path / "none.txt").prepare()
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"empty\.txt: holds no text"):
        _task(tmp_path / "empty.txt").prepare()


def test_a_window_that_a_model_cannot_read_is_refused_before_it_is_loaded(tiny, texts):
    task = _task(texts, text_column="body", window=4096)
    with pytest.raises(UserError, match=r"tasks: held-out: .*: window: 4096 tokens, but the model reads 128"):
        task.check(tiny)
    assert tiny.parameters is None


def test_a_server_is_left_out(texts):
    class Server(EvaluatedModel):
        gives_losses = False

    assert _task(texts).refusal(Server("server", "http://there/v1", 1)) == "a server gives no likelihoods of texts"


def test_a_model_whose_tokenizer_loses_a_part_of_a_text_gets_no_bits_per_byte(tiny, tmp_path, monkeypatch):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS[:4], "Unseen: 汉字."]))
    task = _task(texts)
    task.prepare()
    for name, of_model in (("whole", tiny), ("lossy", LocalModel("lossy", tiny.path, 4, "float32"))):
        of_model.name = name
        if name == "lossy":
            monkeypatch.setattr(
                "hfchat.evaluation.local_model.what_is_lost",
                lambda _, text: "2 tokens of 9 are <unk>" if "汉" in text else None,
            )
        task.collect(of_model, tmp_path / "records")
    scored = asdict(result(task, ["whole", "lossy"], tmp_path / "records", NO_RESAMPLES))
    assert scored["scores"]["whole"].keys() == {"bits_per_byte", "perplexity"}
    assert scored["scores"]["lossy"].keys() == scored["comparisons"][0]["metrics"].keys() == {"perplexity"}
    why = scored["details"]["no bits per byte"]["lossy"]["why"]
    assert why == "its tokenizer loses a part of 1 of 5 texts; example 5: 2 tokens of 9 are <unk>"
    assert "whole" not in scored["details"]["no bits per byte"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_text_file_is_read_in_any_encoding_and_with_any_line_ends(tmp_path, encoding, ending):
    content = "Öne.\n\nTwo.\nStill two.\n\n汉字".replace("\n", ending)
    (tmp_path / "a.txt").write_bytes(content.encode(encoding))
    task = _task(tmp_path / "a.txt", separator="\n\n")
    task.prepare()
    assert [example.targets[0] for example in task.examples] == ["Öne.", "Two.\nStill two.", "汉字"]


def test_a_separator_that_never_occurs_is_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    _task(tmp_path / "a.txt", separator="===").prepare()
    assert "a.txt: holds no '===' (separator), so it is one text" in capsys.readouterr().out
    _task(tmp_path / "a.txt", separator="\n\n").prepare()
    assert not capsys.readouterr().out
