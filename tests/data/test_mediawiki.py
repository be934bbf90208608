import bz2
import io
import tracemalloc

import pytest

from hfchat.data.mediawiki import parse_dump, wikitext_to_text
from tests.conftest import SHARED_DATA
from tests.data.reading import read_all

DUMP = SHARED_DATA / "pretrain" / "enwiki-excerpt.xml.bz2"
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en">
<siteinfo><sitename>Test</sitename><dbname>test</dbname><base>https://wiki.example/wiki/Main_Page</base>
<generator>x</generator><case>first-letter</case><namespaces><namespace key="0" case="first-letter" />
<namespace key="1" case="first-letter">Talk</namespace></namespaces></siteinfo>
"""


def page(title: str, text: str, namespace: int = 0, redirect: str = "") -> str:
    redirect = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>{abs(hash(title)) % 1000}</id>{redirect}<revision>"
        f"<id>1</id><timestamp>2024-05-06T07:08:09Z</timestamp><contributor><username>A</username><id>1</id>"
        f"</contributor><model>wikitext</model><format>text/x-wiki</format>"
        f'<text xml:space="preserve">{text}</text><sha1>x</sha1></revision></page>\n'
    )


def write_dump(path, *pages: str, end: str = "</mediawiki>") -> None:
    path.write_bytes(bz2.compress((HEAD + "".join(pages) + end).encode()))


def test_articles_are_read_and_redirects_and_talk_are_not(tmp_path):
    write_dump(
        tmp_path / "a.xml.bz2",
        page("The River", "A '''river''' flows."),
        page("River, the", "#REDIRECT [[The River]]", redirect="The River"),
        page("Talk:The River", "I think so.", namespace=1),
        page("The Sea", "The sea is [[salt|salty]]."),
    )
    found = read_all({"path": f"{tmp_path}/a.xml.bz2", "name": "w"}, tmp_path / "out", world_size=2)
    assert sorted(found.texts) == ["= The River =\n\nA river flows.", "= The Sea =\n\nThe sea is salty."]
    assert (found.read, found.skipped) == (2, 2)
    river = next(document for document in found.documents if "river" in document.text)
    assert river.metadata["url"] == "https://wiki.example/wiki/The_River"
    assert river.metadata["date"] == "2024-05-06T07:08:09Z"
    assert river.metadata["title"] == "The River"
    talk = read_all({"path": f"{tmp_path}/a.xml.bz2", "namespaces": [1]}, tmp_path / "talk")
    assert talk.texts == ["= Talk:The River =\n\nI think so."]


def test_a_dump_that_is_cut_off_costs_its_rest(tmp_path):
    pages = [page(f"Page {i}", f"Text of page {i}.") for i in range(20)]
    write_dump(tmp_path / "a.xml.bz2", *pages[:10], pages[10][:150], end="")
    found = read_all({"path": f"{tmp_path}/a.xml.bz2"}, tmp_path / "out")
    assert len(found.texts) == 10
    assert found.reasons == ["unreadable"]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic''.", "Bold and italic."),
        ("See [[Ship]], [[Ship|a vessel]] and [[ship]]s.", "See Ship, a vessel and ships."),
        ("From [http://a.org the source] of it.", "From the source of it."),
        ("A fact.<ref>{{cite book|title=X}}</ref> More.<ref name=a />", "A fact. More."),
        ("{{Infobox|a={{b}}|c=[[d]]}}Text.", "Text."),
        ("Before.\n{| class=wikitable\n|-\n! a !! b\n|-\n| 1 || 2\n|}\nAfter.", "Before.\n\nAfter."),
        ("[[File:Ship.jpg|thumb|A [[ship]] at sea]]Text.[[Category:Ships]]", "Text."),
        ("[[Star Trek: Voyager]]; [[:Category:Ships]] is not.", "Star Trek: Voyager; Category:Ships is not."),
        ("<!-- hidden -->Shown.<br />Next", "Shown.\nNext"),
        ("* one\n* two\n# three", "- one\n- two\n- three"),
        ("10&nbsp;km &mdash; far", "10 km — far"),
        ("Name ({{lang-de|X}}; born 1900) lived.", "Name (born 1900) lived."),
        ("__NOTOC__Text with <math>x^2</math> in it.", "Text with in it."),
        ("In.\n\n== Past ==\nOld.\n\n== See also ==\n* [[L]]\n\n== References ==\n{{r}}", "In.\n\n== Past ==\n\nOld."),
        ("== Empty ==\n== Full ==\nText.", "== Full ==\n\nText."),
        ("== A ==\n=== B ===\nText.", "== A ==\n\n=== B ===\n\nText."),
        ("== External links ==\n=== Videos ===\n* x\n== Next ==\nText.", "== Next ==\n\nText."),
        ("[[File:Broken.jpg|thumb|never closed", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_markup_becomes_text_that_one_can_read(markup, text):
    assert wikitext_to_text(markup) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Read [[John 3:16]] and [[Re:Zero]], [[C:\\|C:]] too.", "Read John 3:16 and Re:Zero, C: too."),
        ("In [[3:10 to Yuma (2007 film)|3:10 to Yuma]], [[16:9 aspect ratio|16:9]].", "In 3:10 to Yuma, 16:9."),
        (
            "''[[4:44 (album)|4:44]]'', [[Mission: Impossible]], [[2001:Odyssee]].",
            "4:44, Mission: Impossible, 2001:Odyssee.",
        ),
        ("[[It: Chapter Two]] is not Italian.", "It: Chapter Two is not Italian."),
        ("[[de:Schilder]][[zh-min-nan:X]][[Fr:Signe|y]]Text.", "Text."),
        ("[[:de:Schilder|in German]], [[:Kategorie:Sport]].", "in German, Kategorie:Sport."),
        ("[[wikt:ship|ship]] and [[Help:Links|help]], [[:w:Ship]].", "ship and help, w:Ship."),
        ("[[Kategorie:Sport]][[kategorie: Sport|X]][[Category:Sport]]Text.", "Text."),
        ("[[Datei:A.jpg|mini|Ein [[Schiff]] mit {{x|[[y]]}} und [[Anker|Ankern]]]]Text.", "Text."),
        ("[[Bild:A b.JPG|[[Bild:B.svg|klein]] und [[C]]]][[ file : c.png ]]Text.", "Text."),
        ("[[Medium:Ton.ogg|hören]]Text.", "Text."),
        ("[[Datei:Offen.jpg|mini|nie geschlossen", ""),
    ],
)
def test_a_link_shows_what_the_wiki_shows_of_it(markup, text):
    assert wikitext_to_text(f"<!--namespaces|Medium|Datei|Kategorie-->{markup}") == text


def test_the_names_of_files_and_categories_are_those_of_the_dump(tmp_path):
    namespaces = (
        '<namespace key="-2" case="first-letter">Медиа</namespace><namespace key="6" case="x">Файл</namespace>'
        '<namespace key="14" case="first-letter">Категория</namespace></namespaces>'
    )
    dump = HEAD.replace("</namespaces>", namespaces)
    text = (
        "См. [[Иоанн 3:16]] и [[Звёздный путь: Вояджер|сериал]].\n[[Файл:Флаг.jpg|мини|[[Флаг]]]]\n[[категория:Спорт]]"
    )
    dump += page("Знаки", text) + page("Файл:Флаг.jpg", "Описание").replace("<ns>0</ns>", "") + "</mediawiki>"
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(dump.encode("utf-16")))
    found = read_all({"path": f"{tmp_path}/a.xml.bz2"}, tmp_path / "out")
    assert found.texts == ["= Знаки =\n\nСм. Иоанн 3:16 и сериал."]
    assert found.skipped_for == {"page of another namespace": 1}


def test_what_is_no_article_is_counted_with_what_it_is(tmp_path):
    write_dump(
        tmp_path / "a.xml.bz2",
        page("Ship", "Text."),
        page("Old", "#redirect [[Ship]]"),
        page("Boat", "See there.", redirect="Ship"),
        page("Gone", ""),
        page("Q1", "{}").replace("<model>wikitext", "<model>wikibase-item"),
        page("Talk:Ship", "Well.", namespace=1),
    )
    found = read_all({"path": f"{tmp_path}/a.xml.bz2"}, tmp_path / "out")
    assert found.texts == ["= Ship =\n\nText."]
    assert found.skipped_for == {
        "redirect": 2, "page without text": 1, "page that is no wikitext": 1, "page of another namespace": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        ("<rss><channel/></rss>", "no dump of MediaWiki: its first element is <rss>"),
        ('<!DOCTYPE mediawiki [<!ENTITY a "b">]><mediawiki/>', "a dump has no document type"),
        (HEAD + "<page>" * 50, "more than 32 elements are nested"),
        (HEAD + f'<page title="{"x" * 2_000_000}">', "a tag has more than 1,048,576 bytes"),
        (HEAD + "<page><title>x</page>", "mismatched tag"),
    ],
)
def test_what_is_no_dump_is_one_line(tmp_path, xml, problem):
    (tmp_path / "a.xml").write_text(xml)
    (row,) = read_all({"path": f"{tmp_path}/a.xml"}, tmp_path / "out").removed
    assert row["reason"] == "unreadable"
    assert problem in row["detail"]


def test_a_page_is_measured_while_it_is_read(tmp_path):
    """The page has 40 MB; of it, and of the second one's revisions, no more is held than a document may have."""
    dump = bz2.compress(HEAD.encode()) + bz2.compress(b"<page><title>Long</title><ns>0</ns><revision><text>")
    dump += bz2.compress(b"&lt;" + b"x y\n" * 500_000) * 20
    dump += bz2.compress(b"</text></revision></page>" + page("Next", "Text.").encode() + b"</mediawiki>")
    tracemalloc.start()
    with bz2.open(io.BytesIO(dump)) as stream:
        large, small = (make() for make in parse_dump(stream, 100_000, namespaces=[0]))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert large.fault == ("too_large", "more than 100,000 bytes")
    assert small.text.endswith("= Next =\n\nText.")
    assert most < 5_000_000


