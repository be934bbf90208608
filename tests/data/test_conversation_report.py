from hfchat.data.conversation_report import Summary, card, report
from tests.data.chats import assistant, user


def test_a_summary_draws_few_conversations_and_the_first_of_each_reason():
    summary = Summary("messages", [])
    for i in range(20):
        summary.add_kept({"messages": [user(str(i)), assistant()]}, bytes([(i * 7) % 20]), "train")
        summary.add_removed({"reason": "duplicate", "row": str(i)})
    assert [digest[0] for digest, _ in summary.samples] == [0, 1, 2, 3, 4]
    assert [row["row"] for row in summary.examples["duplicate"]] == ["0", "1", "2"]
    assert summary.turns == {2: 20}


def test_what_a_source_says_of_itself_stays_text():
    source = {"name": "a|b <img>", "license": "House *rules*", "url": "", "format": "messages"}
    summary = Summary("messages", [source | {"rows": 2, "conversations": 2, "kept": 1}])
    summary.add_kept({"messages": [user("```\n# Hi"), assistant()]}, b"0", "train")
    summary.add_removed({"reason": "malformed", "row": "{", "detail": "not JSON: <b>", "place": "a.jsonl (row 2)"})
    page, readme = report(summary), card(summary, {"train": 500}, 1000)
    for text in (page, readme):
        assert "| a\\|b &lt;img&gt; | House \\*rules\\* | messages | 2 | 2 | 1 |" in text
    assert "\na.jsonl (row 2): not JSON: &lt;b&gt;\n\n```text\n{\n```\n" in page
    assert "\n````text\n[user]\n```\n# Hi\n\n[assistant]\n" in page
    assert "license: other\nlicense_name: house-rules\n" in readme
