import itertools
from dataclasses import asdict

import numpy as np
import pytest

from hfchat.errors import UserError
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.openai_model import RemoteModel
from hfchat.evaluation.probes import load_probe
from hfchat.evaluation.records import read_records, write_records
from hfchat.evaluation.suite import TaskEntry
from hfchat.evaluation.task import Record, result
from hfchat.results import Bootstrap
from hfchat.safety.lexicon import Lexicon

PROMPTS = """
templates: ["The {group} said that", "Yesterday the {group} went to"]
axes:
  pet: [cats, dogs, fish]
  size: [tall ones, short ones]
"""


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text(PROMPTS)
    return str(file)


def _task(**settings):
    task = TaskEntry.parse({"kind": "continuations", **settings}).build()
    task.prepare()
    return task


def _answer(task, folder, name, answers):
    """Records whose answer depends on the group: those of `answers`, in turn, else a harmless one."""
    turns = {group: itertools.cycle(texts) for group, texts in answers.items()}
    records = [
        Record(
            i, one.prompt, group=one.group, info=dict(one.info), answer=next(turns.get(one.group, iter([])), "sang.")
        )
        for i, one in enumerate(task.examples)
    ]
    write_records(folder / f"{name}.jsonl", records)


def test_every_group_meets_every_template(prompts):
    task = _task(prompts=prompts)
    assert [example.prompt for example in task.examples[:3]] == [
        "The cats said that", "Yesterday the cats went to", "The dogs said that",
    ]  # fmt: skip
    assert len(task.examples) == 2 * 5
    assert task.examples[0].group == "pet: cats"
    assert task.dataset().n == 10
    first = _task(prompts=prompts, max_templates=1)
    assert [example.prompt for example in first.examples[:2]] == ["The cats said that", "The dogs said that"]


def test_the_shipped_prompts_are_matched_and_harmless():
    probe, lexicon = load_probe("continuations"), Lexicon()
    assert all(template.count("{group}") == 1 for template in probe["templates"])
    assert all(len(people) >= 3 for people in probe["axes"].values())
    assert {"gender", "religion", "origin", "orientation", "disability", "age"} <= {*probe["axes"]}
    task = _task()
    assert len({example.prompt for example in task.examples}) == len(task.examples)
    assert not any(lexicon.find(example.prompt) for example in task.examples)
    assert "{" not in "".join(example.prompt for example in task.examples)


def test_a_chat_model_is_asked_to_continue(prompts):
    (message,) = _task(prompts=prompts, as_messages=True).examples[0].prompt
    assert message["role"] == "user"
    assert message["content"].endswith(": The cats said that")


def test_only_messages_can_be_put_to_a_server(prompts):
    server = RemoteModel("gpt", "http://127.0.0.1:9/v1#m", 2)
    assert "as_messages" in _task(prompts=prompts).refusal(server)
    assert _task(prompts=prompts, as_messages=True).refusal(server) is None


def test_shares_and_the_spread_by_the_lexicon(prompts, tmp_path):
    task = _task(prompts=prompts)
    _answer(task, tmp_path, "base", {"pet: dogs": ["what a slut", "sang"], "size: short ones": ["a slut", "a slut"]})
    _answer(task, tmp_path, "tuned", {})
    found = asdict(result(task, ["base", "tuned"], tmp_path, Bootstrap(200, 1)))
    scores, groups = found["scores"]["base"], found["groups"]["base"]
    assert scores["flagged"]["score"] == pytest.approx(3 / 10)
    assert scores["spread"]["score"] == 1  # of sizes
    assert scores["spread"]["n"] == 2  # templates
    assert groups["pet: dogs"]["flagged"]["score"] == 0.5
    assert groups["pet: cats"]["flagged"]["score"] == 0
    assert groups["pet (all)"]["spread"]["score"] == 0.5
    assert groups["pet (all)"]["flagged"]["score"] == pytest.approx(1 / 6)
    low, high = groups["size (all)"]["spread"]["interval"]
    assert 0.3 < low < 0.4, "of two templates, others may well differ less"
    assert high == 1
    assert found["scores"]["tuned"]["spread"]["score"] == 0
    assert found["comparisons"][0]["metrics"]["spread"]["difference"] == -1
    assert found["details"]["spread"]["base"]["size"] | {"p_value": 0} == {
        "difference": 1, "highest": "size: short ones", "lowest": "size: tall ones", "p_value": 0,
    }  # fmt: skip


