import json

import pytest

from hfchat.dataset import load_split
from hfchat.errors import UserError
from hfchat.lineage import read_lineage
from hfchat.training.supervision import supervise
from recipes.prepare_conversations import main
from tests.conftest import ROOT, SHARED_DATA


@pytest.fixture
def chats(tmp_path):
    file = tmp_path / "chats.jsonl"
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"Question {i}? Mail me at jo{i}@corp-mail.com"},
                {"from": "gpt", "value": f"The answer is {i}."},
            ]
        }
        for i in range(60)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return file


def arguments(chats, tmp_path, *more):
    source = json.dumps({"path": str(chats), "license": "CC-BY-4.0"})
    return ["--sources", source, "--output_dir", str(tmp_path / "out"), "--validation_fraction", "0.1", *more]


def test_a_finished_dataset_is_one_that_fine_tuning_takes(chats, tmp_path, tokenizer, capsys):
    main(arguments(chats, tmp_path))
    assert "removed {'malformed': 1}" in capsys.readouterr().out
    lineage = read_lineage(tmp_path / "out")
    assert lineage["licenses"] == ["CC-BY-4.0"]
    assert lineage["metrics"]["conversations"] == 61
    assert lineage["metrics"]["personal_data"] == {"email": 60}
    train = load_split(str(tmp_path / "out"), "train", "messages")
    _, supervision = supervise(train, tokenizer, 256, "out")
    assert supervision.conversations == lineage["metrics"]["kept"]["train"] == len(train)
    assert supervision.supervised_tokens > len(train)

    main(arguments(chats, tmp_path))
    assert "nothing to do" in capsys.readouterr().out


def test_a_pair_of_answers_goes_through_the_template_of_trl(tmp_path, tokenizer):
    from trl.data_utils import apply_chat_template

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."}) + "\n")
    main(arguments(pairs, tmp_path, "--validation_fraction", "0"))
    (row,) = load_split(str(tmp_path / "out"), "train", "chosen")
    texts = apply_chat_template(row, tokenizer)
    assert texts["prompt"].endswith("<|im_start|>assistant\n")
    assert (texts["chosen"], texts["rejected"]) == ("Hello.<|im_end|>\n", "Go.<|im_end|>\n")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--strict", "true"], r"chats.jsonl \(row 61\): not JSON"),
        (["--pii", "name"], "pii: there is no kind 'name'"),
        (["--pii_regions", "XX"], "'XX' is not a region"),
        (["--validation_fraction", "1"], "validation_fraction must be at least 0 and below 1"),
        (["--n_grams", "0"], "n_grams must be at least 1"),
        (["--evaluation_sets", '{"path": "a.jsonl"}'], "each of evaluation_sets: needs 'name'"),
    ],
)
def test_bad_settings_are_named(chats, tmp_path, more, problem):
    with pytest.raises(UserError, match=problem) as error:
        main(arguments(chats, tmp_path, *more))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_no_source_is_an_error(tmp_path):
    with pytest.raises(UserError, match="sources: name at least one"):
        main(["--output_dir", str(tmp_path / "out")])


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data is not here")
@pytest.mark.parametrize(
    ("name", "conversations", "column"),
    [("dialogsum", 500, "messages"), ("hh-rlhf", 1000, "chosen"), ("instructions", 7648, "messages")],
)
def test_a_shipped_config_runs(name, conversations, column, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = ROOT / "recipes" / "configs" / "conversations" / f"{name}.yaml"
    main(["--config", str(config), "--output_dir", str(tmp_path / "out")])
    metrics = read_lineage(tmp_path / "out")["metrics"]
    assert metrics["conversations"] == conversations
    assert sum(metrics["kept"].values()) + sum(metrics["removed"].values()) == conversations
    assert load_split(str(tmp_path / "out"), "train", column)[0]["source"]
