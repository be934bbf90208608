import pytest
from datatrove.data import Document

from hfchat.data.chain import Step
from hfchat.data.cleaning import CleanText, QualityFilter

PROSE = "\n".join(f"The {i}th line of this document says something that no other line says." for i in range(20))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a  \t\n  b\n\n\n\nc \n", "a\n  b\n\nc"),
        ("bell\x07 nul\x00 bom\ufeff lone\ud800", "bell nul bom lone"),
        ("page one\x0cpage two\x0bline\x85next\u2028and\u2029last", "page one\npage two\nline\nnext\nand\nlast"),
        ("\x0c\r\n\x0cfirst\x1fsecond\x1c\x1d\x1ethird", "first second   third"),
        ("soft\xadhyphen, C1\x80\x9b gone", "soft\xadhyphen, C1 gone"),
        ("tab\tkept, e\u0301 kept, 👩‍👩‍👧 kept", "tab\tkept, e\u0301 kept, 👩‍👩‍👧 kept"),
    ],
)
def test_cleaning_changes_only_what_it_should(text, clean):
    assert CleanText().format(text) == clean


@pytest.mark.parametrize(
    "separator", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\u2028", "\u2029", "\r"]
)
def test_no_step_joins_words_that_a_control_character_separates(separator):
    document = Document(f"first{separator}second", "0")
    for name in ("fix_text", "clean_text"):
        (document,) = Step.parse(name).build(None).run([document])
    assert document.text.split() == ["first", "second"]


def test_dots_of_windows_that_were_read_as_latin_1_are_dots():
    (document,) = Step.parse("fix_text").build(None).run([Document("\x93So it went\x85\x94 he said.", "0")])
    assert document.text == "“So it went…” he said."


def test_spaces_within_a_line_cost_no_more_than_letters():
    """Quadratic, half a million spaces would take an hour."""
    spaces = " " * 500_000
    assert CleanText().format(f"a{spaces}b{spaces}\n{spaces}c\t{spaces}") == f"a{spaces}b\n{spaces}c"


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
