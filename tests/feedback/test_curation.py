"""What is learned of what people say, and what is not, as somebody would have it who wants to teach the worst."""

from collections import Counter

import pytest

from hfchat.feedback.curation import CurationArguments, curate
from hfchat.feedback.exchange import Opinion
from hfchat.feedback.reviews import read_reviewed


@pytest.fixture
def said(open_store, exchange):
    """Stores answers and opinions, `say("1", user, prompt=..., text=..., rating=...)`, and curates them."""

    class Said:
        store = open_store()

        def say(
            self, id, user="", prompt="Why?", text="Because.", *,
            rating=None, correction=None, comment=None, over=None, key="", **fields,
        ):  # fmt: skip
            self.answer(id, prompt, text, api_key=key, **fields)
            opinion = Opinion(id, 0, rating, correction, comment, (), over, user, key)
            return self.store.say(opinion).id

        def answer(self, id, prompt="Why?", text="Because.", **fields):
            self.store.keep(exchange(id, prompt=prompt, text=text, **({"findings": ()} | fields)))

        def curate(self, **settings):
            wanted = {"max_per_minute": 1000, "max_share_of_person": 1, "max_share_of_key": 1, "person": "user"}
            args = CurationArguments(**(wanted | settings))
            return curate(read_reviewed(self.store.engine), args, lambda text: ["toxic"] if "poison" in text else [])

    return Said()


def reasons(curation, what):
    return dict(curation.removed_of(what))


def pairs(curation):
    return [
        (example.source, example.row["chosen"][0]["content"], example.row["rejected"][0]["content"])
        for example in sorted(curation.examples["preferences"], key=lambda example: example.source)
    ]


def labels(curation):
    return {example.row["messages"][-1]["content"]: example.row["label"] for example in curation.examples["thumbs"]}


