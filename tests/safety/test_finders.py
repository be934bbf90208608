"""Disguises of words and of personal data. The words are offensive by the purpose of the list that they are in."""

import pytest

from hfchat.safety.finders import LexiconFinder, PIIFinder

HARMLESS = """\
Scunthorpe, S C U N T H O R P E and Essex. A B C D E F G. I a m h e r e. 1 2 3 4 5. $100 or US$5!
x = (a + b) * s; for h in i: t. C-l-a-s-s. What a S.H.I.P. Hmmm, aaaah, hiiiit, yesssss! ½ cup, ⅛ inch.
Шит, хит, сон. Ηι. Ship it. As sh: it. O, I, u & a. U.S.A. s.h.e.l.l. push-it sh-it-ake
"""


def found(finder, text):
    return [(text[span.start : span.end], span.category) for span in finder.find(text)]


@pytest.fixture(scope="module")
def words():
    return LexiconFinder()


@pytest.mark.parametrize(
    "word",
    [
        "shit",
        "sh1t",
        "$h!t",
        "s**t",
        "ѕһіt",
        "ｓｈｉｔ",
        "šhìť",
        "s\u200bh\u00adi\u2060t",
        "shiiiit",
        "SSSHHHIIITTT",
        "s h i t",
        "s.h.i.t",
        "S - H - I - T",
        "s\nh\ni\nt",
        "s_h_i_t",
        "ѕ h\u200b 1 t",
        "🇸 🇭 🇮 🇹",
        "a$$hole",
    ],
)
def test_disguised_words_are_found_where_they_are(words, word):
    for text in (word, f"you ({word})", f"oh, {word}!", f"what a {word}, then"):
        assert found(words, text) == [(word, "obscene")], text


def test_a_spelled_word_is_found_between_others(words):
    assert found(words, "t h i s  i s  s h i t") == [("s h i t", "obscene")]
    assert found(words, "I s h i t") == [("s h i t", "obscene")]


def test_what_belongs_to_a_letter_is_of_the_span(words):
    text = "s\u200bh\u0301it\u200b\u0301!"
    assert found(words, text) == [(text[:-1], "obscene")]


def test_harmless_texts_have_nothing(words):
    assert found(words, HARMLESS) == []


def test_one_word_that_two_rules_find_is_one_span(words):
    assert found(words, "shit $hit") == [("shit", "obscene"), ("$hit", "obscene")]


def test_a_list_in_another_script_is_folded_too(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("[rude]\nредька\npépé\n", encoding="utf-8")
    assert found(LexiconFinder(path), "Редька, р\u200bедька, PEPE, pépé") == [
        (word, "rude") for word in ("Редька", "р\u200bедька", "PEPE", "pépé")
    ]


def test_only_the_categories_asked_for():
    assert found(LexiconFinder(categories=["sexual"]), "shit porn") == [("porn", "sexual")]
    with pytest.raises(
        ValueError, match="categories: the lexicon has no section 'rude'; it has obscene, sexual, slur"
    ):
        LexiconFinder(categories=["rude"])


def test_personal_data_is_found_through_invisible_and_wide_characters():
    text = "ja\u200bne@gm\u00adail.com, ｊａｎｅ＠ｇｍａｉｌ．ｃｏｍ, ４１５-863-2110, +49 30\u200b 227 32152"
    assert found(PIIFinder(), text) == [
        ("ja\u200bne@gm\u00adail.com", "email"),
        ("ｊａｎｅ＠ｇｍａｉｌ．ｃｏｍ", "email"),
        ("４１５-863-2110", "phone"),
        ("+49 30\u200b 227 32152", "phone"),
    ]


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("so it is", "so it "),
        ("so it is ", "so it is "),
        ("so it is s", "so it is "),
        ("so it is s h", "so it is "),
        ("so it is s h ", "so it is "),
        ("so it is s h ow", "so it is s h "),
        ("so it is s!", "so it is "),
        ("so it is s!o", "so it is "),
        ("so it is s h!o", "so it is s "),
        ("so it is s    ", "so it is s    "),
    ],
)
def test_a_word_is_settled_when_it_has_ended(words, text, settled):
    assert text[: words.settled(text)] == settled


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("mail jane.doe", "mail "),
        ("mail jane.doe ", "mail jane.doe "),
        ("in 1998 ", "in "),
        ("in 1998 t", "in "),
        ("in 1998 th", "in 1998 "),
        ("in 1998\n", "in 1998\n"),
        ("call 650 253", "call "),
        ("call 650 253 0000 ext. ", "call "),
        ("call 650 253 0000, when", "call 650 253 0000, "),
        ("电话是", "电话是"),
        ("电话是650", "电话是"),
    ],
)
def test_personal_data_is_settled_when_no_more_digit_can_join_it(text, settled):
    assert text[: PIIFinder().settled(text)] == settled


def test_personal_data_needs_little_of_what_was_before():
    text = "call 650 253 0000 or wait; the office is open from nine to five, " * 20
    assert len(text) - PIIFinder().context(text, len(text)) < 40
