import json
from collections import Counter

import pytest

from hfchat.errors import UserError
from hfchat.training.mixture import MixedDataset, amounts, check_mixture, draw
from recipes.finetune import main


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{}, {}], [10, 40]),
        ([{"epochs": 3}, {"epochs": 0.25}], [30, 10]),
        ([{"epochs": 3}, {"weight": 2}], [30, 60]),
        ([{}, {"weight": 0.5}], [10, 5]),
        ([{"weight": 1}, {"weight": 1}], [10, 10]),
        ([{"weight": 1}, {"weight": 8}], [5, 40]),
        ([{"weight": 0.001}, {"epochs": 1}], [1, 40]),
    ],
)
def test_epochs_and_weights_say_how_much_a_pass_takes(entries, expected):
    mixed = [MixedDataset.parse({"path": f"data/{i}", **entry}) for i, entry in enumerate(entries)]
    assert amounts(mixed, [10, 40]) == expected


def test_rows_are_drawn_whole_before_any_is_drawn_again():
    rows = draw([4, 100], [10, 30], seed=7).tolist()
    counts = Counter(rows)
    assert sorted(counts[row] for row in range(4)) == [2, 2, 3, 3]
    assert sum(counts[row] for row in range(4, 104)) == 30 == len([row for row in counts if row >= 4])
    assert rows != sorted(rows)
    assert rows == draw([4, 100], [10, 30], seed=7).tolist()
    assert set(rows) != set(draw([4, 100], [10, 30], seed=8).tolist())


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"path": "a", "weight": 1, "epochs": 1}], "dataset_mixture a: it has both 'epochs' and 'weight'"),
        ([{"path": "a", "epochs": 0}], "dataset_mixture a: 'epochs' must be greater than 0, not 0"),
        ([{"path": "a", "weight": "two"}], "dataset_mixture a: 'weight' must be a valid number, not 'two'"),
        ([{"path": "a", "wieght": 2}], "dataset_mixture a: unknown key 'wieght'; did you mean 'weight'"),
        ([{"weight": 2}], "each of dataset_mixture: needs 'path'"),
        ([{"path": "a"}, {"path": "a"}], "dataset_mixture a: stands there twice; give it once, with 'epochs'"),
        ([{"path": "./none"}], "dataset_mixture ./none: no such file or folder"),
        ([{"path": "{file}", "split": "train"}], "'split' is a key of folders and Hub ids"),
    ],
)
def test_a_bad_entry_is_named_before_a_model_is_loaded(tmp_path, entries, problem):
    (tmp_path / "chats.jsonl").touch()
    entries = [json.dumps(entry).replace("{file}", str(tmp_path / "chats.jsonl")) for entry in entries]
    with pytest.raises(UserError, match=problem):
        main(["--dataset_mixture", *entries, "--output_dir", str(tmp_path / "out")])


def test_two_entries_may_take_other_rows_of_one_dataset():
    facts, unknown = ({"path": "a", "where": {"kind": [kind]}, "epochs": 2} for kind in ("fact", "unknown"))
    check_mixture([MixedDataset.parse(facts), MixedDataset.parse(unknown)])
    with pytest.raises(ValueError, match="dataset_mixture a kind=fact: stands there twice"):
        check_mixture([MixedDataset.parse(facts), MixedDataset.parse(facts)])
