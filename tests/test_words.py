"""The words of texts in any script, and the runs that make a quotation of them."""

import pytest

from hfchat.words import runs, words

NAME = "中华人民共和国全国人民代表大会"


def test_words_are_in_lower_case_without_punctuation_marks_and_numbers():
    assert words("The Café's 1,250 trains.") == ["the", "cafe", "s", "0", "trains"]
    assert words("第1个柜子") == ["第", "0", "个", "柜", "子"]
    assert words("サッカー") == ["サ", "ッ", "カ", "ー"]


@pytest.mark.parametrize(
    ("text", "n", "lengths"),
    [
        ("one two three four", 3, [3, 3]),
        ("one two", 3, []),
        ("", 1, []),
        (NAME, 8, []),  # 15 letters are 7.5 words
        (NAME, 7, [14, 14]),
        ("ประเทศไทย", 3, [9]),
        ("ひらがな", 1, [2, 2, 2]),
        ("中华 and 人民", 2, [3, 3, 3]),
    ],
)
def test_a_run_holds_as_much_as_n_words(text, n, lengths):
    found = words(text)
    spans = list(runs(found, n))
    assert [end - start for start, end in spans] == lengths
    assert [start for start, _ in spans] == list(range(len(spans)))
