"""`hfchat models` as a user types it."""

import json

import pytest

from hfchat.cli import main


@pytest.fixture
def models(tmp_path, capsys):
    """Runs `hfchat models ACTION registry …` and returns what it printed."""

    def run(action, *arguments):
        main(["models", action, str(tmp_path / "registry"), *map(str, arguments)])
        return capsys.readouterr().out

    return run


def test_from_the_first_version_to_a_rollback(models, tmp_path):
    assert "no versions yet" in models("list")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(name))
    assert models("add", tmp_path / "a", "--promote").splitlines()[-1] == "v1 answers"
    assert models("add", tmp_path / "b", "--reason", "more data").endswith("registry/v2\n")
    assert "20%" in models("try", "v2", "--share", "0.2")
    listed = models("list").splitlines()
    assert listed[-2].endswith("v1  answers")
    assert listed[-1].endswith("v2  answers 20% of the requests")
    assert any(line.endswith("more data") for line in listed)
    models("promote", "v2")
    assert models("rollback", "--reason", "rude") == "v1 answers again\n"
    assert "rude" in models("list")


def test_what_cannot_be_is_one_line(models, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        models("promote", "v7")
    assert exit.value.code == 2
    assert "has no version v7" in capsys.readouterr().err


def test_a_damaged_candidate_is_said_and_stops_nothing(models, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    models("add", tmp_path / "a", "--promote")
    (tmp_path / "registry" / "candidate.json").mkdir()
    assert "candidate.json cannot be read: it is not a file; delete it" in models("list")
    assert models("promote", "v1") == "v1 answers\n"
