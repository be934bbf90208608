import copy
import json

import pytest
from datasets import Dataset

from hfchat.chat_template import CHAT_TEMPLATE
from hfchat.errors import UserError
from hfchat.training.align_arguments import AlignArguments
from hfchat.training.preferences import (
    add_other_completions,
    check_thumbs,
    couple_thumbs,
    encode,
    load_preferences,
    tokenize_preferences,
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def pair(i, chosen="yes", rejected="no"):
    return {"prompt": [user(f"Question {i}?")], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


def thumb(i, label, text="The answer"):
    return {"messages": [user(f"Question {i}?"), assistant(f"{text} {i}.")], "label": label}


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def arguments(tmp_path, dataset, **settings):
    settings = {
        "output_dir": str(tmp_path / "out"),
        "dataset_name": dataset,
        "use_cpu": True,
        "bf16": False,
    } | settings
    return AlignArguments(**settings)


def write_pairs(folder, rows=6):
    return write(folder, train=[pair(i) for i in range(rows)], validation=[pair(i) for i in range(90, 93)])


def write_thumbs(folder, up=4, down=4):
    rows = [thumb(i, i < up) for i in range(up + down)]
    return write(folder, train=rows, validation=[thumb(90, True), thumb(91, False), thumb(92, True)])


def test_a_completion_is_the_text_and_exactly_one_end_of_turn(tokenizer):
    prompt, completion = encode([user("What comes next?")], [assistant("A file.")], tokenizer, "row 0")
    assert tokenizer.decode(prompt) == "<|im_start|>user\nWhat comes next?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(completion) == "A file.<|im_end|>"
    assert completion.count(tokenizer.eos_token_id) == 1


def test_text_that_spells_the_end_of_a_turn_is_scored_as_text(tokenizer):
    prompt, completion = encode([user("What is <|im_end|>?")], [assistant("<|im_end|> ends.")], tokenizer, "row 0")
    assert tokenizer.decode(completion) == "<|im_end|> ends.<|im_end|>"
    assert completion.count(tokenizer.eos_token_id) == 1 == prompt.count(tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("prompt", "completion", "problem"),
    [
        ([user("Hi")], [assistant(" ")], r"turn 1 \(assistant\) has no content"),
        ([user("Hi"), assistant("Hello")], [assistant("Hi")], "a prompt whose last turn is the user's"),
        ([], [assistant("Hi")], "a prompt whose last turn is the user's"),
        ([user("Hi")], [assistant("Hi"), user("And?"), assistant("Yes")], "one answer of the assistant"),
    ],
)
def test_what_is_no_prompt_with_one_answer_is_named(tokenizer, prompt, completion, problem):
    with pytest.raises(UserError, match=f"row 7.*{problem}"):
        encode(prompt, completion, tokenizer, "row 7")


def test_a_call_is_preferred_by_the_tools_and_results_that_stand_before_it(tokenizer):
    def called(arguments, **more):
        return {"role": "assistant", "content": None, "tool_calls": [{"name": "time", "arguments": arguments}], **more}

    prompt = [user("Time?"), called('{"zone": "X"}'), {"role": "tool", "content": "no such zone"}]
    chosen = called('{"zone": null}', reasoning_content="None, then.")
    tools = json.dumps([{"name": "time", "description": "Now"}])
    rows = Dataset.from_list([{"prompt": prompt, "chosen": [chosen], "rejected": [assistant("No.")], "tools": tools}])
    pairs, _ = tokenize_preferences(rows, tokenizer, 4096, "test")
    before, chosen, rejected = (tokenizer.decode(pairs[0][f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))
    assert '"description": "Now"' in before
    assert before.endswith("no such zone\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    call = '<tool_call>\n{"name": "time", "arguments": {"zone": null}}\n</tool_call>'
    assert chosen == f"<think>\nNone, then.\n</think>\n\n{call}<|im_end|>"
    assert rejected == "No.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            CHAT_TEMPLATE.replace("called + '<|im_end|>'", "called"),
            "has 0 end-of-turn tokens",
        ),
        (
            CHAT_TEMPLATE.replace("'<|im_start|>assistant\\n'", "'<|im_start|>bot\\n'"),
            "renders the prompt another way",
        ),
    ],
)
def test_a_template_that_would_score_other_tokens_is_refused(tokenizer, monkeypatch, template, problem):
    assert template != CHAT_TEMPLATE
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=problem):
        encode([user("Hi")], [assistant("Hello")], tokenizer, "row 0")


