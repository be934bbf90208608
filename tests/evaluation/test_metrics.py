import socket
import sys

import evaluate
import nltk
import pytest
import sacrebleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from hfchat.evaluation import metrics
from hfchat.evaluation.metrics import BLEU, CHRF, METEOR, ROUGE, UnicodeTokenizer, load_metric

FOLDER = metrics.__path__[0]

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
# The example of sacreBLEU's README, and the scores in its own tests (test/test_bleu.py).
DOG = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOG_REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]
IDENTICAL = {
    "Arabic": "مَرحبا بالعالم، كيف الحال؟",
    "Chinese": "今天天气很好,我们去公园吧。",
    "Hindi": "नमस्ते दुनिया, आप कैसे हैं?",
    "Thai": "สวัสดีครับ วันนี้อากาศดี",
    "Japanese": "東京タワーはどこですか",
    "Greek": "Καλημέρα κόσμε, τι κάνεις;",
    "Korean": "오늘은 날씨가 좋아서 공원에 산책하러 갑시다.",
    "Lao": "ມື້ນີ້ອາກາດດີຫຼາຍ",
    "Khmer": "ថ្ងៃនេះអាកាសធាតុល្អណាស់",
    "Burmese": "ဒီနေ့ရာသီဥတုကောင်းတယ်",
    "Tibetan": "དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག",
    "Yi": "ꆈꌠꁱꂷ",
    "mixed": "用hfchat训练 is good, ですね。",
}
# Too short for an n-gram, or without a word.
SHORT = ["Yes", "蓝色", "네", "😀🎉", "?!", "１２３４", "x = 1"]


