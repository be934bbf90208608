"""The report of a crowd that got another model and asked other things."""

import random
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from sqlalchemy.orm import Session

from hfchat.errors import UserError
from hfchat.feedback.report import watch, write_report
from hfchat.feedback.tables import AnswerRow, ConversationRow, OpinionRow

NOW = datetime(2025, 6, 30, 12, tzinfo=UTC)
HOSTILE = '</p><script>alert(1)</script><img src="http://evil.example/x.png"> ``` \n# Heading\n| a | \u202e'


def a_crowd(engine, answers, days=20):
    """Answers over so many days; from the middle on by v2, which is liked more, and with other questions."""
    rng = random.Random(2)
    with Session(engine) as session, session.begin():
        for number in range(answers):
            later = number >= answers // 2
            question = "Where is the parcel that I ordered?" if later else "How do I sort a list in Python?"
            answer = AnswerRow(
                answer_id=f"chatcmpl-{number}",
                choice=0,
                created_at=NOW - timedelta(days=days * (1 - (number + 0.5) / answers)),
                model="assistant",
                model_version="v2" if later else "v1",
                prompt_hash="",
                text="Yes. " * (30 if later else 10) + str(number),
                finish_reason="stop",
                sampling={},
                findings=[{"guard": "lexicon", "place": "answer", "action": "redact", "categories": ["obscene"]}],
                user_id="",
                api_key="",
            )
            messages = [{"role": "user", "content": question}]
            session.add_all([ConversationRow(answer_id=answer.answer_id, messages=messages), answer])
            session.flush()
            rating = "up" if rng.random() < (0.8 if later else 0.5) else "down"
            session.add(
                OpinionRow(
                    id=f"feedback-{number}",
                    answer_key=answer.id,
                    created_at=answer.created_at,
                    rating=None if number % 20 == 0 else rating,
                    tags=["<b>*rude*</b>"],
                    comment=HOSTILE if number % 10 == 9 else None,
                    user_id=f"user-{number}",
                    api_key="",
                )
            )


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    from hfchat.feedback.database import open_database

    engine = open_database(str(tmp_path_factory.mktemp("report") / "feedback.db"), create=True)
    a_crowd(engine, 400)
    yield watch(engine, NOW - timedelta(days=10), NOW)
    engine.dispose()


class Links(HTMLParser):
    """What a browser would fetch or run."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found += [tag] if tag in ("script", "img", "link", "iframe") else []
        self.found += [value for name, value in attributes if name in ("src", "href") or name.startswith("on")]


def test_what_changed_is_said(watched):
    assert [(one.name, one.outcome) for one in watched.changes] == [
        ("thumbs up", "better"),
        ("refusals", "not shown to differ"),
        ("answers cut at their greatest length", "not shown to differ"),
        ("length of answers", "changed"),
    ]
    assert "words" in [measure.name for measure in watched.drift.changed]
    assert list(watched.models) == ["assistant@v1", "assistant@v2"]
    assert watched.model_changes["assistant@v2"][0].outcome == "better"
    assert watched.models["assistant@v1"].up.trials == 190
    assert watched.warning is None
    assert any(line.startswith("prompts changed") for line in watched.summary)


def test_the_page_and_its_markdown_say_the_same(watched, tmp_path):
    path = tmp_path / "report.html"
    markdown = write_report(watched, path)
    assert markdown == tmp_path / "report.md"
    for text in (path.read_text(), markdown.read_text()):
        for line in watched.summary:
            assert line.split("; ")[-1].split(" (")[0] in text
        for words in ("2025-06-20", "assistant@v2", "redact", "parcel", "chatcmpl-399"):
            assert words in text
    assert path.stat().st_mode & 0o077 == markdown.stat().st_mode & 0o077 == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_nothing_that_people_write_is_taken_for_the_page(watched, tmp_path):
    markdown = write_report(watched, tmp_path / "report.html").read_text()
    page = (tmp_path / "report.html").read_text()
    assert Links(page).found == []
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;b&gt;*rude*" in page
    assert "\u202e" not in page + markdown
    assert not re.search("^# Heading", re.sub("^(`{3,})text$.*?^\\1$", "", markdown, flags=re.M | re.S), re.M)
    assert "&lt;b&gt;\\*rude\\*" in markdown


def test_each_column_of_the_charts_has_its_numbers(watched, tmp_path):
    write_report(watched, tmp_path / "report.html")
    assert watched.timeline.unit == "day"
    assert watched.timeline.count == 21
    conversations = watched.charts[0]
    assert sum(conversations.series["conversations"]) == 400
    page = (tmp_path / "report.html").read_text()
    assert page.count("<title>") == 1 + len(watched.charts) * watched.timeline.count
    assert "<title>2025-06-11: conversations 20</title>" in page
    assert "nan" not in page


def test_a_small_crowd_alarms_nobody(open_store, tmp_path):
    engine = open_store().engine
    a_crowd(engine, 30)
    watched = watch(engine, NOW - timedelta(days=10), NOW)
    assert {one.outcome for one in watched.changes} == {"too few to tell"}
    assert "too few to tell" in watched.drift.sentence
    write_report(watched, tmp_path / "report.html")
    assert "Prompts: too few to tell" in (tmp_path / "report.html").read_text()


def test_a_person_who_gives_much_of_the_feedback_is_mentioned(open_store):
    engine = open_store().engine
    a_crowd(engine, 100)
    with Session(engine) as session, session.begin():
        session.query(OpinionRow).filter(OpinionRow.id.in_([f"feedback-{n}" for n in range(70, 90)])).update(
            {"user_id": "alice"}
        )
    watched = watch(engine, NOW - timedelta(days=10), NOW)
    assert watched.warning == "one person gave 19 of the 48 thumbs"
    assert watched.warning in watched.summary


def test_of_nothing_there_is_a_report_too(open_store, tmp_path):
    watched = watch(open_store().engine, NOW - timedelta(days=10), NOW)
    markdown = write_report(watched, tmp_path / "report.html")
    for path in (markdown, tmp_path / "report.html"):
        assert "Nothing is stored of this time." in path.read_text()


def test_a_report_that_cannot_be_written(watched, tmp_path):
    with pytest.raises(UserError, match=r"\*\.html"):
        write_report(watched, tmp_path / "report.md")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(watched, tmp_path / "file" / "report.html")


def test_a_report_makes_its_folder(watched, tmp_path):
    write_report(watched, tmp_path / "new" / "folder" / "report.html")
    assert [path.name for path in sorted((tmp_path / "new" / "folder").iterdir())] == ["report.html", "report.md"]