def test_each_kind_of_feedback_becomes_examples(said):
    said.say("1", "anna", "Who?", "Me.", rating="down", correction="You.")
    said.answer("2", "What?", "This.")
    said.say("3", "anna", "What?", "That.", over="2")
    said.say("4", "anna", "When?", "Now.", rating="up")
    said.say("5", "ben", "When?", "Never.", rating="down")
    said.say("6", "ben", "How?", "So.", comment="hm")
    curation = said.curate()
    assert pairs(curation) == [
        ("correction", "You.", "Me."),
        ("retry", "That.", "This."),
        ("thumbs", "Now.", "Never."),
    ]
    [conversation] = curation.examples["conversations"]
    assert conversation.row["messages"] == [
        {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."},
    ]  # fmt: skip
    assert labels(curation) == {"Me.": False, "Now.": True, "Never.": False}
    assert curation.statements == {"rating": 3, "correction": 1, "preference": 1}
    assert reasons(curation, "review") == {"only_words": 1}
    praised = said.curate(learn_from_praise=True).examples["conversations"]
    assert {example.row["messages"][-1]["content"] for example in praised} == {"You.", "Now."}


def test_all_that_was_said_is_kept_or_removed_with_a_reason(said):
    for number in range(12):
        said.say(
            f"{number}",
            f"user {number % 4}",
            f"Why {number % 3}?",
            f"{number % 2}.",
            rating=("up", "down")[number % 5 > 2],
        )
    said.say("12", "user 1", correction="Because.")
    curation = said.curate()
    assert curation.reviews == curation.kept_reviews + curation.removed_of("review").total() == 13
    ids = Counter((removed.feedback_id, removed.what) for removed in curation.removed)
    assert max(ids.values()) == 1


def test_only_the_last_word_of_a_person_counts(said):
    said.say("1", "anna", rating="up")
    last = said.say("1", "anna", rating="down")
    assert reasons(said.curate(), "review") == {"replaced": 1}
    said.say("2", "anna", rating="up")  # of the same text, given as answer to the same prompt
    curation = said.curate()
    assert labels(curation) == {"Because.": True}
    assert [one.feedback_id for one in curation.removed if (one.what, one.reason) == ("rating", "replaced")] == [last]


def test_many_votes_for_an_answer_are_one_example_of_it(said):
    for number in range(6):
        said.say(f"{number}", f"user {number}", rating="up")
        said.say(f"bad {number}", f"user {number}", text="No idea.", rating="down")
    curation = said.curate()
    assert len(curation.examples["thumbs"]) == 2
    assert pairs(curation) == [("thumbs", "Because.", "No idea.")]
    assert reasons(curation, "thumbs") == {}


def test_contradictory_votes_count_for_nothing_and_a_majority_for_all(said):
    said.say("1", "anna", "Who?", rating="up")
    said.say("2", "ben", "Who?", rating="down")
    for user in ("anna", "ben", "carl"):
        said.say("3", user, "What?", "This.", rating="up")
    said.say("3", "troll", "What?", "This.", rating="down")
    curation = said.curate()
    assert labels(curation) == {"This.": True}
    assert reasons(curation, "rating") == {"contradictory": 2, "outvoted": 1}
    assert said.curate(min_lead=3).examples["thumbs"] == []


def test_preferences_that_contradict_each_other(said):
    said.answer("1", text="A")
    said.say("2", "anna", text="B", over="1")
    said.answer("3", text="B")
    said.say("4", "ben", text="A", over="3")
    assert pairs(said.curate()) == []
    assert reasons(said.curate(), "preference") == {"contradictory": 2}
    for user in ("carl", "dora"):
        said.say("4", user, text="A", over="3")
    assert pairs(said.curate()) == [("retry", "A", "B")]
    assert reasons(said.curate(), "preference") == {"outvoted": 1}


def test_pairs_of_different_kinds_that_contradict_each_other(said):
    said.say("1", "anna", text="A", rating="up")
    said.say("2", "anna", text="B", rating="down")
    said.say("3", "ben", text="A", correction="B!")
    said.say("4", "ben", text="B!", correction="A")
    said.say("5", "ben", text="B", over="1")
    curation = said.curate()
    assert pairs(curation) == []
    assert reasons(curation, "preferences") == {"contradictory": 4}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"correction": "..."}, "empty"),
        ({"correction": " Because.\n"}, "same_answer"),
        ({"correction": "Take poison."}, "unsafe"),
        ({"correction": "word " * 300}, "too_long"),
        ({"correction": "Why does the sun rise in the morning?", "prompt": "Why does the sun rise in the morning?"},
         "repeats_prompt"),
    ],
)  # fmt: skip
def test_corrections_that_are_not_learned(said, fields, reason):
    said.say("1", rating="down", **fields)
    curation = said.curate()
    assert reasons(curation, "correction") == {reason: 1}
    assert curation.examples["conversations"] == curation.examples["preferences"] == []
    assert labels(curation) == {"Because.": False}  # what else was said of it holds


def test_a_correction_to_what_others_rated_down_or_of_what_they_rated_up(said):
    said.say("1", "anna", text="Nobody knows.", rating="down")
    said.say("2", "ben", text="Because.", correction="nobody  knows.")
    said.say("3", "carl", text="Because.", correction="Nobody  knows.")
    for user in ("anna", "dora"):
        said.say("4", user, prompt="Who?", text="Me.", rating="up")
    said.say("4", "troll", prompt="Who?", text="Me.", rating="down", correction="They.")
    curation = said.curate()
    assert reasons(curation, "correction") == {"contradictory": 1, "outvoted": 1}
    assert [example.row["messages"][-1]["content"] for example in curation.examples["conversations"]] == [
        "nobody  knows."
    ]


