import inspect
import pickle

import pytest
from datatrove.io import DataFolder

from hfchat.data.chain import BLOCKS, NAMES, Step, _load
from hfchat.data.cleaning import QualityFilter
from hfchat.data.pieces import Place


def test_a_step_is_a_name_or_a_name_with_parameters():
    assert Step.parse("quality").build(None).min_characters == 200
    assert Step.parse({"quality": {"min_characters": 5}}).build(None).min_characters == 5
    assert Step.parse('{"quality": {"min_characters": 6}}').build(None).min_characters == 6
    assert Step.parse({"quality": None}).parameters == {}


def test_a_filter_gets_its_writer_and_a_formatter_none():
    writer = object()
    assert Step.parse("quality").build(writer).exclusion_writer is writer
    assert "exclusion_writer" not in vars(Step.parse("clean_text").build(writer))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("qualty", "steps: there is no step 'qualty'; did you mean 'quality'"),
        ({"quality": {"min_chars": 5}}, "steps: quality: unknown key 'min_chars'; did you mean 'min_characters'"),
        ({"quality": {"min_characters": "many"}}, "quality: 'min_characters' must be a valid integer.*not 'many'"),
        ("translate", "steps: there is no step 'translate'; there are url_filter, "),
        ({"quality": [5]}, "quality: must be a mapping of parameters"),
        ({"count_tokens": None}, "count_tokens: needs 'tokenizer_name_or_path'"),
        ({"quality": {}, "language": {}}, "one name with its parameters"),
        (["quality"], "one name with its parameters"),
    ],
)
def test_a_bad_step_is_refused_by_name(value, problem):
    with pytest.raises(ValueError, match=problem):
        Step.parse(value)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_the_table_is_there_and_documented(name):
    block = _load(name)
    assert inspect.getdoc(block)
    needed = [
        parameter.name
        for parameter in inspect.signature(block).parameters.values()
        if parameter.default is parameter.empty
    ]
    if needed:
        with pytest.raises(ValueError, match=f"{name}: needs '{needed[0]}'"):
            Step.parse(name)
    else:
        assert Step.parse(name).parameters == {}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("classifier", "decontaminate")])
def test_what_a_step_adds_can_be_sent_to_a_worker(name, tmp_path):
    step = Step.parse({name: {"tokenizer_name_or_path": "tokenizer"} if name == "count_tokens" else {}})
    piece = step.piece(Place(DataFolder(str(tmp_path)), "01", name))
    sent = pickle.loads(pickle.dumps(piece))
    assert list(map(repr, sent.inline.pipeline)) == list(map(repr, piece.inline.pipeline))


def test_n_gram_tables_can_be_set_whole():
    step = Step.parse({"gopher_repetition": {"top_n_grams": [[2, 0.5], [3, 0.4], [4, 0.3]]}})
    assert step.build(None).top_n_grams == [[2, 0.5], [3, 0.4], [4, 0.3]]


def test_names_say_where_a_block_comes_from():
    assert _load("quality") is QualityFilter
    assert all(":" in place for place in BLOCKS.values())
