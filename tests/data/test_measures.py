import re

import dill
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter

from hfchat.data.measures import C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from hfchat.data.removal import Removal
from tests.conftest import SHARED_DATA

WIKITEXT = SHARED_DATA / "pretrain" / "wikitext2-valid.txt"


def lines(pattern: str, count: int = 20) -> str:
    return "\n".join(pattern.format(i) for i in range(count))


PROSE = """\
In the morning the keeper of the lighthouse climbs narrow stairs with a can of oil, and wipes the salt off the glass.
Ships that have passed in the night are written down in a book, each with its port, its cargo and the hour.
Nobody has ever asked to see it, but she says that somebody will want to know when the last barque went north.
After breakfast there is bread to be made, a boat to be tarred, and a letter of her sister that waits for its turn.
Most days the wind decides what can be done; on the others it is the goat, who eats rope and is sorry for nothing.
When evening comes the lamp is lit again, and far out a small light seems to say that it has been noticed.
"""
# A document for each reason, the filter's own threshold, and the side of it on which the document is.
CASES = [
    (GopherQuality(), "The cat and the dog.", "gopher_short_doc", "min_doc_words", "below"),
    (GopherQuality(max_doc_words=100), PROSE, "gopher_long_doc", "max_doc_words", "above"),
    (GopherQuality(), "of a to be I it is " * 20, "gopher_below_avg_threshold", "min_avg_word_length", "below"),
    (
        GopherQuality(),
        "counterrevolutionaries internationalization the " * 40,
        "gopher_above_avg_threshold",
        "max_avg_word_length",
        "above",
    ),
    (
        GopherQuality(),
        "the dog and cat # have # been # seen " * 20,
        "gopher_too_many_hashes",
        "max_symbol_word_ratio",
        "above",
    ),
    (
        GopherQuality(),
        "the dog and cat ... have seen … with " * 20,
        "gopher_too_many_ellipsis",
        "max_symbol_word_ratio",
        "above",
    ),
    (
        GopherQuality(),
        lines("- the dog and the cat have been seen {}"),
        "gopher_too_many_bullets",
        "max_bullet_lines_ratio",
        "above",
    ),
    (
        GopherQuality(),
        lines("the dog and the cat have been seen with others in the forest near page {}..."),
        "gopher_too_many_end_ellipsis",
        "max_ellipsis_lines_ratio",
        "above",
    ),
    (
        GopherQuality(),
        "1234 5678 and the 91011 121314 cat " * 20,
        "gopher_below_alpha_threshold",
        "max_non_alpha_words_ratio",
        "below",
    ),
    (
        GopherQuality(),
        "purple monkeys dance wildly under silver moons " * 10,
        "gopher_enough_stop_words",
        "min_stop_words",
        "below",
    ),
    (GopherRepetition(), "The same.\n\n" * 5 + PROSE, "dup_para_frac", "dup_para_frac", "above"),
    (
        GopherRepetition(dup_para_frac=None),
        f"{PROSE}\n\n{PROSE}",
        "dup_para_char_frac",
        "dup_para_char_frac",
        "above",
    ),
    (GopherRepetition(), PROSE + "One line.\n" * 9, "dup_line_frac", "dup_line_frac", "above"),
    (
        GopherRepetition(dup_line_frac=None),
        f"{PROSE}{PROSE}",
        "dup_line_char_frac",
        "dup_line_char_frac",
        "above",
    ),
    (FineWebQuality(), lines("a line without an end {}"), "line_punct_ratio", "line_punct_thr", "below"),
    (FineWebQuality(), lines("Short line {}."), "short_line_ratio", "short_line_threshold", "above"),
    (FineWebQuality(), f"{PROSE}{PROSE}", "char_dup_ratio", "char_duplicates_ratio", "above"),
    (
        FineWebQuality(short_line_thr=1.0),
        "First.\n" + lines("{}.\n\n"),
        "list_ratio",
        "new_line_ratio",
        "above",
    ),
    (
        C4Quality(),
        "One sentence is here. And two.\nno end of it\nA third one.",
        "too_few_sentences",
        "min_num_sentences",
        "below",
    ),
]
BY_N_GRAMS = [
    *((f"top_{n}_gram", limit) for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16))),
    *(
        (f"duplicated_{n}_n_grams", limit)
        for n, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), strict=True)
    ),
]


def misses(value: float, threshold: float, side: str) -> bool:
    return value < threshold if side == "below" else value > threshold


