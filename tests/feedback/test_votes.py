"""Majorities, and who is mostly against them."""

import random

import pytest

from hfchat.feedback.votes import agreements, find_untrusted, side_of_others, verdict


@pytest.mark.parametrize(
    ("sides", "min_lead", "expected"),
    [
        (["up"], 2, "up"),  # nobody is against it
        (["up", "down"], 1, None),
        (["up", "up", "down"], 1, "up"),
        (["up", "up", "down"], 2, None),
        (["up", "down", "down", "down"], 2, "down"),
        ([], 2, None),
    ],
)
def test_a_side_wins_without_others_or_with_a_lead(sides, min_lead, expected):
    assert verdict(sides, min_lead) == expected


def test_the_majority_of_others_leaves_oneself_out():
    votes = {"anna": "down", "ben": "up", "carl": "up"}
    assert side_of_others(votes, "anna", 2) == "up"
    assert side_of_others(votes, "ben", 1) is None
    agreement = agreements({"one": votes, "two": {"anna": "up", "ben": "up", "carl": "up"}}, 2)["anna"]
    assert (agreement.overlaps, agreement.agreed, agreement.share) == (2, 1, 0.5)


def questions(count, votes):
    return {f"{count} {sorted(votes)} {number}": dict(votes) for number in range(count)}


def test_who_is_against_the_others_is_not_trusted():
    ballot = questions(5, {"anna": "up", "ben": "up", "troll": "down"})
    assert find_untrusted(ballot, 2, 5, 0.5) == {"troll"}
    assert find_untrusted(ballot, 2, 6, 0.5) == set()  # too little to judge by


def test_one_person_cannot_discredit_another():
    ballot = questions(50, {"anna": "up", "troll": "down"})
    assert find_untrusted(ballot, 2, 5, 0.5) == set()


def test_those_whom_trolls_vote_against_are_compared_again_without_them():
    """Anna's agreement is low while the trolls are counted, who are in the majority only where she is alone."""
    ballot = questions(6, {"anna": "up", "troll 1": "down", "troll 2": "down"})
    ballot |= questions(8, {"anna": "up", "ben": "up", "carl": "up", "dora": "up", "troll 1": "down"})
    ballot |= questions(8, {"eva": "up", "ben": "up", "carl": "up", "dora": "up", "troll 2": "down"})
    ballot |= questions(4, {"anna": "up", "ben": "up", "carl": "up"})
    assert agreements(ballot, 2)["anna"].share < 0.7
    assert find_untrusted(ballot, 2, 5, 0.7) == {"troll 1", "troll 2"}


def test_each_time_the_comparison_is_without_those_who_went_before():
    generator = random.Random(0)
    people = [f"person {number}" for number in range(12)]
    ballot = {
        question: {person: generator.choice(["up", "up", "down"]) for person in generator.sample(people, 5)}
        for question in range(60)
    }
    untrusted, rounds = set(), 0
    while True:
        left = {person: one for person, one in agreements(ballot, 2, untrusted).items() if person not in untrusted}
        least = min(one.share for one in left.values())
        if least >= 0.6:
            break
        untrusted |= {person for person, one in left.items() if one.share == least}
        rounds += 1
    assert rounds > 1
    assert find_untrusted(ballot, 2, 1, 0.6) == untrusted
