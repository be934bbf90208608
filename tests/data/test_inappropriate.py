"""Some texts here are vulgar on purpose; all are made up."""

import bz2
import re

import dill
import pytest
from datatrove.data import Document

from hfchat.data.chain import Step
from hfchat.data.inappropriate import ClassifierFilter, LexiconFilter
from hfchat.data.removal import Removal
from hfchat.errors import UserError
from tests.conftest import SHARED_DATA

ABUSE = """\
What a bunch of fucking retards on this forum. Shut your mouth, you stupid cunt, nobody wants to read your bullshit.
Go back to where you came from, faggot, and take that whore of a sister with you. Every asshole here knows what a
dickhead you are; the mods are twats who let this shit stay. Delete your account, dumbass.
"""
PORNOGRAPHY = """\
Free porn videos! Horny milfs and naughty sluts, blowjobs and creampies, new every hour. XXX cams: watch camgirls show
their tits live. Hottest gangbang, deepthroat and cumshot clips in HD. Sign up now for more free porn.
"""
ARTICLE = """\
Pornography is the portrayal of sexual subject matter for the purpose of sexual arousal. Primarily intended for adults,
pornographic material may be presented in a variety of media, such as books, magazines, photographs, films and video
games. Porn has been made legal or banned at many times: scholars distinguish it from erotica, and debate its effects
on attitudes to women. The industry employs performers, or "porn stars", whose health is checked monthly. Studies of
masturbation, orgasm and of the use of a vibrator followed Kinsey's. Opponents, among them feminists, have called it an
industry of exploitation; others defend the rights of sex workers. Gay, lesbian and transgender people make their own.
"""
NOVEL = """\
"Where the hell were you, you bastards?" said the old sergeant, and kicked the shit out of the stove till it caught.
Nobody answered him. Outside the snow had covered the road to the village, the two lorries, and the goat that belonged
to the widow, who was called a whore by those who owed her money. We drank what there was. In the morning the river had
risen as far as the second step of the mill, and the boy, who had not said a word since Sunday, began to sing a song of
his mother's about a miller, a fox and a wedding. The sergeant listened with his mouth open. When it was over he said
that it was a goddamn shame, put on his coat, and went to see about the bridge, which was not there any more.
"""


def document(text):
    return Document(text, "0", metadata={"source": "test"})


@pytest.mark.parametrize("text", [ABUSE, PORNOGRAPHY], ids=["abuse", "pornography"])
def test_an_abusive_page_is_removed_with_its_words(text):
    page = document(text)
    assert LexiconFilter().filter(page) == (False, "inappropriate")
    assert Removal.of(page).score > 50  # hits per 1,000 words
    words = Removal.of(page).detail.split(", ")
    assert words == sorted(set(words))
    assert 3 <= len(words) <= 10


@pytest.mark.parametrize("text", [ARTICLE, NOVEL, "", "fuck " * 40], ids=["article", "novel", "empty", "one word"])
def test_other_documents_stay(text):
    page = document(text)
    assert LexiconFilter().filter(page) is True
    assert page.metadata == {"source": "test"}


def test_density_and_number_of_words_both_count():
    words = ["shit", "cunt", "twat", "slut", "whore"]

    def is_kept(distinct, length, **parameters):
        text = " ".join(words[:distinct] + ["word"] * (length - distinct))
        return LexiconFilter(**parameters).filter(document(text)) is True

    assert not is_kept(3, 300)
    assert is_kept(3, 301)
    assert is_kept(2, 20)
    assert not is_kept(2, 20, min_distinct=2)
    assert is_kept(5, 100, min_hits_per_1000_words=51)