def test_no_answer_is_learned_that_was_cut_off_or_that_guards_found_something_in(said):
    flagged = {"guard": "lexicon", "place": "answer", "action": "redact", "categories": ["obscene"]}
    blocked = {"guard": "lexicon", "place": "prompt", "action": "block", "categories": ["obscene"]}
    asked = {"guard": "lexicon", "place": "prompt", "action": "flag", "categories": ["obscene"]}
    said.say("1", prompt="1?", rating="up", finish_reason="length")
    said.say("2", prompt="2?", rating="up", findings=[flagged])
    said.say("3", prompt="3?", rating="up", text="Take poison.")
    said.say("4", prompt="4?", rating="down", text="Take the poison.")
    said.say("5", prompt="5?", rating="up", correction="Yes, do.", findings=[blocked])
    said.say("6", prompt="6?", rating="up", text="Fine.", findings=[asked])
    said.answer("7", prompt="7?")
    said.say("8", prompt="7?", text="poison", over="7")
    curation = said.curate()
    assert labels(curation) == {"Take the poison.": False, "Fine.": True}
    assert reasons(curation, "rating") == {"unfinished": 1, "unsafe": 2}
    assert reasons(curation, "preference") == {"unsafe": 1}
    assert reasons(curation, "review") == {"blocked": 1}


def test_a_crowd_of_accounts_with_one_text(said):
    for number in range(8):
        said.say(f"{number}", f"account {number}", f"Question {number}?", rating="down", correction="Buy SuperSoap!")
    said.say("8", "anna", "Question 8?", rating="down", correction="Because of the rain.")
    curation = said.curate()
    assert reasons(curation, "review") == {"same_everywhere": 8}
    assert [example.source for example in curation.examples["conversations"]] == ["correction"]


def test_an_account_that_votes_against_all_others_is_not_believed_where_it_is_alone(said):
    for number in range(6):
        for user in ("anna", "ben", "carl"):
            said.say(f"{number}", user, f"Question {number}?", f"Answer {number}.", rating="up")
        said.say(f"{number}", "troll", f"Question {number}?", f"Answer {number}.", rating="down")
    said.say("alone", "troll", "And?", "Nothing.", rating="up")
    curation = said.curate()
    assert reasons(curation, "review") == {"untrusted": 7}
    assert "Nothing." not in labels(curation)
    [troll] = [person for person in curation.people if not person.is_trusted]
    assert (troll.reviews, troll.kept, troll.agreement.overlaps, troll.agreement.agreed) == (7, 0, 6, 0)
    assert "Nothing." in labels(said.curate(min_agreement=0.01, min_overlaps=7))


def test_an_account_with_very_many_reviews(said):
    for number in range(30):
        said.say(f"troll {number}", "troll", f"Question {number}?", rating="up")
    for number in range(10):
        said.say(f"{number}", f"user {number}", f"Other question {number}?", rating="up")
    assert reasons(said.curate(max_share_of_person=0.2), "review") == {"too_many": 28}
    assert reasons(said.curate(max_per_minute=20), "review") == {"too_fast": 30}


HONEST = ("anna", "ben", "carl")


def attacked(said, key):
    """Three keys rate right answers, each its own; `key` says the opposite of the same texts, as eight users."""
    for number in range(20):
        prompt, text = f"What is {number} and 1?", f"{number + 1}, and I am sure of that."
        for name in HONEST:
            said.say(f"{name} {number}", "", prompt, text, rating="up", key=name)
        for sock in range(8):
            lie = f"It is {number + 2}, as sock {sock} says."
            said.say(f"sock {sock} {number}", f"sock-{sock}", prompt, text, rating="down", correction=lie, key=key)


@pytest.mark.parametrize("key", ["mallory", ""])
def test_one_key_is_one_voter_whomever_it_names(said, key):
    attacked(said, key)
    curation = said.curate(person="api_key")
    assert curation.examples["conversations"] == curation.examples["preferences"] == []
    assert set(labels(curation).values()) == {True}
    assert len(curation.people) == 4
    assert [person.reviews for person in curation.people if not person.is_trusted] == [160]
    assert curation.kept_reviews == 60


