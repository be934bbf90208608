import pytest
import torch
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import add_fused_lm_head

from hfchat.training.packing import IGNORE
from hfchat.training.scoring import completion_log_probs, score_completions_only
from tests.conftest import tiny_model


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_completions_are_scored_as_in_a_whole_forward_pass(tokenizer, architecture):
    model = tiny_model(tokenizer, architecture).eval()
    generator = torch.Generator().manual_seed(1)

    def ids(length):
        return torch.randint(4, 500, (length,), generator=generator).tolist()

    rows = [{"prompt_ids": ids(7), "completion_ids": ids(5), "label": True},
            {"prompt_ids": ids(3), "completion_ids": ids(2), "label": False}]  # fmt: skip
    batch = DataCollatorForUnpairedPreference(pad_token_id=tokenizer.pad_token_id)(rows)
    computed = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, logits: computed.append(logits.shape[1]))
    found = completion_log_probs(model, head, batch)
    hook.remove()
    assert computed == [5 + 2], "the logits of completions alone"
    assert found.shape == (2, 11)
    for row, values in zip(rows, found, strict=True):
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, :-1].log_softmax(-1)
        expected = [logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(completion)]
        scored = values[len(prompt) - 1 : len(prompt) - 1 + len(completion)]
        assert scored.tolist() == pytest.approx(expected, abs=1e-5)
        assert values.sum().item() == pytest.approx(sum(expected), abs=1e-4), "0 elsewhere"
    assert not head._forward_pre_hooks, "the model is as it was"


@pytest.mark.parametrize(("architecture", "shared"), [("llama", True), ("gpt2", False)])
def test_scoring_completions_only_gives_what_trl_does(tokenizer, architecture, shared):
    model = tiny_model(tokenizer, architecture).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(4, 500, (length,), generator=generator) for length in (7, 4))
    prompts = (first, second, first, second)
    rows = [torch.cat([prompt, torch.randint(4, 500, (length,), generator=generator)])
            for prompt, length in zip(prompts, (5, 3, 2, 9), strict=True)]  # fmt: skip
    inputs = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(rows, True, tokenizer.pad_token_id),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True),
    }
    labels = torch.full_like(inputs["input_ids"], IGNORE)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        labels[number, len(prompt) : len(row)] = row[len(prompt) :]
    weights = torch.rand((4, labels.shape[1] - 1), generator=generator)

    def outputs_and_gradient():
        model.zero_grad()
        outputs = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
        (outputs.log_probs * weights).sum().backward()
        return outputs, [parameter.grad.clone() for parameter in model.parameters()]

    expected, gradient = outputs_and_gradient()
    computed = []
    head = model.get_output_embeddings()
    model.get_input_embeddings().register_forward_hook(lambda _, args, output: computed.append(args[0].shape))
    head.register_forward_hook(lambda _, args, logits: computed.append(logits.shape[1]))
    score_completions_only(model, head, model.config)
    outputs, scored_gradient = outputs_and_gradient()
    for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
        torch.testing.assert_close(outputs[name], expected[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.label_mask, labels[:, 1:] != IGNORE)
    torch.testing.assert_close(scored_gradient, gradient, atol=1e-4, rtol=1e-4)
    width = max(7 + 5 + 2, 4 + 3 + 9) if shared else labels.shape[1]
    assert computed == [(2 if shared else 4, width), 5 + 3 + 2 + 9], "a prompt is computed once, and no other logits"
    whole = model(input_ids=inputs["input_ids"]).logits
    assert whole.shape == (*inputs["input_ids"].shape, model.config.vocab_size), "otherwise it does not change"
