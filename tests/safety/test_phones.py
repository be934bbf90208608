"""What looks like a phone number, and is none. Every number here is made up or out of the library's examples."""

import pytest

from hfchat.safety import phones
from hfchat.safety.phones import find_phones


def found(text, regions=("US", "GB")):
    return [text[start:end] for start, end in find_phones(text, regions)]


@pytest.mark.parametrize(
    ("veto", "text"),
    [
        ("in_a_longer_value", "$650-253-0000"),
        ("in_a_longer_value", "650-253-0000%"),
        ("in_a_longer_value", "/650-253-0000"),
        ("in_a_longer_value", "x=650-253-0000"),
        ("in_a_longer_value", "10.650-253-0000"),
        ("in_a_longer_value", "650-253-0000@a.org"),
        ("in_a_longer_value", "650-253-0000:12"),
        ("in_a_longer_value", "(see 650) 253-0000"),
        ("in_a_longer_value", "a650-253-0000"),
        ("is_an_address", "93.184.215.1"),
        ("in_a_table", "12 650-253 0000"),
        ("in_a_table", "650 253 0000 999"),
        ("has_no_form", "6502530000"),
        ("has_no_form", "650 2530000"),
        ("has_no_form", "(6502530000)"),
        ("has_no_form", "07911123456"),
    ],
)
def test_each_veto_keeps_out_what_the_others_would_let_in(veto, text, monkeypatch):
    regions = ("US", "GB", "ES")
    assert found(text, regions) == []
    monkeypatch.setattr(phones, veto, lambda *_: False)
    assert found(text, regions) != []


def test_a_number_is_found_beside_other_digits():
    assert found("(650) 253-0000 24 hours") == ["(650) 253-0000"]
    assert found("in 1998 020 7946 0018 020 7946 0019") == ["020 7946 0018", "020 7946 0019"]
    assert found("+49 30 227 32152 +1 650 253 0000") == ["+49 30 227 32152", "+1 650 253 0000"]


def test_a_word_for_calling_makes_up_for_the_form():
    assert found("call 6502530000, fax: 650 2530001") == ["6502530000", "650 2530001"]


def test_an_extension_belongs_to_the_number():
    assert found("650-253-0000 x12, then 650-253-0001 ext. 7") == ["650-253-0000 x12", "650-253-0001 ext. 7"]
