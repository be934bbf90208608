import pytest
import torch
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from hfchat.training.scoring import completion_log_probs
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