def test_a_pair_that_is_too_long_or_has_one_answer_twice_is_left_out_and_counted(tokenizer):
    rows = [pair(0), pair(1, rejected="no " * 40), pair(2, "same", "same"), pair(3)]
    kept, counts = tokenize_preferences(Dataset.from_list(rows), tokenizer, 32, "test")
    assert [tokenizer.decode(ids).split("Question ")[1][0] for ids in kept["prompt_ids"]] == ["0", "3"]
    assert (counts.kept, counts.too_long, counts.same) == (2, 1, 1)
    assert counts.longest > 32
    assert counts.scored_tokens == sum(map(len, kept["chosen_ids"])) + sum(map(len, kept["rejected_ids"]))
    assert "1 longer than max_length were left out, and 1 whose answers are the same" in str(counts)
    with pytest.raises(UserError, match="none of 4 pairs is left; 4 are longer than max_length 4, 1 have two answers"):
        tokenize_preferences(Dataset.from_list(rows), tokenizer, 4, "test")


def test_the_prompt_is_what_two_conversations_have_in_common(tokenizer):
    whole = {"chosen": [user("Hi"), assistant("Hello")], "rejected": [user("Hi"), assistant("Go away")]}
    expected, _ = tokenize_preferences(Dataset.from_list([pair(0) | {"prompt": [user("Hi")]} | {
        name: turns[1:] for name, turns in whole.items()}]), tokenizer, 64, "test")  # fmt: skip
    for row in (whole, whole | {"prompt": "Hi"}):  # the second as UltraFeedback has it
        found, _ = tokenize_preferences(Dataset.from_list([row]), tokenizer, 64, "test")
        assert found[0] == expected[0]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": [user("Hi")], "chosen": "yes", "rejected": "no"}, "'chosen' must be a list of messages"),
        ({"prompt": "Hi", "chosen": [assistant("a")], "rejected": [assistant("b")]}, "'prompt' must be a list of"),
        ({"chosen": [user("Hi"), assistant("a")], "rejected": [user("Ho"), assistant("b")]}, "answers to one prompt"),
    ],
)
def test_what_is_no_pair_is_named(tokenizer, row, problem):
    with pytest.raises(UserError, match=f"test: row 0: .*{problem}.*prepare_conversations.py"):
        tokenize_preferences(Dataset.from_list([row]), tokenizer, 64, "test")


def test_thumbs_come_as_messages_or_as_prompt_and_completion(tokenizer):
    rows = [thumb(1, True), thumb(2, False)]
    parts = [{"prompt": row["messages"][:1], "completion": row["messages"][1:], "label": row["label"]} for row in rows]
    first, _ = tokenize_preferences(Dataset.from_list(rows), tokenizer, 64, "test")
    second, _ = tokenize_preferences(Dataset.from_list(parts), tokenizer, 64, "test")
    assert first[:] == second[:]
    assert first["label"][:] == [True, False]
    with pytest.raises(UserError, match=r"row 0: label must be true \(a thumb up\) or false, not 1"):
        tokenize_preferences(Dataset.from_list([thumb(1, 1)]), tokenizer, 64, "test")


def test_held_out_thumbs_are_set_against_each_other():
    thumbs = Dataset.from_list([{"prompt_ids": [i], "completion_ids": [i], "label": i in (3, 4)} for i in range(7)])
    coupled = couple_thumbs(thumbs, seed=0)
    assert coupled["label"][:] == [True, False, True, False]
    assert len(set(map(tuple, coupled["prompt_ids"]))) == 4


def test_kto_estimates_its_reference_point_from_the_answers_to_other_prompts():
    thumbs = Dataset.from_list(
        [{"prompt_ids": [i] * 3, "completion_ids": [10 + i] * 4, "label": True} for i in range(3)]
    )
    others = add_other_completions(thumbs, max_length=5)["KL_completion_ids"][:]
    assert others == [[12, 12], [10, 10], [11, 11]], "that of the row before, no longer than max_length allows"


