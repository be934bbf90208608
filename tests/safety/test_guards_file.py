"""The YAML of guards, and what the guards in it do to prompts and answers."""

import asyncio

import pytest

from hfchat.errors import UserError
from hfchat.safety import guards_file
from hfchat.safety.guards import Finding
from hfchat.safety.guards_file import load_guards


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "guards.yaml"
        path.write_text(text, encoding="utf-8")
        return load_guards(path)

    return load


@pytest.fixture
def judge(monkeypatch):
    """Takes the place of every classifier: flags what has `bad` in it."""

    async def judge(texts):
        return [["toxic"] if "bad" in text else [] for text in texts]

    monkeypatch.setattr(guards_file, "Classifier", lambda model, label, threshold: judge)


def answer(guards, *parts):
    """What comes out part by part, what the guard says that has blocked it, and the findings."""

    async def body():
        stream = guards.answer()
        outputs = []
        for part in parts:
            outputs.append(await stream.push(part))
            if stream.message is not None:
                break
        outputs.append(await stream.finish())
        return outputs, stream.message, stream.findings

    return asyncio.run(body())


def prompt(guards, *texts):
    return asyncio.run(guards.prompt(texts))


CLASSIFIER = "{type: classifier, model: m, label: toxic, action: block, message: No., applies_to: [answer]"


def test_the_default_redacts_answers_and_flags_prompts():
    guards = load_guards("default")
    outputs, message, findings = answer(guards, "Write to jane@gm", "ail.com, sh1t", "! Bye")
    assert "".join(outputs) == "Write to [email], ***! Bye"
    assert message is None
    assert [finding.categories for finding in findings] == [("obscene",), ("email",)]
    verdict = prompt(guards, "what is shit in French?", "my mail is jane@gmail.com")
    assert verdict.texts == ["what is shit in French?", "my mail is jane@gmail.com"]
    assert verdict.message is None
    assert verdict.findings == [Finding("lexicon", "prompt", "flag", ("obscene",))]


def test_a_replacement_of_ones_own(load):
    guards = load("- {type: lexicon, action: redact, replacement: '<{category}>'}")
    assert "".join(answer(guards, "shit and porn.")[0]) == "<obscene> and <sexual>."
    assert prompt(guards, "shit", "fine").texts == ["<obscene>", "fine"]


def test_a_block_says_its_message(load):
    guards = load("- {type: lexicon, action: block, message: No., name: words}")
    assert answer(guards, "One two. Oh sh", "it. More", "unseen") == (
        ["One two. Oh ", "", ""],
        "No.",
        [Finding("words", "answer", "block", ("obscene",))],
    )
    assert answer(guards, "shit. ")[:2] == (["", ""], "No.")
    verdict = prompt(guards, "fine", "shit")
    assert verdict.message == "No."
    assert verdict.findings == [Finding("words", "prompt", "block", ("obscene",))]


def test_what_must_stay_as_it_is_blocks_in_place_of_being_redacted(load):
    guards = load("- {type: lexicon, action: redact, name: words}")
    fine = asyncio.run(guards.prompt(["oh shit", "fine"], ["get_weather"]))
    assert (fine.texts, fine.message) == (["oh ***", "fine"], None)
    blocked = asyncio.run(guards.prompt(["fine"], ["get_weather", "shit"]))
    assert blocked.message == "I cannot help with that."
    assert blocked.findings == [Finding("words", "prompt", "block", ("obscene",))]
    assert asyncio.run(guards.calls(["shit"], [])).findings == [Finding("words", "answer", "redact", ("obscene",))]


def test_a_guard_looks_only_where_it_applies(load):
    guards = load("- {type: lexicon, action: block, applies_to: [prompt]}")
    assert answer(guards, "shit. ")[0] == ["shit. ", ""]
    assert not guards.remove_from_answers
    assert guards.check_prompts
    guards = load("- {type: lexicon, action: redact, applies_to: [answer]}")
    assert prompt(guards, "shit").texts == ["shit"]
    assert guards.remove_from_answers
    assert not guards.check_prompts


