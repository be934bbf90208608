import socket

import evaluate
import nltk
import pytest
import sacrebleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from hfchat.evaluation.metrics import BLEU, METEOR, ROUGE, UnicodeTokenizer

PREDICTIONS = [
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "LoRA trains two small matrices, and leaves the weights as they are.",
    "snake_case names, 2 of them; don't rename",
    "",
]
REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "LoRA leaves the weights alone: it trains two small matrices.",
    "Don't rename the 2 snake_case names.",
    "An answer.",
]
IDENTICAL = {
    "Arabic": "مَرحبا بالعالم، كيف الحال؟",
    "Chinese": "今天天气很好,我们去公园吧。",
    "Hindi": "नमस्ते दुनिया, आप कैसे हैं?",
    "Thai": "สวัสดีครับ วันนี้อากาศดี",
    "Japanese": "東京タワーはどこですか",
    "Greek": "Καλημέρα κόσμε, τι κάνεις;",
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(nltk, "download", refuse)


class _NoSynonyms:
    def synsets(self, word):
        return []


def test_bleu_is_sacrebleus():
    expected = sacrebleu.BLEU()
    score = expected.corpus_score(PREDICTIONS, [REFERENCES]).score
    result = BLEU().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["score"] == pytest.approx(score, abs=1e-6)
    assert result["signature"] == f"BLEU|{expected.get_signature()}"
    assert result["n"] == 4


def test_bleu_tokenizer_is_sacrebleus():
    result = BLEU(tokenize="zh").compute(predictions=["今天天气很好"], references=["今天天气不好"])
    expected = sacrebleu.corpus_bleu(["今天天气很好"], [["今天天气不好"]], tokenize="zh")
    assert result["score"] == pytest.approx(expected.score, abs=1e-6)
    assert "tok:zh" in result["signature"]


@pytest.mark.parametrize("metric", [BLEU, ROUGE, METEOR])
def test_one_reference_may_be_nested_or_not(metric):
    flat = metric().compute(predictions=PREDICTIONS, references=REFERENCES)
    nested = metric().compute(predictions=PREDICTIONS, references=[[text] for text in REFERENCES])
    assert flat == nested


def test_bleu_takes_several_references_per_prediction():
    references = [[REFERENCES[0], "a guide to action"], [REFERENCES[1]], [REFERENCES[2]], [REFERENCES[3], "Nothing."]]
    streams = [REFERENCES, ["a guide to action", None, None, "Nothing."]]
    result = BLEU().compute(predictions=PREDICTIONS, references=references)
    assert result["score"] == pytest.approx(sacrebleu.BLEU().corpus_score(PREDICTIONS, streams).score, abs=1e-6)
    assert "nrefs:var" in result["signature"]


@pytest.mark.parametrize("metric", [BLEU, ROUGE, METEOR])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["a", "b"], "1 predictions but 2 references"),
        (["a", "b"], [["a", "b"]], "2 predictions but 1 references"),
        (["a", 3], ["a", "b"], r"predictions\[1\] must be a text, not 3"),
        (["a", "b"], ["a", None], r"references\[1\] must be a text or a list of texts, not None"),
        (["a", "b"], [["a"], []], r"references\[1\]"),
        (["a", "b"], [["a"], [["b"]]], r"references\[1\]"),
        ("ab", ["a", "b"], "predictions must be a list"),
        (["a", "b"], "ab", "references must be a list"),
        ([], [], "predictions must be a list with a text per example"),
    ],
)
def test_wrong_shapes_are_errors(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric().compute(predictions=predictions, references=references)


@pytest.mark.parametrize("rouge_type", ["rouge1", "rouge2", "rougeL"])
def test_rouge_on_english_is_rouge_scores_default(rouge_type):
    scorer = RougeScorer([rouge_type])
    scores = [
        scorer.score(reference, prediction)[rouge_type].fmeasure
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    result = ROUGE(rouge_type).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    assert result["signature"] == f"{rouge_type}|f1|tokenizer:unicode|stem:no|rouge-score:0.1.2"


@pytest.mark.parametrize("rouge_type", ["rouge1", "rouge2", "rougeL"])
@pytest.mark.parametrize("text", IDENTICAL.values(), ids=IDENTICAL)
def test_rouge_of_identical_texts_is_one_in_every_script(text, rouge_type):
    assert ROUGE(rouge_type).compute(predictions=[text], references=[text])["score"] == 1.0


def test_rouge_of_unspaced_text_counts_characters():
    # 3 of 4 characters shared: one long word would score 0.
    assert ROUGE("rouge1").compute(predictions=["我爱北京"], references=["我在北京"])["score"] == pytest.approx(0.75)


def test_unicode_tokens():
    tokenize = UnicodeTokenizer().tokenize
    assert tokenize("Hello, World_2 – don't, É!") == ["hello", "world", "2", "don", "t", "é"]
    assert tokenize("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert tokenize("用hfchat训练") == ["用", "hfchat", "训", "练"]
    assert tokenize("ที่นี่") == ["ที่", "นี่"]  # vowel and tone marks stay on their consonant
    assert tokenize("?!… «»") == []


def test_meteor_without_wordnet_is_nltks_exact_and_stem_modules(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    tokenize = UnicodeTokenizer().tokenize
    scores = [
        meteor_score([tokenize(reference)], tokenize(prediction), wordnet=_NoSynonyms())
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    result = METEOR().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    assert f"nltk:{nltk.__version__}|modules:exact+stem|tokenizer:unicode" in result["signature"]


def test_meteor_matches_the_published_example():
    # https://www.nltk.org/api/nltk.translate.meteor_score.html
    result = METEOR().compute(predictions=PREDICTIONS[:1], references=REFERENCES[:1])
    assert result["score"] == pytest.approx(0.6944, abs=5e-5)


def test_meteor_uses_wordnet_where_it_is_found(monkeypatch):
    class Lemma:
        def name(self):
            return "rapid"

    class Synset:
        def lemmas(self):
            return [Lemma()]

    class WordNet:
        def synsets(self, word):
            return [Synset()] if word == "fast" else []

        def get_version(self):
            return "3.0"

    monkeypatch.setattr(nltk.data, "path", [])
    before = METEOR().compute(predictions=["a fast car"], references=["a rapid car"])
    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    monkeypatch.setattr(nltk.corpus, "wordnet", WordNet())
    after = METEOR().compute(predictions=["a fast car"], references=["a rapid car"])
    assert after["score"] > before["score"]
    assert "modules:exact+stem+synonym(wordnet:3.0)" in after["signature"]


@pytest.mark.parametrize("metric", [BLEU, ROUGE, METEOR])
def test_metrics_are_evaluates(metric):
    module = metric()
    assert isinstance(module, evaluate.Metric)
    for start in (0, 2):
        module.add_batch(predictions=PREDICTIONS[start : start + 2], references=REFERENCES[start : start + 2])
    assert module.compute() == metric().compute(predictions=PREDICTIONS, references=REFERENCES)
