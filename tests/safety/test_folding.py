"""What a reader would take for a letter is that letter, and every character keeps its place."""

import re
import sys
import unicodedata

import pytest

from hfchat.safety.folding import fold_invisible, fold_letters


@pytest.mark.parametrize(
    "text",
    [
        "Word",
        "ｗｏｒｄ",
        "𝔀𝓸𝓻𝓭",
        "🅆🄾🅁🄳",
        "🅦🅞🅡🅓",
        "🇼🇴🇷🇩",
        "ᴡᴏʀᴅ",
        "wоrԁ",  # Cyrillic
        "ẃöŕď",
        "w̶o̶r̶d̶",
        "wørđ",
        "w\u200bo\u00adr\u2060d",
        "w\u202eo\ufe0fr\u034fd\u3164",
        "w\U000e0061ord",
    ],
)
def test_letters_are_read_as_they_look(text):
    assert fold_letters(text).text == "word"


def test_a_letter_stays_where_it_was():
    text = "é \u200bﬁ\u0301x"
    folded = fold_letters(text)
    assert folded.text == "e fix"
    assert [folded.original(i) for i in range(6)] == [0, 1, 3, 3, 5, 6]


def test_other_scripts_stay_readable():
    assert fold_letters("日本 שלום").text == "日本 שלום"


def test_no_character_is_part_of_a_word_and_its_end():
    """Else the end of a word could change with what is inside the character after it."""
    for character in filter(unicodedata.decomposition, map(chr, range(sys.maxunicode + 1))):
        folded = fold_letters(character).text
        assert not (re.search(r"[^\W_]|[@$!*]", folded) and re.search(r"[^\w@$!*]|_", folded)), hex(ord(character))


def test_invisible_characters_go_and_wide_ones_become_plain():
    folded = fold_invisible("a\u200bｂ＠ｃ．１\ufe0f 𝟏² É")
    assert folded.text == "ab@c.1 1² É"
    assert folded.original(1) == 2