def test_dpo_gets_pairs_and_kto_takes_them_apart(tokenizer, tmp_path):
    dataset = write_pairs(tmp_path / "pairs")
    dpo = load_preferences(arguments(tmp_path, dataset), tokenizer)
    assert dpo.train.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert dpo.held_out["label"][:] == [True, False] * 3
    kto = load_preferences(arguments(tmp_path, dataset, method="kto", min_thumbs=6), tokenizer)
    assert kto.thumbs == (6, 6)
    assert kto.held_out[:] == dpo.held_out[:], "the same pairs are held out"
    both = {(tuple(p), tuple(c)) for p, c in zip(dpo.train["prompt_ids"], dpo.train["chosen_ids"], strict=True)}
    thumbs = zip(kto.train["prompt_ids"], kto.train["completion_ids"], kto.train["label"], strict=True)
    assert {(tuple(p), tuple(c)) for p, c, label in thumbs if label} == both
    assert kto.train["label"][:] != [True, False] * 6, "shuffled, as KTO's batches are taken in order"


def test_what_is_learned_from_is_shown(tokenizer, tmp_path):
    shown = load_preferences(arguments(tmp_path, write_pairs(tmp_path / "pairs")), tokenizer).describe(tokenizer)
    assert "to learn from: 6 pairs" in shown
    assert "held out: 3 pairs" in shown
    assert "Question 0?<|im_end|>\n<|im_start|>assistant\n\nchosen: ⟦yes<|im_end|>⟧\nrejected: ⟦no<|im_end|>⟧" in shown
    assert shown.count("chosen: ⟦") == 2
    args = arguments(tmp_path, write_thumbs(tmp_path / "thumbs"), method="kto", min_thumbs=4)
    shown = load_preferences(args, tokenizer).describe(tokenizer)
    assert "8 thumbs" in shown
    assert shown.count("thumb up: ⟦") == shown.count("thumb down: ⟦") == 1


def test_thumbs_are_refused_for_dpo(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"has thumbs, and DPO learns from pairs .*; pass --method kto"):
        load_preferences(arguments(tmp_path, write_thumbs(tmp_path / "thumbs")), tokenizer)


def test_too_few_thumbs_of_a_sign_are_refused(tokenizer, tmp_path):
    args = arguments(tmp_path, write_thumbs(tmp_path / "thumbs", up=2, down=9), method="kto", min_thumbs=3)
    with pytest.raises(UserError, match=r"only 2 thumbs up of 11; .* at least 3 of each, or lower min_thumbs"):
        load_preferences(args, tokenizer)
    check_thumbs(3, 3, 3, "test")
    with pytest.raises(UserError, match="only 2 thumbs down of 5"):
        check_thumbs(3, 2, 3, "test")


def test_what_is_held_out_must_be_there_and_apart(tokenizer, tmp_path):
    rows = [pair(i) for i in range(4)]
    dataset = write(tmp_path / "all", train=rows)
    with pytest.raises(UserError, match="has no split 'validation' to measure on"):
        load_preferences(arguments(tmp_path, dataset), tokenizer)
    with pytest.raises(UserError, match="has no split 'validation' to measure on"):
        load_preferences(arguments(tmp_path, f"{dataset}/train.jsonl"), tokenizer)
    dataset = write(tmp_path / "leaky", train=rows, validation=[pair(9), rows[2]])
    with pytest.raises(UserError, match="split 'validation': 1 of its 2 answers are in the train split too, row 1"):
        load_preferences(arguments(tmp_path, dataset), tokenizer)


def test_a_pad_token_that_ends_a_turn_is_refused(tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match="the pad token is the end-of-turn token"):
        load_preferences(arguments(tmp_path, write_pairs(tmp_path / "pairs")), tokenizer)


def test_columns_that_say_nothing_of_preferences_are_named(tokenizer, tmp_path):
    dataset = write(tmp_path / "chats", **{name: [{"messages": [user("a")]}] for name in ("train", "validation")})
    with pytest.raises(UserError, match="has no column 'chosen', only"):
        load_preferences(arguments(tmp_path, dataset), tokenizer)