def test_guards_after_a_block_see_what_is_left(load, judge):
    guards = load(f"- {{type: lexicon, action: block, message: Words.}}\n- {CLASSIFIER}}}")
    assert answer(guards, "this is fine, ", "shit. ")[:2] == (["", "this is fine, ", ""], "Words.")
    assert answer(guards, "this is bad, ", "shit. ")[:2] == (["", "", ""], "No.")
    guards = load(f"- {CLASSIFIER}, release: sentence}}\n- {{type: lexicon, action: redact}}")
    assert answer(guards, "Oh shit. Then bad. ", "x", "y")[:2] == (["Oh ***. ", "", ""], "No.")


def test_a_classifier_holds_all_unless_it_may_go_by_sentences(load, judge):
    assert answer(load(f"- {CLASSIFIER}}}"), "Fine. ", "Good.")[0] == ["", "", "Fine. Good."]
    assert answer(load(f"- {CLASSIFIER}, release: sentence}}"), "Fine. ", "Good.")[0] == ["", "Fine. ", "Good."]
    outputs, _, findings = answer(load("- {type: classifier, model: m, label: toxic, action: flag}"), "so ", "bad")
    assert outputs == ["so ", "bad", ""]
    assert findings == [Finding("classifier", "answer", "flag", ("toxic",))]


def test_each_text_of_a_prompt_is_judged(load, judge):
    guards = load("- {type: classifier, model: m, label: toxic, action: block, message: No.}")
    assert prompt(guards, "bad", "fine").message == "No."
    assert prompt(guards, "fine").message is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("type: pii", "must be a YAML list of guards"),
        ("- [", "not a YAML file"),
        ("- pii", "guard 1: 'type' must be one of lexicon, pii, classifier, moderation, not None"),
        ("- {type: [pii]}", "guard 1: 'type' must be one of"),
        ("- {type: pii, action: flag}\n- {type: words, action: flag}", "guard 2: 'type' must .* not 'words'"),
        ("- {type: pii}", r"guard 1 \(pii\): needs 'action'"),
        ("- {type: pii, acton: redact}", r"guard 1 \(pii\): unknown key 'acton'; did you mean 'action'\?"),
        ("- {type: pii, action: redact, kinds: [mail]}", r"\(pii\): 'kinds\.0' must be 'email', .* not 'mail'"),
        ("- {type: pii, action: redact, regions: [UK]}", r"guard 1 \(pii\): regions: .*'UK' is not a region"),
        ("- {type: pii, action: redact, applies_to: []}", r"'applies_to'.* at least 1 item"),
        ("- {type: lexicon, action: redact, path: no/list.txt}", r"\(lexicon\): lexicon no/list\.txt: .*No such"),
        ("- {type: lexicon, action: redact, categories: [rude]}", r"categories: the lexicon has no section 'rude'"),
        ("- {type: lexicon, action: flag, message: No.}", "'message' is only for action: block"),
        ("- {type: lexicon, action: block, replacement: x}", "'replacement' is only for action: redact"),
        ("- {type: lexicon, action: flag, release: whole}", "'release' is only for answers that are changed"),
        ("- {type: lexicon, action: redact, release: sentence}", "'release' must be 'settled' or 'whole'"),
        ("- {type: classifier, action: redact, model: m, label: l}", "'action' must be 'block' or 'flag'"),
        ("- {type: classifier, action: block, model: m, label: l, threshold: 2}", "'threshold' must be less"),
        ("- {type: classifier, action: block, model: no/model, label: l}", "model: no/model cannot be loaded"),
        ("- {type: moderation, action: block, url: guard}", "'url'.* match"),
        ("- {type: moderation, action: flag, url: 'http://g', api_key_env: NO_KEY}", "api_key_env: .* has no NO_KEY"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line_that_names_the_key(load, text, problem):
    with pytest.raises(UserError, match=problem) as error:
        load(text)
    assert "\n" not in str(error.value)
    assert "guards.yaml: " in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"--guards none\.yaml: No such file"):
        load_guards("none.yaml")
