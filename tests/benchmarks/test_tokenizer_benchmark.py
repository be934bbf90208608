import pytest

pytest.importorskip("rustbpe")

from benchmarks.tokenizer import main, measure, read_documents


def test_documents_are_repeated_to_the_size_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("one é\n\ntwo\n\n\n")
    documents = read_documents([tmp_path / "a.txt"], megabytes=0.001)
    assert documents[:3] == ["one é", "two", "one é"]
    assert 1000 <= sum(len(document.encode()) for document in documents) < 1006


def test_contestants_run_in_turn():
    calls = []
    measured = measure({name: lambda name=name: calls.append(name) or name for name in "abc"}, repeats=2)
    assert "".join(calls) == "abccba"
    assert [one.result for one in measured.values()] == ["a", "b", "c"]


def test_the_table_has_each_trainer_and_both_agree(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the quick brown fox\n\njumps over the lazy dog")
    main(["--data", str(tmp_path / "a.txt"), "--megabytes", "0.01", "--vocab_size", "320", "--repeats", "1"])
    printed = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["tokenizers", "hfchat, trainer tokenizers", "rustbpe", "hfchat, trainer rustbpe"]
    assert "identical tokenizers" in printed