def test_that_is_so_by_default(said):
    attacked(said, "mallory")
    curation = curate(read_reviewed(said.store.engine), CurationArguments(max_per_minute=1000), lambda text: [])
    assert curation.examples["conversations"] == []
    assert set(labels(curation).values()) == {True}


def test_a_flood_is_counted_by_key(said):
    for number in range(30):
        said.say(f"{number}", f"sock-{number}", f"Question {number}?", rating="up", key="mallory")
    assert reasons(said.curate(person="api_key", max_per_minute=20), "review") == {"too_fast": 30}
    assert reasons(said.curate(person="api_key", max_per_minute=20, trusted_keys=["mallory"]), "review") == {}


def test_each_user_of_a_trusted_key_is_a_person(said):
    said.say("troll", "troll", rating="down", key="web")
    for user in ("anna", "ben", "carl"):
        said.say(user, user, rating="up", key="web")
    said.say("other", "anna", rating="down", key="mallory")
    said.say("other 2", "ben", rating="down", key="mallory")
    assert labels(said.curate(person="api_key")) == {}  # two keys, which contradict each other
    assert labels(said.curate(person="api_key", trusted_keys=["web"])) == {}  # three to two
    assert labels(said.curate(person="api_key", trusted_keys=["web"], min_lead=1)) == {"Because.": True}
    assert len(said.curate(person="api_key", trusted_keys=["web"]).people) == 5


def test_a_key_has_no_more_than_its_share_with_all_its_users(said):
    for number in range(40):
        said.say(f"{number}", f"user {number}", f"Question {number}?", rating="up", key="web")
    for key in ("anna", "ben", "carl", "dora", "emil"):
        said.say(key, "", f"Question of {key}?", rating="up", key=key)
    curation = said.curate(person="api_key", trusted_keys=["web"], max_share_of_key=0.5)
    assert reasons(curation, "review") == {"too_many": 35}
    assert curation.kept_reviews == 10


def test_one_prompt_is_not_all_that_is_learned(said):
    for number in range(12):
        said.say(f"{number}", f"user {number}", rating="up", text=f"Answer {number}.")
        said.say(
            f"bad {number}", f"user {number}", rating="down", text=f"Bad answer {number}.", correction=f"So: {number}"
        )
    curation = said.curate(max_per_prompt=5, max_prompts_per_text=100)
    assert {dataset: len(made) for dataset, made in curation.examples.items()} == {
        "conversations": 5, "preferences": 5, "thumbs": 5,
    }  # fmt: skip
    assert reasons(curation, "thumbs") == {"too_many_of_prompt": 19}
    assert said.curate(max_per_prompt=5).examples == curation.examples


def test_the_same_twice(said):
    for user in ("anna", "ben"):
        said.say("1", user, correction="Because of  the rain.")
    said.say("1", "carl", correction="Because of the rain.")
    curation = said.curate()
    assert len(curation.examples["conversations"]) == len(curation.examples["preferences"]) == 1
    assert reasons(curation, "conversations") == reasons(curation, "preferences") == {"duplicate": 2}


def test_of_one_model_and_template(said):
    said.say("1", prompt="1?", text="1", rating="up", model="a", model_version="v1", template_fingerprint="x")
    said.say("2", prompt="2?", text="2", rating="up", model="a", model_version="v2", template_fingerprint="y")
    said.say("3", prompt="3?", text="3", rating="up", model="ab", template_fingerprint="x")
    assert set(labels(said.curate(model="a"))) == {"1", "2"}
    assert set(labels(said.curate(model="a@v2"))) == {"2"}
    assert set(labels(said.curate(template_fingerprint="x"))) == {"1", "3"}
    assert reasons(said.curate(model="a", template_fingerprint="x"), "review") == {
        "other_model": 1,
        "other_template": 1,
    }


@pytest.mark.parametrize(
    "settings",
    [{"max_per_minute": 0}, {"max_share_of_person": 0}, {"min_agreement": 1.1}, {"max_correction_ratio": 0}],
)
def test_thresholds_that_make_no_sense(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CurationArguments(**settings)
