import pytest

from hfchat.data.books import split_header
from tests.conftest import SHARED_DATA
from tests.data.reading import read_all

BODY = "CHAPTER I.\n\nIt was a bright cold day.\n\nThe end came soon."
ABOUT = "The Project Gutenberg eBook of A Cold Day\n\nTitle: A Cold Day\n\nAuthor: Ann Other\n\nLanguage: English\n\n"
LICENCE = "\nSection 1. General Terms of Use of Project Gutenberg works: you may copy it.\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "*** START OF THE PROJECT GUTENBERG EBOOK A COLD DAY ***\n",
            "*** END OF THE PROJECT GUTENBERG EBOOK A COLD DAY ***",
        ),
        (
            "*** START OF THIS PROJECT GUTENBERG EBOOK A COLD\nDAY, VOLUME 2 ***\n\n\n"
            "Produced by Some One\nand others\n\n",
            "End of the Project Gutenberg EBook of A Cold Day\n\n"
            "*** END OF THIS PROJECT GUTENBERG EBOOK A COLD DAY ***",
        ),
        (
            "**The Project Gutenberg Etext**\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
            "End of Project Gutenberg's A Cold Day",
        ),
        (
            "***START OF THE PROJECT GUTENBERG EBOOK A COLD DAY***\n\n\nE-text prepared by Some One\n\n",
            "***END OF THE PROJECT GUTENBERG EBOOK A COLD DAY***",
        ),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_stands_around_the_text_is_cut_off(before, after, newline):
    book = f"\ufeff{ABOUT}{before}\n\n{BODY}\n\n\n{after}{LICENCE}".replace("\n", newline)
    text, header = split_header(book)
    assert text == BODY + "\n"
    assert "Author: Ann Other" in header


def test_a_text_without_the_marks_is_left_as_it_is():
    assert split_header(BODY) == (BODY, "")
    mentions = "He read an eBook of Project Gutenberg.\nThe End of the Project Gutenberg was near.\n"
    assert split_header(mentions)[0] == mentions


def test_a_book_is_a_document_with_its_title_and_author(tmp_path):
    start, end = "*** START OF THE PROJECT GUTENBERG EBOOK X ***", "*** END OF THE PROJECT GUTENBERG EBOOK X ***"
    (tmp_path / "1.txt").write_text(f"{ABOUT}{start}\n\n{BODY}\n\n{end}{LICENCE}")
    (tmp_path / "2.txt").write_bytes(b"not \xff text")
    found = read_all({"path": f"{tmp_path}/*.txt", "kind": "gutenberg", "name": "books"}, tmp_path / "out")
    (document,) = found.documents
    assert document.text == BODY + "\n"
    assert document.metadata["title"] == "A Cold Day"
    assert document.metadata["author"] == "Ann Other"
    assert found.reasons == ["unreadable"]


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data is not here")
def test_a_real_book(tmp_path):
    path = SHARED_DATA / "pretrain" / "tinyshakespeare.txt"
    (document,) = read_all({"path": str(path), "kind": "gutenberg"}, tmp_path / "out").documents
    assert document.text == path.read_text()