@pytest.mark.parametrize(("step", "text", "reason", "threshold", "side"), CASES, ids=[case[2] for case in CASES])
def test_the_value_is_on_the_wrong_side_of_the_threshold(step, text, reason, threshold, side):
    step = dill.loads(dill.dumps(step))  # as workers get it
    document = Document(text, "1")
    assert step.filter(document) == (False, reason)
    assert type(Removal.of(document).score) is float
    assert misses(Removal.of(document).score, getattr(step, threshold), side)


@pytest.mark.parametrize(("step", "text", "reason", "threshold", "side"), CASES, ids=[case[2] for case in CASES])
def test_moving_the_threshold_to_the_value_lets_the_document_past_it(step, text, reason, threshold, side):
    step = dill.loads(dill.dumps(step))
    document = Document(text, "1")
    step.filter(document)
    setattr(step, threshold, Removal.of(document).score)
    assert step.filter(Document(text, "1")) != (False, reason)


@pytest.mark.parametrize(("step", "text", "reason", "threshold", "side"), CASES, ids=[case[2] for case in CASES])
def test_of_a_document_that_passes_the_value_is_on_the_right_side(step, text, reason, threshold, side):
    usual = type(step)()
    document = Document(PROSE, "1")
    assert usual.filter(document) is True
    assert Removal.of(document) is None
    assert not misses(usual.measure(reason, PROSE), getattr(usual, threshold), side)


@pytest.mark.parametrize(("reason", "limit"), BY_N_GRAMS)
def test_n_grams_are_measured_as_the_filter_measures_them(reason, limit):
    n = int(re.search(r"\d+", reason)[0])
    kind = "top_n_grams" if reason.startswith("top") else "dup_n_grams"
    only = {"top_n_grams": (), "dup_n_grams": ()} | {kind: ((n, limit),)}
    step = GopherRepetition(**only)
    # A top n-gram must be much of the text, a duplicate one only long.
    text = (
        "extraordinary circumstances everywhere notwithstanding " * 6
        if kind == "top_n_grams"
        else PROSE.replace("\n", " ") * 2
    )
    document = Document(text, "1")
    assert step.filter(document) == (False, reason)
    value = Removal.of(document).score
    assert value > limit
    assert GopherRepetition(**(only | {kind: ((n, value),)})).filter(Document(text, "1")) is True
    assert GopherRepetitionFilter(**(only | {kind: ((n, value - 1e-9),)})).filter(Document(text, "1")) == (
        False,
        reason,
    )


def test_counts_are_those_of_the_words():
    document = Document("The cat, and the dog!", "1")
    GopherQuality().filter(document)
    assert Removal.of(document).score == 5


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        (GopherRepetition(), "", "empty"),
        (FineWebQuality(), " \n ", "empty"),
        (C4Quality(), "lorem ipsum dolor sit amet.", "lorem_ipsum"),
        (C4Quality(), "function a b {}.", "curly_bracket"),
    ],
)
def test_a_reason_without_a_number_has_no_score(step, text, reason):
    document = Document(text, "1")
    assert step.filter(document) == (False, reason)
    assert Removal.of(document) is None


def test_measuring_leaves_document_and_statistics_alone():
    text = "One sentence is here.\nno end of it\n"
    plain, measured = C4Quality.__mro__[2](), C4Quality()
    document = Document(text, "1")
    measured.filter(document)
    plain.filter(Document(text, "1"))
    assert document.text == text
    assert {name: stat.total for name, stat in measured.stats.stats.items()} == {
        name: stat.total for name, stat in plain.stats.stats.items()
    }


@pytest.mark.skipif(not WIKITEXT.exists(), reason="needs WikiText-2 in shared/data")
@pytest.mark.parametrize("block", [GopherQuality, GopherRepetition, FineWebQuality, C4Quality])
def test_real_text_is_judged_as_datatrove_judges_it(block):
    text = WIKITEXT.read_text(encoding="utf-8")[:200_000]
    ours, theirs = block(), block.__mro__[2]()
    reasons = set()
    for passage in (text[i : i + 900] for i in range(0, len(text), 2000)):
        document, other = Document(passage, "1"), Document(passage, "1")
        result = ours.filter(document)
        assert result == theirs.filter(other)
        assert document.text == other.text
        if result is not True:
            reasons.add(result[1])
            assert Removal.of(document).score >= 0
    assert reasons
