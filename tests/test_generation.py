import pytest

from hfchat.generation import generate_answers, set_greedy, stop_token_ids

PROMPTS = ["Hi", "How do I train a tokenizer?", "Why? " * 9]


@pytest.fixture
def prompts(tokenizer):
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPTS
    ]


def test_answers_do_not_depend_on_padding(model, tokenizer, prompts):
    set_greedy(model, tokenizer, max_new_tokens=8)
    assert generate_answers(model, prompts) == [generate_answers(model, [prompt])[0] for prompt in prompts]


def test_a_row_that_ends_at_once_leaves_the_others_as_they_are(model, tokenizer, prompts):
    set_greedy(model, tokenizer, max_new_tokens=8)
    before = generate_answers(model, prompts)
    model.generation_config.eos_token_id = [before[1][0]]
    alone = [generate_answers(model, [prompt])[0] for prompt in prompts]
    assert alone[1] == before[1][:1]
    assert max(map(len, alone)) > 1
    assert generate_answers(model, prompts) == alone


def test_an_answer_ends_with_its_end_of_turn(model, tokenizer, prompts):
    set_greedy(model, tokenizer, max_new_tokens=8)
    before = generate_answers(model, prompts)
    stop = before[0][3]
    model.generation_config.eos_token_id = [stop]
    after = generate_answers(model, prompts)
    assert after[0] == before[0][: before[0].index(stop) + 1]
    for answer in after:
        assert stop not in answer[:-1]


def test_the_models_own_generation_config_does_not_change_the_rules(model, tokenizer, prompts):
    set_greedy(model, tokenizer, max_new_tokens=8)
    greedy = generate_answers(model, prompts)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    set_greedy(model, tokenizer, max_new_tokens=8)
    assert generate_answers(model, prompts) == greedy


def test_stop_tokens_are_the_tokenizers_and_the_models(model, tokenizer):
    model.generation_config.eos_token_id = [5, 6]
    assert stop_token_ids(model.generation_config, tokenizer) == {5, 6, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None
    assert stop_token_ids(model.generation_config, tokenizer) == {tokenizer.eos_token_id}
