"""Judges of whole texts: a tiny classifier, and a moderation endpoint that is scripted."""

import asyncio
import json
import logging
import shutil

import httpx
import pytest

from hfchat.safety.judges import Classifier, GuardError, Lenient, Moderation, Remembering


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    """A classifier of two labels with a context of 32 tokens: the word `poison` is toxic."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "poison": 4, "tea": 5}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(
        vocab_size=6,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=32,
        id2label={0: "fine", 1: "toxic"},
        label2id={"fine": 0, "toxic": 1},
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(60):
        texts = [["tea"] * 9, ["tea"] * (step % 9) + ["poison"] + ["tea"] * (8 - step % 9)]
        batch = tokenizer([" ".join(words) for words in texts], return_tensors="pt")
        model(**batch, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def judge(judge, *texts):
    return asyncio.run(judge(texts))


def test_a_classifier_flags_by_its_label(classifier_folder):
    classifier = Classifier(classifier_folder, "toxic", 0.5)
    assert judge(classifier, "tea tea", "tea poison tea") == [[], ["toxic"]]
    assert judge(Classifier(classifier_folder, "toxic", 1.0), "tea poison tea") == [[]]


def test_nothing_hides_behind_the_context_of_a_classifier(classifier_folder):
    classifier = Classifier(classifier_folder, "toxic", 0.5)
    for place in range(0, 120, 7):
        words = ["tea"] * 120
        assert judge(classifier, " ".join(words)) == [[]]
        words[place : place + 8] = ["poison"] * 8
        assert judge(classifier, " ".join(words)) == [["toxic"]], place


def test_what_lies_between_two_windows_is_seen_at_once(classifier_folder):
    words = [f"w{i}" for i in range(120)]
    windows = Classifier(classifier_folder, "toxic", 0.5)._windows(" ".join(words))
    for place in range(len(words) - 6):
        assert any(" ".join(words[place : place + 6]) in window for window in windows), place


def test_a_classifier_that_cannot_be_used_is_named(classifier_folder, tmp_path):
    with pytest.raises(ValueError, match=r"label: .* has no label 'rude'; it has fine, toxic"):
        Classifier(classifier_folder, "rude", 0.5)
    with pytest.raises(ValueError, match=r"model: .*nothing cannot be loaded"):
        Classifier(str(tmp_path / "nothing"), "toxic", 0.5)
    folder = shutil.copytree(classifier_folder, tmp_path / "kernels")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "mallory/kernel"}))
    with pytest.raises(ValueError, match=r"model: .*kernels: attn_implementation names code of a repository"):
        Classifier(str(folder), "toxic", 0.5)


def result(flagged=(), **scores):
    return {
        "flagged": bool(flagged),
        "categories": {name: name in flagged for name in scores},
        "category_scores": scores,
    }


def endpoint(*results, status=200, **settings):
    """A moderation endpoint with these results, and the requests it gets."""
    requests = []

    def answer(request):
        requests.append(request)
        return httpx.Response(status, json={"results": results})

    return Moderation("http://guard/v1/", transport=httpx.MockTransport(answer), **settings), requests


def test_a_moderation_endpoint_is_asked_as_openais():
    moderation, requests = endpoint(
        result(["hate"], hate=0.9, violence=0.2), result(hate=0.1), model="m", api_key="secret"
    )
    assert judge(moderation, "one", "two") == [["hate"], []]
    [request] = requests
    assert str(request.url) == "http://guard/v1/moderations"
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content) == {"input": ["one", "two"], "model": "m"}


def test_categories_and_scores_of_ones_own():
    found = result(["hate"], hate=0.9, violence=0.4)
    assert judge(endpoint(found, threshold=0.3)[0], "x") == [["hate", "violence"]]
    assert judge(endpoint(found, categories=["violence"])[0], "x") == [[]]
    assert judge(endpoint(found, categories=["violence"], threshold=0.3)[0], "x") == [["violence"]]
    assert judge(endpoint({"flagged": True, "categories": {}})[0], "x") == [["flagged"]]


@pytest.mark.parametrize(
    "moderation",
    [
        endpoint(result(), status=500)[0],
        endpoint()[0],
        endpoint({"flagged": True})[0],
        endpoint("what")[0],
        Moderation("http://guard", transport=httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))),
    ],
    ids=["error", "too few", "no categories", "no object", "no JSON"],
)
def test_no_verdict_is_not_taken_for_harmless(moderation, caplog):
    with pytest.raises(GuardError):
        judge(moderation, "private words")
    with caplog.at_level(logging.WARNING):
        assert judge(Lenient(moderation), "private words") == [[]]
    assert "without a verdict" in caplog.text
    assert "private" not in caplog.text


def test_a_text_is_not_judged_twice():
    seen = []

    async def once(texts):
        seen.extend(texts)
        return [[text] for text in texts]

    remembering = Remembering(once, size=2)
    assert judge(remembering, "a", "b", "a") == [["a"], ["b"], ["a"]]
    assert judge(remembering, "a", "c") == [["a"], ["c"]]
    assert judge(remembering, "a", "b") == [["a"], ["b"]]  # "b" had to go for "c"
    assert seen == ["a", "b", "c", "b"]