def test_a_list_of_ones_own_and_one_that_is_not_there(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("blorp\nblimp\nblump\n", encoding="utf-8")
    step = dill.loads(dill.dumps(Step.parse({"inappropriate": {"lexicon": str(path)}}).build(None)))
    path.unlink()
    assert step.filter(document("Blorp, blimp and blump.")) == (False, "inappropriate")
    assert step.filter(document(ABUSE)) is True
    with pytest.raises(ValueError, match=r"lexicon .*list\.txt: .*No such file"):
        LexiconFilter(str(path))


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data")
def test_shakespeare_and_wikipedia_stay():
    step, removed = LexiconFilter(), []
    plays = (SHARED_DATA / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    articles = re.split(r"\n = [^=].* = \n", (SHARED_DATA / "pretrain" / "wikitext2-valid.txt").read_text("utf-8"))
    with bz2.open(SHARED_DATA / "pretrain" / "enwiki-excerpt.xml.bz2", "rt", encoding="utf-8") as file:
        pages = re.findall(r"<text[^>]*>(.*?)</text>", file.read(), re.DOTALL)
    documents = [plays[i : i + 3000] for i in range(0, len(plays), 3000)] + articles + pages
    assert len(documents) > 400
    removed = [text[:100] for text in documents if step.filter(document(text)) is not True]
    print(f"{len(removed)} of {len(documents)} removed")
    assert removed == []


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A BERT that gives `toxic` the probability 0.9 if the first word is "bad", and 0.2 otherwise."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "bad", "good"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=16, id2label={0: "fine", 1: "toxic"}, label2id={"fine": 0, "toxic": 1},
    )  # fmt: skip
    network = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for module in network.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1)
        # With no attention the pooler sees the first token alone: 1 in the first dimension for "bad", -1 for others.
        # A layer norm makes of this a vector of one large value, whose sign is all that the pooler passes on.
        network.bert.embeddings.word_embeddings.weight[:, 0] = -1
        network.bert.embeddings.word_embeddings.weight[vocabulary["bad"], 0] = 1
        network.bert.pooler.dense.weight[0, 0] = 100
        high, low = torch.logit(torch.tensor([0.9, 0.2]))
        network.classifier.weight[1, 0] = (high - low) / 2
        network.classifier.bias[1] = (high + low) / 2
    folder = tmp_path_factory.mktemp("classifier")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEXTS = [
    "bad",
    "good",
    "bad luck is good " * 30,
    "good or bad, and so on",
    "",
    "bad",
    "good",
]
VERDICTS = [True, False, True, False, False, True, False]  # removed


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_classifier_removes_what_has_its_label(model, batch_size):
    step = Step.parse({"classifier": {"model_name_or_path": str(model), "label": "toxic", "batch_size": batch_size}})
    step, documents = step.build(None), [Document(text, str(i)) for i, text in enumerate(TEXTS)]
    kept = [document.id for document in step.run(documents)]
    assert kept == [str(i) for i, removed in enumerate(VERDICTS) if not removed]
    assert step.stats["dropped_classifier"].total == sum(VERDICTS)
    for text, removed in zip(documents, VERDICTS, strict=True):
        score = pytest.approx(0.9, abs=1e-3)
        assert Removal.of(text) == (Removal("classifier", score, "toxic") if removed else None)


def test_the_threshold_is_a_probability_of_the_label(model):
    def is_kept(text, label, threshold):
        return ClassifierFilter(str(model), label, threshold).filter(document(text)) is True

    assert is_kept("bad", "toxic", 0.91)
    assert not is_kept("good", "toxic", 0.19)
    assert not is_kept("good", "fine", 0.79)
    assert is_kept("bad", "fine", 0.11)


def test_no_more_tokens_are_read_than_set(model, monkeypatch):
    from hfchat.data.inappropriate import _classifier

    seen, forward = [], _classifier(str(model), "main").model.forward
    monkeypatch.setattr(
        _classifier(str(model), "main").model,
        "forward",
        lambda input_ids, **others: seen.append(input_ids.shape) or forward(input_ids=input_ids, **others),
    )
    for max_length in (5, 512):
        ClassifierFilter(str(model), "toxic", max_length=max_length).filter(document("bad " * 100))
    assert [shape[1] for shape in seen] == [5, 16]  # the model has 16 positions


def test_a_pickled_filter_does_the_same_before_and_after_use(model):
    step = dill.loads(dill.dumps(ClassifierFilter(str(model), "toxic")))
    assert step.filter(document("bad")) == (False, "classifier")
    pickled = dill.dumps(step)
    assert len(pickled) < 10_000  # without the model
    assert dill.loads(pickled).filter(document("good")) is True


def test_an_unknown_label_is_refused_before_any_document(model):
    with pytest.raises(ValueError, match=r"has no label 'hate', only fine, toxic$"):
        Step.parse({"classifier": {"model_name_or_path": str(model), "label": "hate"}})


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded") as error:
        ClassifierFilter(str(tmp_path / "none"), "toxic")
    assert "\n" not in str(error.value)


def test_pickled_weights_and_code_of_the_models_own_are_not_loaded(model, tmp_path):
    import json
    import shutil

    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        ClassifierFilter(str(folder), "toxic").filter(document("bad"))

    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    folder = tmp_path / "code"
    shutil.copytree(model, folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="cannot be loaded"):
        ClassifierFilter(str(folder), "toxic")