@pytest.fixture(autouse=True)
def _no_network_and_no_wordnet(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("HFCHAT_CACHE", str(tmp_path / "cache"))


class _NoSynonyms:
    def synsets(self, word):
        return []


def _score(metric, predictions, references):
    return metric.compute(predictions=predictions, references=references)["score"]


def test_bleu_is_sacrebleus():
    expected = sacrebleu.BLEU()
    score = expected.corpus_score(PREDICTIONS, [REFERENCES]).score
    result = BLEU().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["score"] == pytest.approx(score, abs=1e-6)
    assert result["signature"] == f"BLEU|{expected.get_signature()}"
    assert result["n"] == 4


@pytest.mark.parametrize(
    ("tokenize", "score"), [("13a", 48.530827), ("intl", 43.91623493), ("none", 49.1919566), ("char", None)]
)
def test_bleu_has_the_scores_of_sacrebleus_own_tests(tokenize, score):
    if score is None:
        streams = list(zip(*DOG_REFERENCES, strict=True))
        score = sacrebleu.corpus_bleu(DOG, streams, tokenize=tokenize).score
    result = BLEU(tokenize=tokenize).compute(predictions=DOG, references=DOG_REFERENCES)
    assert result["score"] == pytest.approx(score, abs=1e-6)
    assert f"nrefs:2|case:mixed|eff:no|tok:{tokenize}|" in result["signature"]


def test_bleu_of_other_scripts_takes_their_tokenizer():
    result = BLEU(tokenize="zh").compute(predictions=["今天天气很好"], references=["今天天气不好"])
    expected = sacrebleu.corpus_bleu(["今天天气很好"], [["今天天气不好"]], tokenize="zh")
    assert result["score"] == pytest.approx(expected.score, abs=1e-6)


def test_bleu_takes_as_many_references_as_an_example_has():
    references = [[REFERENCES[0], "a guide to action"], [REFERENCES[1]], [REFERENCES[2]], [REFERENCES[3], "Nothing."]]
    streams = [REFERENCES, ["a guide to action", None, None, "Nothing."]]
    result = BLEU().compute(predictions=PREDICTIONS, references=references)
    assert result["score"] == pytest.approx(sacrebleu.BLEU().corpus_score(PREDICTIONS, streams).score, abs=1e-6)
    assert "nrefs:var" in result["signature"]


def test_bleu_of_one_example_is_sacrebleus_sentence_score():
    scores = BLEU().statistics(["A cat.", *DOG], [["A cat."], *DOG_REFERENCES]).of_examples()
    expected = [sacrebleu.sentence_bleu("A cat.", ["A cat."]).score]
    expected += [
        sacrebleu.sentence_bleu(text, several).score for text, several in zip(DOG, DOG_REFERENCES, strict=True)
    ]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert scores[0] == pytest.approx(100)  # although three tokens have no 4-gram


# Of sacreBLEU's own tests (test/test_chrf.py), which are at beta 3.
@pytest.mark.parametrize(
    ("prediction", "reference", "options", "score"),
    [
        (
            " risk assessment must be made of those who are qualified and expertise in the sector - these are the "
            "scientists .",
            "risk assessment has to be undertaken by those who are qualified and expert in that area - that is the "
            "scientists .",
            {"eps_smoothing": True},
            63.361730,
        ),
        (
            " Die    Beziehung zwischen  Obama und Netanjahu ist nicht gerade  freundlich. ",
            "Das Verhältnis zwischen Obama und Netanyahu ist nicht gerade freundschaftlich.",
            {"eps_smoothing": True},
            64.1302698,
        ),
        (
            "Die Beziehung zwischen Obama und Netanjahu ist nicht gerade freundlich.",
            "Das Verhältnis zwischen Obama und Netanyahu ist nicht gerade freundschaftlich.",
            {"whitespace": True},
            67.3481606,
        ),
        ("aa", "ab", {}, 25.0),
        ("a b c", "abc", {}, 100.0),
        ("", "reference", {}, 0.0),
    ],
)
def test_chrf_has_the_scores_of_sacrebleus_own_tests(prediction, reference, options, score):
    result = _score(load_metric("chrf", beta=3, **options), [prediction], [reference])
    assert result == pytest.approx(score, abs=1e-4)  # as exact as they are given there
    expected = sacrebleu.CHRF(beta=3, **options).corpus_score([prediction], [[reference]]).score
    assert result == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_of_a_corpus_is_sacrebleus(word_order):
    expected = sacrebleu.CHRF(word_order=word_order)
    score = expected.corpus_score(DOG, list(zip(*DOG_REFERENCES, strict=True))).score
    result = CHRF(word_order=word_order).compute(predictions=DOG, references=DOG_REFERENCES)
    assert result["score"] == pytest.approx(score, abs=1e-6)
    assert result["signature"] == f"chrF2{'+' * word_order}|{expected.get_signature()}"
    low, high = result["interval"]
    assert low < score < high


@pytest.mark.parametrize("metric", [BLEU, CHRF, ROUGE, METEOR])
def test_one_reference_may_be_nested_or_not(metric):
    flat = metric().compute(predictions=PREDICTIONS, references=REFERENCES)
    nested = metric().compute(predictions=PREDICTIONS, references=[[text] for text in REFERENCES])
    assert flat == nested


@pytest.mark.parametrize("metric", [BLEU, CHRF, ROUGE, METEOR])
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


@pytest.mark.parametrize("use_stemmer", [False, True])
@pytest.mark.parametrize("tokenizer", ["unicode", "rouge-score"])
@pytest.mark.parametrize("rouge_type", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_on_english_is_rouge_scores(rouge_type, tokenizer, use_stemmer):
    predictions = [*PREDICTIONS, "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "the dogs were running"]
    references = [*REFERENCES, "w1 w2 w3 w4 w5", "the dog was running\nin the parks"]
    scorer = RougeScorer([rouge_type], use_stemmer=use_stemmer)
    scores = [
        scorer.score(reference, prediction)[rouge_type].fmeasure
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    metric = load_metric(rouge_type, tokenizer=tokenizer, use_stemmer=use_stemmer)
    assert _score(metric, predictions, references) == pytest.approx(sum(scores) / len(scores), abs=1e-6)


# Of rouge-score's own tests (rouge_scorer_test.py).
@pytest.mark.parametrize(
    ("rouge_type", "prediction", "references", "score"),
    [
        ("rouge1", "testing", ["testing one two"], 1 / 2),
        ("rouge2", "testing one", ["testing one two"], 2 / 3),
        ("rougeL", "testing two", ["testing one two"], 4 / 5),
        ("rougeLsum", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", ["w1 w2 w3 w4 w5"], 8 / 15),
        ("rouge1", "text first", ["first text", "first something"], 1.0),
        ("rouge2", "text first", ["first text", "first something"], 0.0),
        ("rougeL", "text first", ["first text", "first something"], 0.5),
    ],
)
def test_rouge_has_the_scores_of_rouge_scores_own_tests(rouge_type, prediction, references, score):
    assert _score(ROUGE(rouge_type, tokenizer="rouge-score"), [prediction], [references]) == pytest.approx(score)


def test_rouges_signature_says_how():
    assert ROUGE("rouge2")._signature == "rouge2|f1|tokenizer:unicode|stem:no|rouge-score:0.1.2"
    assert (
        ROUGE("rougeLsum", tokenizer="rouge-score", use_stemmer=True)._signature
        == "rougeLsum|f1|tokenizer:rouge-score|stem:porter|split:newline|rouge-score:0.1.2"
    )


@pytest.mark.parametrize("rouge_type", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("text", IDENTICAL.values(), ids=IDENTICAL)
def test_rouge_of_identical_texts_is_one_in_every_script(text, rouge_type):
    assert _score(ROUGE(rouge_type), [text], [text]) == 1.0


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "meteor"])
@pytest.mark.parametrize("text", [*IDENTICAL.values(), *SHORT])
def test_identical_texts_never_score_0(text, metric):
    for several in ([text], [f"another text of {text}, and a longer one than that", text]):
        score = _score(load_metric(metric), [text] * 2, [several] * 2)
        assert score == pytest.approx(100 if metric in ("bleu", "chrf") else 1) or metric == "meteor"
        assert score >= 0.5


@pytest.mark.parametrize(
    ("references", "tokenize"),
    [
        (["The dog bit the man, and the man bit 狗."], "13a"),
        (["오늘은 날씨가 좋아서", "مرحبا"], "13a"),
        (["😀"], "13a"),
        (["第1个柜子是蓝色的，LoRA"], "zh"),
        (["今天天气很好" * 5 + "の"], "zh"),
        (["東京タワーはどこですか"], "char"),
        (["สวัสดี", "Hello"], "char"),
        (["ມື້ນີ້"], "char"),
        (["ថ្ងៃនេះ"], "char"),
        (["ဒီနေ့"], "char"),
    ],
)
def test_bleu_takes_the_tokenizer_of_the_references_script(references, tokenize):
    """And not of what was said, which would differ from model to model."""
    predictions = ["Totally other words of English."] * len(references)
    result = BLEU().compute(predictions=predictions, references=references)
    assert f"|tok:{tokenize}|" in result["signature"]
    expected = sacrebleu.BLEU(tokenize=tokenize, effective_order="eff:yes" in result["signature"])
    assert result["score"] == pytest.approx(expected.corpus_score(predictions, [references]).score)


def test_bleu_of_good_chinese_is_sacrebleus_by_characters():
    predictions, references = ["今天天气很不错，我们去公园吧。"], ["今天天气很好，我们去公园吧。"]
    expected = sacrebleu.corpus_bleu(predictions, [references], tokenize="zh").score
    assert expected > 50
    assert _score(BLEU(), predictions, references) == pytest.approx(expected)


@pytest.mark.parametrize("tokenize", ["flores200", "flores101", "spm", "spBLEU-1K"])
def test_a_tokenizer_that_would_be_fetched_is_refused(tokenize):
    with pytest.raises(ValueError, match=f"tokenize: {tokenize} would fetch a model .*take one of none, zh, 13a"):
        BLEU(tokenize=tokenize)


def test_a_tokenizer_whose_package_is_not_there_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "MeCab", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", raising=False)
    with pytest.raises(ValueError, match=r"ja-mecab needs a package .*sacrebleu\[ja\]"):
        BLEU(tokenize="ja-mecab")


@pytest.mark.parametrize("text", IDENTICAL.values(), ids=IDENTICAL)
def test_meteor_of_identical_texts_is_the_most_there_is_in_every_script(text):
    words = len(UnicodeTokenizer().tokenize(text))
    assert _score(METEOR(), [text], [text]) == pytest.approx(1 - 0.5 / words**3, abs=1e-6)
    assert words > 2


def test_rouge_of_unspaced_text_counts_characters():
    # 3 of 4 characters shared: one long word would score 0.
    assert _score(ROUGE("rouge1"), ["我爱北京"], ["我在北京"]) == pytest.approx(0.75)


def test_unicode_tokens():
    tokenize = UnicodeTokenizer().tokenize
    assert tokenize("Hello, World_2 – don't, É!") == ["hello", "world", "2", "don", "t", "é"]
    assert tokenize("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert tokenize("用hfchat训练") == ["用", "hfchat", "训", "练"]
    assert tokenize("ที่นี่") == ["ที่", "นี่"]  # vowel and tone marks stay on their consonant
    assert tokenize("?!… «»") == []


def test_only_english_words_are_stemmed():
    assert UnicodeTokenizer(use_stemmer=True).tokenize("Running, was: élèves") == ["run", "was", "élèves"]


def test_meteor_without_wordnet_is_nltks_exact_and_stem_modules():
    tokenize = UnicodeTokenizer().tokenize
    scores = [
        meteor_score([tokenize(reference)], tokenize(prediction), wordnet=_NoSynonyms())
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    result = METEOR().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    assert result["signature"] == f"meteor|nltk:{nltk.__version__}|modules:exact+stem|tokenizer:unicode"


def test_meteor_has_the_scores_of_nltks_docstring():
    others = [
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    assert _score(METEOR(), PREDICTIONS[:1], REFERENCES[:1]) == pytest.approx(0.6944, abs=5e-5)
    assert _score(METEOR(), PREDICTIONS[:1], [[REFERENCES[0], *others]]) == pytest.approx(0.6944, abs=5e-5)
    assert _score(METEOR(), ["non matching hypothesis"], ["this is a cat"]) == 0.0


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

    before = METEOR().compute(predictions=["a fast car"], references=["a rapid car"])
    monkeypatch.setattr("hfchat.evaluation.metrics.meteor.find_wordnet", WordNet)
    after = METEOR().compute(predictions=["a fast car"], references=["a rapid car"])
    assert after["score"] > before["score"]
    assert "modules:exact+stem+synonym(wordnet:3.0)" in after["signature"]


@pytest.mark.parametrize("metric", [BLEU, CHRF, ROUGE, METEOR])
def test_metrics_are_evaluates(metric):
    module = metric()
    assert isinstance(module, evaluate.Metric)
    for start in (0, 2):
        module.add_batch(predictions=PREDICTIONS[start : start + 2], references=REFERENCES[start : start + 2])
    assert module.compute() == metric().compute(predictions=PREDICTIONS, references=REFERENCES)


@pytest.mark.parametrize(
    ("file", "name", "arguments", "options"),
    [
        ("bleu", "bleu", [], {"tokenize": "char"}),
        ("chrf", "chrf", [], {"word_order": 2}),
        ("rouge", "rougeLsum", ["rougeLsum"], {"use_stemmer": True}),
        ("meteor", "meteor", [], {}),
    ],
)
def test_evaluate_loads_the_files(monkeypatch, tmp_path, file, name, arguments, options):
    # `evaluate` imports a copy, of a package that is kept in the user's cache.
    for loaded in [loaded for loaded in sys.modules if loaded.startswith("evaluate_modules")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", tmp_path)
    module = evaluate.load(f"{FOLDER}/{file}.py", *arguments, **options)
    expected = load_metric(name, **options).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert module.compute(predictions=PREDICTIONS, references=REFERENCES) == expected


def test_evaluate_combines_them():
    together = evaluate.combine({"BLEU": load_metric("bleu"), "chrF": load_metric("chrf")}, force_prefix=True)
    result = together.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result["BLEU_score"] == _score(BLEU(), PREDICTIONS, REFERENCES)
    assert result["chrF_score"] == _score(CHRF(), PREDICTIONS, REFERENCES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("blue", {}, "there is no metric 'blue'; there are bleu, chrf, meteor, rouge1"),
        ("rouge0", {}, "there is no 'rouge0'"),
        ("bleu", {"tokenise": "zh"}, "BLEU has no option 'tokenise'"),
        ("bleu", {"tokenize": "chinese"}, "tokenize: there is no 'chinese', only none, zh, 13a"),
        ("rougeL", {"tokenizer": "spaces"}, "tokenizer: there is no 'spaces', only unicode and rouge-score"),
    ],
)
def test_unknown_names_and_options_are_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_metric(name, **options)
