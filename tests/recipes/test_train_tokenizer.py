import io
import json

import pytest
from transformers import AutoTokenizer

from hfchat.errors import UserError
from hfchat.lineage import read_lineage
from recipes.train_tokenizer import main
from tests.conftest import TEXTS


def train(corpus, output_dir, *arguments):
    settings = {"dataset_name": corpus, "output_dir": output_dir, "vocab_size": 512, "compare_with": "tokenizer"}
    argv = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    main([*argv, *map(str, arguments)])
    return AutoTokenizer.from_pretrained(output_dir)


def test_a_run_says_what_it_costs_and_what_came_out(corpus, tmp_path, capfd):
    output_dir = tmp_path / "tokenizer"
    tokenizer = train(corpus, output_dir)
    printed = capfd.readouterr().out
    assert "MB to read; expected: " in printed
    assert "GB of memory, " in printed
    assert "512 tokens, " in printed
    assert "exact round trip" in printed
    metrics = read_lineage(output_dir)["metrics"]
    assert metrics["vocab_size"] == len(tokenizer) == 512
    assert metrics["lossless"] is True
    files = {file.name for file in output_dir.iterdir()}
    assert {f"tokenizer_report.{ending}" for ending in ("html", "md", "json", "png")} < files
    train(corpus, output_dir)
    assert "nothing to do" in capfd.readouterr().out


def test_one_text_file_is_a_corpus(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes("\r\n\r\n".join([*TEXTS, "What does <|im_end|> do?"]).encode("utf-16"))
    tokenizer = train(file, tmp_path / "tokenizer")
    assert "\ufeff" not in "".join(tokenizer.get_vocab())
    assert "Ġthe" in tokenizer.get_vocab()


@pytest.mark.parametrize("algorithm", ["sentencepiece_bpe", "sentencepiece_unigram"])
def test_other_algorithms(algorithm, corpus, tmp_path):
    tokenizer = train(corpus, tmp_path / "tokenizer", "--algorithm", algorithm, "--split_pattern", "gpt4")
    assert "▁the" in tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer("a  漢 ▁")["input_ids"], skip_special_tokens=True) == "a  漢 ▁"


def test_the_trainer_does_not_change_the_result(corpus, tmp_path):
    pytest.importorskip("rustbpe")
    tokenizers = [train(corpus, tmp_path / name, "--trainer", name) for name in ("tokenizers", "rustbpe")]
    assert len({tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers}) == 1


def test_a_sentencepiece_model_is_imported(corpus, tmp_path, capfd):
    spm = pytest.importorskip("sentencepiece")
    stream = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=stream, vocab_size=380, byte_fallback=True, minloglevel=2
    )
    file = tmp_path / "mine.model"
    file.write_bytes(stream.getvalue())
    tokenizer = train(corpus, tmp_path / "tokenizer", "--sentencepiece_model", file)
    assert tokenizer.convert_ids_to_tokens(380) == "<|endoftext|>"
    assert "it changes text" in capfd.readouterr().out
    lineage = read_lineage(tmp_path / "tokenizer")
    assert lineage["metrics"]["lossless"] is False
    assert lineage["inputs"].keys() == {"corpus", "sentencepiece_model"}
    report = json.loads((tmp_path / "tokenizer" / "tokenizer_report.json").read_text())
    assert "code" in report["lost_samples"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab_size", "1000"], "multiple of 64 .*1024 is nearest"),
        (["--vocab_size", "64"], "at least 512 .*512 is nearest"),
        (["--sample_bytes", "0"], "sample_bytes must be at least 1"),
        (["--algorithm", "wordpiece"], "algorithm"),
        (["--algorithm", "sentencepiece_bpe", "--trainer", "rustbpe"], "leave it at auto"),
        (["--sentencepiece_model", "missing/mine.model"], "no such file|missing/mine.model"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, corpus, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        main(["--dataset_name", str(corpus), "--output_dir", str(tmp_path / "out"), *arguments])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_would_overflow_is_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("hfchat.tokenization.training.MAX_PAIR_COUNT", 50)
    with pytest.raises(UserError, match="use at most --sample_bytes"):
        train(corpus, tmp_path / "tokenizer")
