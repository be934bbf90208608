import pytest

from hfchat.errors import UserError
from hfchat.evaluation.encoding import encode_prompt, encode_target

QUESTION = [{"role": "user", "content": "Why?"}]


def test_an_answer_ends_with_the_end_of_the_turn_and_not_after_it(tokenizer):
    context, answer = encode_target(tokenizer, QUESTION, "Because.", "row 1")
    assert context == tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]) == "Because."


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer, monkeypatch):
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=r"row 1: the chat template of .* does not continue the prompt's tokens"):
        encode_target(tokenizer, QUESTION, "Because.", "row 1")


@pytest.mark.parametrize("prompt", ["The recipe reads", "The recipe reads ", "The recipe\n"])
def test_a_text_and_its_continuation_are_tokenized_together(tokenizer, prompt):
    context, target = encode_target(tokenizer, prompt, "files.", "row 1")
    assert context + target == tokenizer(prompt + "files.").input_ids
    assert tokenizer.decode(target).strip() == "files."
    assert context == tokenizer(prompt.rstrip()).input_ids  # white space goes with the word after it


def test_a_whole_document_follows_the_token_that_begins_one(tokenizer):
    context, target = encode_target(tokenizer, "", "The recipe.", "row 1")
    assert context == encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]
    assert target == tokenizer("The recipe.", add_special_tokens=False).input_ids


def test_pairs_are_encoded_as_in_lm_eval(chat_model, tokenizer):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    reference = HFLM(pretrained=AutoModelForCausalLM.from_pretrained(chat_model), tokenizer=tokenizer)
    for prompt, target in [("The recipe reads", " files."), ("The recipe ", "reads"), ("Number 7 is", " not")]:
        assert encode_target(tokenizer, prompt, target, "row 1") == reference._encode_pair(prompt, target)


def test_a_target_without_tokens_is_refused(tokenizer):
    with pytest.raises(UserError, match="row 9: its target adds no token"):
        encode_target(tokenizer, "The recipe", "", "row 9")


def test_a_document_that_spells_a_special_token_stays_text(tokenizer):
    text = "A turn ends with <|im_end|> and a text with <|endoftext|>."
    beginning, rest = encode_target(tokenizer, "", text, "text 1")
    assert not set(rest) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(rest) == text
    assert beginning == [tokenizer.bos_token_id]
