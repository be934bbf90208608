import re

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hfchat.errors import UserError
from hfchat.evaluation.encoding import encode_prompt, encode_target, what_is_lost
from tests.conftest import TEXTS

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


def test_a_prompt_that_quotes_a_special_token_stays_text(tokenizer):
    text = f"The token {tokenizer.eos_token} ends"
    context, target = encode_target(tokenizer, text, " a turn.", "row 1")
    assert tokenizer.eos_token_id not in {*context, *target, *encode_prompt(tokenizer, text)}
    assert tokenizer.decode(context + target).endswith(f"{text} a turn.")


def _of(model, normalizer=None, **special):
    """A tokenizer of the library `tokenizers`, trained on the texts of the tests."""
    pretrained = Tokenizer(model)
    pretrained.pre_tokenizer, pretrained.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], unk_token="<unk>")
    if isinstance(model, models.BPE):
        pretrained.pre_tokenizer, pretrained.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    if normalizer is not None:
        pretrained.normalizer = normalizer
    pretrained.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pretrained, **special)


UNIGRAM = {"unk_token": "<unk>", "bos_token": "<s>"}
GPT2 = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|end|>")


@pytest.mark.parametrize(
    ("tokenizer_of", "text", "lost"),
    [
        (lambda: _of(models.Unigram(), **UNIGRAM), "Document 1: the recipe reads files. ", None),
        (lambda: _of(models.Unigram(), **UNIGRAM), "Document 1: 汉字", r"1 tokens of \d+ are <unk>"),
        (lambda: _of(models.Unigram(), **UNIGRAM), "the café is", "are <unk>"),
        (
            lambda: _of(models.Unigram(), normalizers.Lowercase(), **UNIGRAM),
            "the Recipe",
            "'the recipe' where .*'the Re",
        ),
        (
            lambda: _of(models.BPE(), normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), **GPT2),
            "the ré",
            "'the re' where it says 'the r",
        ),
        (lambda: _of(models.BPE(), **GPT2), "汉字 é 😀\n\tThe END  of it", None),
        (lambda: _of(models.BPE(), **GPT2), "a text that ends with <|end|> and goes on", None),
        (lambda: _of(models.BPE(), normalizers.NFC(), **GPT2), "cafe\u0301 Tiê\u0301ng", None),
        (lambda: _of(models.BPE(), normalizers.NFKC(), **GPT2), "x² ﬁ", "is read as 'x2 fi' where it says 'x² ﬁ'"),
    ],
)
def test_what_a_tokenizer_loses_of_a_text_is_said(tokenizer_of, text, lost):
    found = what_is_lost(tokenizer_of(), text)
    assert found is None if lost is None else re.search(lost, found)


def test_the_projects_tokenizer_loses_nothing(tokenizer):
    for text in (*TEXTS[:3], "汉字 é 😀 ที่\n\tThe <|im_end|> END  of it"):
        assert what_is_lost(tokenizer, text) is None
