import dill
import pytest
from datatrove.data import Document

from hfchat.data.chain import Step
from hfchat.data.pii import ReplacePII

TEXTS = [
    "Write to jane.doe@acme-tools.com or john@acme-tools.com.",
    "The server at 93.184.215.14 is down; call 0161 234 5000.",
    "In 1998 about 1,450 people lived there.",
]


def run(step, texts=TEXTS):
    return [document.text for document in step.run(Document(text, str(i)) for i, text in enumerate(texts))]


def test_documents_are_replaced_and_counted():
    step = ReplacePII()
    assert run(step) == [
        "Write to email@example.com or email@example.com.",
        "The server at 192.0.2.1 is down; call (555) 555-0100.",
        TEXTS[2],
    ]
    counts = {name: stat.total for name, stat in step.stats.stats.items()}
    assert counts["total"] == 3
    assert {name: count for name, count in counts.items() if name.startswith("pii_")} == {
        "pii_email": 2, "pii_ip": 1, "pii_phone": 1,
    }  # fmt: skip


def test_only_the_kinds_and_regions_of_the_yaml_are_replaced():
    step = Step.parse({"pii": {"kinds": ["email", "phone"], "phone_regions": ["US"]}}).build(None)
    assert run(step)[1:] == TEXTS[1:]  # the number is British
    assert run(step)[0] != TEXTS[0]


def test_a_second_run_changes_nothing():
    once = run(ReplacePII())
    step = ReplacePII()
    assert run(step, once) == once
    assert not [name for name in step.stats.stats if name.startswith("pii_")]


def test_a_pickled_step_does_the_same_before_and_after_use():
    step = dill.loads(dill.dumps(ReplacePII()))
    expected = run(ReplacePII())
    assert run(step) == expected
    assert run(dill.loads(dill.dumps(step))) == expected


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"kinds": ["mail"]}, "there is no kind 'mail'; there are email, ip, phone, card"),
        ({"phone_regions": ["UK"]}, "'UK' is not a region"),
    ],
)
def test_a_bad_setting_is_refused_before_any_document(parameters, problem):
    with pytest.raises(ValueError, match=problem):
        Step.parse({"pii": parameters})
