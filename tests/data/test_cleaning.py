import pytest
from datatrove.data import Document

from hfchat.data.cleaning import CleanText, QualityFilter

PROSE = "\n".join(f"The {i}th line of this document says something that no other line says." for i in range(20))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a  \t\n  b\n\n\n\nc \n", "a\n  b\n\nc"),
        ("bell\x07 nul\x00 bom\ufeff lone\ud800", "bell nul bom lone"),
        ("tab\tkept, e\u0301 kept, 👩‍👩‍👧 kept", "tab\tkept, e\u0301 kept, 👩‍👩‍👧 kept"),
    ],
)
def test_cleaning_changes_only_what_it_should(text, clean):
    assert CleanText().format(text) == clean


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (PROSE, True),
        ("Too short.", (False, "too_short")),
        ("1234 5678 | 90.12 || == 17 %% 4444 " * 20, (False, "few_words")),
        (PROSE + "\nthe same line again, word for word" * 20, (False, "repeated_lines")),
    ],
)
def test_a_removed_document_has_a_reason(text, verdict):
    assert QualityFilter(min_characters=100).filter(Document(text=text, id="0")) == verdict