def test_the_prompt_itself_is_not_scored(tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text("templates: ['They called the {group} a slut and']\naxes: {pet: [cats, dogs]}")
    task = _task(prompts=str(file))
    _answer(task, tmp_path, "base", {})
    assert task.measure("base", tmp_path).statistics["flagged"].values[:, 0].sum() == 0


def test_differences_that_follow_the_group_are_told_from_chance(tmp_path):
    file = tmp_path / "prompts.yaml"
    templates = [f"Number {i}: the {{group}} said" for i in range(12)]
    file.write_text(f"templates: {templates}\naxes: {{same: [a, b, c], differs: [d, e, f]}}")
    task = _task(prompts=str(file))
    noise = np.random.default_rng(3)
    texts = {f"same: {group}": noise.choice(["slut", "ok"], 12).tolist() for group in "abc"}
    _answer(task, tmp_path, "m", texts | {"differs: e": ["slut"]})
    task.measure("m", tmp_path)
    axes = task.details(["m"], tmp_path)["spread"]["m"]
    assert axes["differs"]["p_value"] < 0.01
    assert axes["same"]["p_value"] > 0.1
    assert axes["same"]["difference"] > 0


def test_a_permutation_test_is_right_where_it_can_be_counted(tmp_path):
    """One template, two groups, one of them flagged: either order has the same difference."""
    file = tmp_path / "prompts.yaml"
    file.write_text("templates: ['The {group} said']\naxes: {pet: [cats, dogs]}")
    task = _task(prompts=str(file))
    _answer(task, tmp_path, "m", {"pet: cats": ["slut"]})
    task.measure("m", tmp_path)
    assert task.details(["m"], tmp_path)["spread"]["m"]["pet"]["p_value"] == 1


def test_where_no_group_stands_out_none_is_named(tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text("templates: ['The {group} said']\naxes: {pet: [cats, dogs]}")
    task = _task(prompts=str(file))
    _answer(task, tmp_path, "m", {})
    task.measure("m", tmp_path)
    alike = {"difference": 0, "highest": "all alike", "lowest": "all alike", "p_value": 1}
    assert task.details(["m"], tmp_path)["spread"]["m"]["pet"] == alike


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tokenizer):
    """A tiny classifier, which knows nothing, in a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=2, pad_token_id=tokenizer.pad_token_id, initializer_range=1.0,
        id2label={0: "fine", 1: "toxic"}, label2id={"fine": 0, "toxic": 1},
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_by_its_folder(prompts, tmp_path, classifier, tokenizer):
    import torch
    from transformers import AutoModelForSequenceClassification

    task = _task(prompts=prompts, classifier=str(classifier))
    answers = {example.group: [f"{example.group} is here.", "The recipe reads"] for example in task.examples}
    _answer(task, tmp_path, "base", answers)
    found = asdict(result(task, ["base"], tmp_path, Bootstrap(50, 1)))
    reference = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    records = read_records(tmp_path / "base.jsonl")
    for record in records:
        with torch.inference_mode():
            logits = reference(**tokenizer(record.answer, return_tensors="pt")).logits[0]
        assert record.scores["classifier"] == pytest.approx(logits.softmax(-1)[1].item(), rel=1e-4)
    mean = np.mean([record.scores["classifier"] for record in records])
    assert found["scores"]["base"]["classifier"]["score"] == pytest.approx(mean)
    means = [found["groups"]["base"][f"pet: {pet}"]["classifier"]["score"] for pet in ("cats", "dogs", "fish")]
    assert found["groups"]["base"]["pet (all)"]["spread"]["score"] == pytest.approx(max(means) - min(means))
    assert "p(toxic)" in found["scores"]["base"]["classifier"]["signature"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "rude"}, r"has no label 'rude', only fine, toxic; set label"),
        ({"classifier": "/nowhere/at-all"}, r"classifier /nowhere/at-all: cannot be loaded"),
    ],
)
def test_a_classifier_is_checked_before_any_model_is_asked(prompts, classifier, settings, message):
    with pytest.raises(UserError, match=message) as raised:
        _task(**{"prompts": prompts, "classifier": str(classifier), **settings})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates: ['x {group}']", "must have `axes`"),
        ("templates: ['x {group}']\naxes: {pet: [cats]}", "axes: pet must be a list of two groups or more"),
        ("axes: {pet: [cats, dogs]}", "must have `templates`"),
        ("templates: ['x']\naxes: {pet: [cats, dogs]}", "templates: 'x' has no {group} in it"),
        ("templates: [", "cannot be read"),
    ],
)
def test_what_is_wrong_with_prompts_of_ones_own_is_one_line(tmp_path, text, message):
    file = tmp_path / "prompts.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        _task(prompts=str(file))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_continues_the_texts_as_they_are(prompts, chat_model, tmp_path):
    model = LocalModel("tiny", str(chat_model), batch_size=4, dtype="float32")
    task = _task(prompts=prompts, max_new_tokens=3)
    task.check(model)
    task.collect(model, tmp_path)
    records = read_records(tmp_path / "tiny.jsonl")
    assert len(records) == 10
    assert records[2].answer == model.answer(["The dogs said that"], 3)[0].text
