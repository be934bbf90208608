import pytest

from hfchat import chat_template
from hfchat.errors import UserError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye."},
    {"role": "assistant", "content": "Goodbye."},
]


def test_supervised_is_what_the_assistant_says_and_its_end_of_turn(tokenizer):
    encoded = tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    supervised = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(supervised) == "Hi.<|im_end|>Goodbye.<|im_end|>"


def test_the_prompt_is_a_prefix_of_the_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(MESSAGES[:3], tokenize=False)
    assert whole == prompt + "Hi.<|im_end|>\n"


def test_padding_is_not_the_end_of_a_turn(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token == chat_template.TURN_END


def test_the_fingerprint_survives_saving_and_a_changed_template_is_refused(tokenizer, chat_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(chat_model)
    reloaded = AutoTokenizer.from_pretrained(chat_model)
    chat_template.check_chat_template(reloaded, model)
    reloaded.chat_template = reloaded.chat_template.replace("'\\n'", "' '", 1)
    with pytest.raises(UserError, match="differ from those of the training"):
        chat_template.check_chat_template(reloaded, model)
    chat_template.check_chat_template(reloaded, model, allow_mismatch=True)
    reloaded.init_kwargs.pop("chat_template_fingerprint")
    with pytest.raises(UserError, match=r"config\.json says"):
        chat_template.check_chat_template(reloaded, model)


def test_another_end_of_turn_token_is_another_fingerprint(tokenizer):
    before = chat_template.fingerprint(tokenizer)
    eos = tokenizer.eos_token
    try:
        tokenizer.eos_token = chat_template.END_OF_TEXT
        assert chat_template.fingerprint(tokenizer) != before
    finally:
        tokenizer.eos_token = eos


def test_a_base_model_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        with pytest.raises(UserError, match="no chat template"):
            chat_template.check_chat_template(tokenizer)
    finally:
        tokenizer.chat_template = template


def test_a_vocabulary_without_turn_tokens_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(UserError, match=r"no <\|im_start\|> and no <\|im_end\|>"):
        chat_template.set_chat_template(plain)