def test_a_page_that_is_too_much_for_the_parser_costs_itself(tmp_path):
    nested = "[[" * 50_000 + "{{" * 3000 + "''x''" + "}}" * 3000 + "]]" * 50_000
    write_dump(tmp_path / "a.xml.bz2", page("Deep", nested), page("Shallow", "Text."))
    found = read_all({"path": f"{tmp_path}/a.xml.bz2", "timeout": 5.0}, tmp_path / "out")
    assert "= Shallow =\n\nText." in found.texts
    assert found.read == 2
    assert all(row["reason"].startswith("extraction_") for row in found.removed)


@pytest.mark.skipif(not DUMP.exists(), reason="the shared data is not here")
def test_real_articles_have_no_markup_left(tmp_path):
    found = read_all({"path": str(DUMP), "name": "enwiki"}, tmp_path / "out", world_size=2)
    assert (len(found.documents), found.skipped, found.removed) == (106, 100, [])
    for mark in (
        "{{",
        "}}",
        "[[",
        "]]",
        "<ref",
        "|-",
        "{|",
        "|}",
        "thumb|",
        "Category:",
        "<!--",
        "'''",
        "</",
        "\n\n\n",
    ):
        left = [document.metadata["title"] for document in found.documents if mark in document.text]
        assert not left, (mark, left)
    anarchism = next(document.text for document in found.documents if document.metadata["title"] == "Anarchism")
    assert anarchism.startswith("= Anarchism =\n\nAnarchism is a political philosophy that advocates self-governed")
    assert "\n\n== Etymology and terminology ==\n\nThe term " in anarchism
    assert "External links" not in anarchism
    assert len(anarchism) > 40_000
