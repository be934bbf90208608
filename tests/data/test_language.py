import dill
import pytest
from datatrove.data import Document

from hfchat.data.chain import Step
from hfchat.data.language import LanguageFilter
from hfchat.data.removal import Removal
from hfchat.language import identify
from tests.test_language import SENTENCES


def test_unwanted_languages_are_removed_with_their_score():
    step = Step.parse({"language": {"languages": ["en", "de"]}}).build(None)
    english, german, french = (Document(SENTENCES[language], "0") for language in ("en", "de", "fr"))
    assert step.filter(english) is True
    assert step.filter(german) is True
    assert step.filter(french) == (False, "language")
    assert english.metadata["language"] == "en"
    assert 0.65 <= english.metadata["language_score"] <= 1
    assert Removal.of(english) is None
    assert Removal.of(french).detail == french.metadata["language"] == "fr"
    assert Removal.of(french).score == french.metadata["language_score"] > 0.65


def test_a_document_must_reach_the_threshold():
    text = SENTENCES["en"]
    score = identify(text)[1]
    assert LanguageFilter(["en"], threshold=score).filter(Document(text, "0")) is True
    assert LanguageFilter(["en"], threshold=score + 1e-6).filter(Document(text, "0")) == (False, "language")


@pytest.mark.parametrize("text", ["", " \n ", "12.5 + 7 = 19.5", "🙂 🙃 -- !!"])
def test_text_without_letters_is_in_no_language(text):
    document = Document(text, "0")
    assert LanguageFilter().filter(document) is True
    assert document.metadata == {"language": "und", "language_score": 0.0}
    assert LanguageFilter(["en"], threshold=0).filter(document) == (False, "language")


def test_a_pickled_filter_does_the_same_before_and_after_use():
    step = dill.loads(dill.dumps(LanguageFilter(["en"])))
    assert step.filter(Document(SENTENCES["en"], "0")) is True
    pickled = dill.dumps(step)
    assert len(pickled) < 10_000  # without the model
    assert dill.loads(pickled).filter(Document(SENTENCES["de"], "0")) == (False, "language")


@pytest.mark.parametrize("language", ["English", "en-US", "EN"])
def test_a_language_is_written_as_a_code(language):
    with pytest.raises(ValueError, match=f"language: '{language}' is not a valid code of a language"):
        Step.parse({"language": {"languages": [language]}})
