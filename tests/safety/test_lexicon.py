"""The words of the lexicon are offensive by its purpose, and so are some of those here."""

import time
from collections import Counter
from importlib import resources

import pytest

from hfchat.safety.lexicon import Lexicon
from tests.conftest import SHARED_DATA

HARMLESS = """\
Scunthorpe Penistone Essex Sussex Middlesex Cockburn Lightwater Clitheroe class assess bass grass cockpit
cocktail Dick Cheney Moby-Dick Hitchcock Babcock peacock shuttlecock analysis analyst therapist canal arsenal
parse titillate title titan constitution cumulative document circumstance accumulate shiitake shift Shi'ite
sniggering niggardly push it Niger Nigeria snigger denigrate coon Maine dyke dike chink armour chinks Sambo
spice spicy despicable conspicuous pegging pussy willow cat bitch queer gay lesbian transgender Muslim Jewish
breast cancer sexual health vagina penis buttress button embarrass harass hassle passion compass Cassandra
fagotto Fagin kikuyu raghu wogan twattle swan kernel bastardised sextant sextet pornic homework assassin 7175
B4 M5 5t3 7h3 h3llo f**d 2*3*4 a*b @home $100 US$5 masturbation pornography orgasm fellatio ejaculation BDSM
spastic kaffir lime bastard goddamn bollocks
"""


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon()


def found(lexicon, text):
    return [(text[hit.start : hit.end], hit.entry, hit.category) for hit in lexicon.find(text)]


@pytest.mark.parametrize("word", ["5h1t", "sh1t", "5hit", "p0rn"])
def test_half_of_a_word_may_be_digits(word):
    lexicon = Lexicon()
    assert len(lexicon.find(f"oh {word}, the A55, 1234, 5555 and b2b4")) == 1


def test_words_that_only_look_like_others_are_not_found(lexicon):
    assert found(lexicon, HARMLESS) == []
    assert found(lexicon, HARMLESS.upper()) == []


@pytest.mark.parametrize(
    ("word", "entry", "category"),
    [
        ("Fucking", "fuck", "obscene"),
        ("motherfuckers", "fuck", "obscene"),
        ("shitty", "shit", "obscene"),
        ("horseshit", "shit", "obscene"),
        ("SLUTS", "slut", "sexual"),
        ("slutty", "slut", "sexual"),
        ("pornos", "porn", "sexual"),
        ("faggots", "faggot", "slur"),
        ("f*ck", "fuck", "obscene"),
        ("f**king", "fuck", "obscene"),
        ("sh1t", "shit", "obscene"),
        ("sh!t", "shit", "obscene"),
        ("$hit", "shit", "obscene"),
        ("a$$hole", "asshole", "obscene"),
        ("@sshole", "asshole", "obscene"),
        ("wh0re", "whore", "sexual"),
    ],
)
def test_forms_and_disguises_are_found(lexicon, word, entry, category):
    for text in (word, f"({word})", f"he said {word}!", f"so_{word}, no", f"*{word}*", f"“{word}”…"):
        assert found(lexicon, text) == [(word, entry, category)], text


def test_a_mention_is_of_the_word_without_its_sign(lexicon):
    assert found(lexicon, "@slut $slut") == [("slut", "slut", "sexual")] * 2


def test_hits_are_in_order_and_where_they_say(lexicon):
    text = "É sh*t… \U0001f600 fuck"
    assert [(hit.start, hit.end) for hit in lexicon.find(text)] == [(2, 6), (10, 14)]


def test_the_shipped_list_has_every_word_once_and_in_a_section():
    lines = (resources.files("hfchat.safety") / "lexicon_en.txt").read_text(encoding="utf-8").splitlines()
    words = Counter(word for line in lines if line and line[0] not in "#[" for word in line.split())
    assert max(words.values()) == 1, words.most_common(3)
    assert [line for line in lines if line.startswith("[")] == ["[sexual]", "[obscene]", "[slur]"]


def test_a_list_of_ones_own(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# mine\nplain # as it is\n[Rude]\nBlorp~ blimp\n", encoding="utf-8")
    lexicon = Lexicon(path)
    assert found(lexicon, "plains plain blorping BLIMPS blimp fuck") == [
        ("plain", "plain", "unsorted"),
        ("blorping", "blorp", "rude"),
        ("blimp", "blorp", "rude"),
    ]


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), (b"# nothing\n[rude]\n", "has no entry"), (b"\xff\xfe", "utf-8")]
)
def test_a_list_that_cannot_be_used_is_named(tmp_path, content, problem):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"lexicon .*list\.txt: .*{problem}"):
        Lexicon(path)


@pytest.mark.parametrize("unit", ["a", "*", "f*", "$", "@$", "!", "fuck", "5h1t", "fuck ", "_", "a_", "é"])
def test_a_long_line_takes_no_longer_than_its_length(lexicon, unit):
    text = unit * (200_000 // len(unit))
    start = time.process_time()
    lexicon.find(text)
    assert time.process_time() - start < 2


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the shared data")
def test_literature_and_wikipedia_have_few(lexicon):
    for name in ("tinyshakespeare", "wikitext2-valid"):
        text = (SHARED_DATA / "pretrain" / f"{name}.txt").read_text(encoding="utf-8")
        start = time.process_time()
        hits = lexicon.find(text)
        print(f"{name}: {len(hits)} hits, {len(text) / 1e6 / (time.process_time() - start):.1f} MB/s")
        assert len(hits) < 0.1 * len(text.split()) / 1000
