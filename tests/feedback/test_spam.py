"""Reviews that tell nothing of the answers they are about."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from hfchat.feedback.reviews import Review
from hfchat.feedback.spam import fault_of_correction, same_everywhere, too_fast, too_many
from hfchat.feedback.tables import AnswerRow

START = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def review():
    """Makes reviews: `review(7, person="anna")`, each of another answer to another prompt, an hour after the other."""

    def make(number, person="anna", after=timedelta(hours=1), **fields):
        prompt = f"prompt {number}"
        answer = AnswerRow(answer_id=f"chatcmpl-{number}", choice=0, text="Yes.", prompt_hash=prompt)
        blank = Review(f"{person}-{number:03}", ("", person), START + number * after, answer, None, None, None, None)
        return replace(blank, **fields)

    return make


def test_more_within_a_minute_than_anybody_reads(review):
    burst = [review(number, after=timedelta(seconds=11)) for number in range(7)]  # 6 in each minute
    later = [review(number) for number in range(1, 4)]
    calm = [review(number, "ben", timedelta(seconds=31)) for number in range(7)]
    reviews = sorted(burst + later + calm, key=lambda one: one.said_at)
    assert too_fast(reviews, 6) == set()
    assert too_fast(reviews, 5) == {one.id for one in burst}


def test_the_same_text_for_many_prompts_whoever_writes_it(review):
    slogan = [review(number, f"account {number}", correction="Buy SuperSoap" + number * "!") for number in range(4)]
    sums = [review(number, "eva", correction=f"It is {number}.") for number in range(9)]
    label = [review(number, "ben", correction="Positive.") for number in range(3)]
    thanks = [review(number, "carl", comment="thank you") for number in range(9)]
    canned = [review(number, "dora", comment="This is what you should say.") for number in range(9)]
    reviews = slogan + sums + label + thanks + canned
    assert same_everywhere(reviews, 3) == {one.id for one in slogan + canned}
    one_prompt = [replace(one, answer=slogan[0].answer) for one in slogan]
    assert same_everywhere(one_prompt, 3) == set()


def removed_of(review, counts, max_share):
    reviews = [review(number, person) for person, count in counts.items() for number in range(count)]
    removed = too_many(reviews, max_share)
    return {person: sum(id.startswith(person) for id in removed) for person in counts}


def test_nobody_has_more_than_a_share_of_what_is_left(review):
    many = dict.fromkeys([f"person {number}" for number in range(10, 20)], 4)
    removed = removed_of(review, many | {"troll": 500}, 0.2)
    assert removed.pop("troll") == 490
    assert not any(removed.values())
    assert 500 - 490 == 0.2 * (10 * 4 + 10)


def test_with_few_people_the_share_is_twice_an_equal_one(review):
    assert removed_of(review, {"anna": 100}, 0.2) == {"anna": 0}
    assert removed_of(review, {"anna": 100, "ben": 1}, 0.2) == {"anna": 0, "ben": 0}
    assert removed_of(review, {"anna": 100, "ben": 10, "carl": 10, "dora": 10}, 0.2)["anna"] == 70
    assert not any(removed_of(review, dict.fromkeys([f"{number:02}" for number in range(49)], 1), 0.01).values())


@pytest.mark.parametrize(
    ("correction", "fault"),
    [
        ("Paris is the capital, of course.", None),
        ("42", None),
        (" \n", "empty"),
        ("...?!", "empty"),
        ("\N{THUMBS UP SIGN}", "empty"),
        ("word " * 200, None),
        ("word " * 201, "too_long"),
        ("what is the CAPITAL of France, and why?", "repeats_prompt"),
        ("The capital of France is Paris", None),
        ("4, 5, 6, 7", None),
        ("1, 2, 3: what is it?", "repeats_prompt"),
    ],
)
def test_corrections_that_cannot_be_an_answer(correction, fault):
    asked = "1, 2, 3: what is it? Or: what is the capital of France, and why?"
    assert fault_of_correction(correction, "Lyon.", asked, max_ratio=10, max_repeated=0.9) == fault
