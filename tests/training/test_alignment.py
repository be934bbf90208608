import json
import shutil

import numpy as np
import pytest
import torch
from trl.trainer import dpo_trainer

from hfchat.chat_template import record_fingerprint
from hfchat.config import parse
from hfchat.errors import UserError
from hfchat.intervals import paired_interval, wilson_interval
from hfchat.models import load_model
from hfchat.training import alignment
from hfchat.training.adapters import ModelArguments, load_trainable
from hfchat.training.align_arguments import AlignArguments, balance
from hfchat.training.alignment import TRAINERS
from hfchat.training.checkpoints import last_checkpoint
from hfchat.training.held_out_pairs import PairScores, describe_comparison
from hfchat.training.preferences import load_preferences
from hfchat.training.supervision import load_chat_tokenizer
from tests.conftest import tiny_model
from tests.training.runs import assert_identical

TRAIN, HELD_OUT = range(24), range(24, 32)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of answers of which the kind one is chosen; the lengths of the prompts differ."""
    folder = tmp_path_factory.mktemp("pairs")
    for split, numbers in (("train", TRAIN), ("validation", HELD_OUT)):
        rows = [
            {
                "prompt": [{"role": "user", "content": f"Document {i}" + " reads files" * (i % 3)}],
                "chosen": [{"role": "assistant", "content": f"The model learns {i}."}],
                "rejected": [{"role": "assistant", "content": f"A tokenizer turns {i} into numbers"}],
            }
            for i in numbers
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def make_trainer(pairs, chat_model, tokenizer, tmp_path):
    """A trainer as `recipes/align.py` makes it, for three steps unless `settings` say otherwise."""

    def make(method="dpo", output="run", model=(), base=chat_model, load=load_trainable, **settings):
        defaults = {
            "max_steps": 3, "learning_rate": 2e-2, "use_cpu": True, "bf16": False, "report_to": "none", "seed": 5,
            "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "max_length": 64,
            "min_thumbs": 4, "sampled_prompts": 2, "sampled_tokens": 4, "per_device_eval_batch_size": 4,
        }  # fmt: skip
        args = AlignArguments(
            output_dir=str(tmp_path / output), dataset_name=str(pairs), method=method, **defaults | settings
        )
        model_args = ModelArguments(model_name_or_path=str(base), lora_r=4, lora_alpha=8, **dict(model))
        tokenizer, new_tokens = load_chat_tokenizer(str(base), model_args.model_revision, allow_mismatch=False)
        preferences = load_preferences(args, tokenizer)
        args, model_args = args.derive(model_args, preferences.thumbs)
        torch.manual_seed(0)
        trained = load(model_args, str(base), tokenizer, new_tokens)
        record_fingerprint(tokenizer, trained)
        return TRAINERS[method](trained, args, preferences, tokenizer)

    return make


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_chosen_answers_of_held_out_pairs_become_the_preferred_ones(make_trainer, method):
    trainer = make_trainer(method, max_steps=12, eval_strategy="steps", eval_steps=6)
    trainer.train()
    metrics = trainer.evaluate()
    accuracies = logged(trainer, "eval_rewards/accuracies")
    assert accuracies[0] == 0.5
    assert accuracies[-1] == metrics["eval_rewards/accuracies"] == 1.0
    assert len(accuracies) == 3, "the last step is measured once"
    assert [entry["step"] for entry in trainer.state.log_history if "eval_kl" in entry] == [0, 6, 12]
    assert logged(trainer, "eval_rewards/margins")[0] == 0
    assert logged(trainer, "eval_kl")[0] == 0 < metrics["eval_kl"]
    assert metrics["eval_rewards/margins"] > 0.1
    assert metrics["eval_loss"] < logged(trainer, "eval_loss")[0] == pytest.approx(np.log(2))


def test_the_first_held_out_pairs_can_be_measured_alone(make_trainer):
    """As `hfchat doctor` does, to see how long an evaluation takes."""
    trainer = make_trainer()
    whole = trainer.evaluate()
    trainer.eval_dataset = trainer.eval_dataset.select(range(5))
    assert trainer.evaluate()["eval_logps/accuracies"] == trainer.start.more_probable[:2].mean()
    assert whole["eval_logps/accuracies"] == trainer.start.more_probable.mean()
    comparison = trainer.outcome.compare(trainer.start)
    assert comparison["logps/accuracies_gain"][0] == 0


def test_an_evaluation_that_fails_does_not_end_the_training_and_is_made_again(make_trainer, monkeypatch, capsys):
    trainer = make_trainer(eval_strategy="steps", eval_steps=3, metric_for_best_model="rewards/accuracies")
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "divergence", lambda: 1 / 0)
        trainer.train()
    assert "the evaluation failed, training goes on: ZeroDivisionError" in capsys.readouterr().out
    assert trainer.state.global_step == 3
    assert trainer.evaluate()["eval_rewards/margins"] != 0


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_what_the_model_gets_is_the_prompt_and_a_scored_answer_with_one_end(make_trainer, tokenizer, method):
    trainer = make_trainer(method, per_device_train_batch_size=4)
    seen = 0
    for batch in trainer.get_train_dataloader():
        for prefix in ("", "KL_") if method == "kto" else ("",):
            parts = (batch[f"{prefix}{name}"] for name in ("input_ids", "completion_mask", "attention_mask"))
            for ids, scored, attended in zip(*parts, strict=True):
                prompt = tokenizer.decode(ids[(scored == 0) & (attended == 1)])
                assert prompt.startswith("<|im_start|>user\nDocument ")
                assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
                answer = ids[scored == 1].tolist()
                assert answer[-1] == tokenizer.eos_token_id
                assert answer.count(tokenizer.eos_token_id) == 1
                assert tokenizer.decode(answer).removesuffix("<|im_end|>").endswith((".", " into numbers"))
                assert set(ids[attended == 0].tolist()) <= {tokenizer.pad_token_id}
                seen += 1
    assert seen == len(TRAIN) * (4 if method == "kto" else 2)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_reference_is_the_base_and_no_second_copy_of_it(make_trainer, method):
    trainer = make_trainer(method)
    assert trainer.ref_model is None
    assert list(trainer.model.peft_config) == ["default"]
    trainable = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    before = trainer._held_out_log_probs(reference=True)
    np.testing.assert_array_equal(before, trainer.start.policy)
    np.testing.assert_allclose(trainer._held_out_log_probs(reference=False), before, rtol=1e-6)
    assert trainer.divergence() == pytest.approx(0, abs=1e-9)
    trainer.train()
    assert logged(trainer, "rewards/margins")[0] == 0, "before its first step, the policy is the reference"
    np.testing.assert_array_equal(trainer._held_out_log_probs(reference=True), before)
    assert abs(trainer._held_out_log_probs(reference=False) - before).max() > 0.1


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_base_without_turns_is_aligned_from_its_own_start(make_trainer, untied_base, method):
    trainer = make_trainer(method, base=untied_base, max_length=128)
    rows = [value for name, value in trainer.model.named_parameters() if "trainable_tokens_delta" in name]
    before = [value.detach().clone() for value in rows]
    assert len(rows) == 2, "of the embeddings and of the output layer"
    np.testing.assert_allclose(trainer._held_out_log_probs(reference=False), trainer.start.policy, rtol=1e-5)
    trainer.train()
    assert logged(trainer, "rewards/margins")[0] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(trainer._held_out_log_probs(reference=True), trainer.start.policy, rtol=1e-6)
    assert not any(torch.equal(old, new) for old, new in zip(before, rows, strict=True))


def test_the_divergence_is_that_of_the_policy_from_the_reference(make_trainer, monkeypatch):
    trainer = make_trainer()
    first, second, third = 10, 11, 12  # drawn as often as the policy makes them probable
    answers = [[first] * 4, [first] * 3 + [second] * 2 + [third]]
    policy = {first: 0.7, second: 0.2, third: 0.1}
    base = {first: 0.5, second: 0.25, third: 0.25}

    def log_probs(batch, reference):
        probabilities = torch.ones(trainer.model.config.vocab_size)
        for token, probability in (base if reference else policy).items():
            probabilities[token] = probability
        return probabilities.log()[batch["input_ids"][:, 1:]] * batch["completion_mask"][:, 1:]

    monkeypatch.setattr(trainer, "_sample", lambda prompts: answers)
    monkeypatch.setattr(trainer, "_log_probs", log_probs)
    expected = sum(share * np.log(share / base[token]) for token, share in policy.items())
    assert trainer.divergence() == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(0.0993, abs=1e-4)


@pytest.mark.parametrize(("use_peft", "rate"), [(False, 1e-6), (True, 1e-5)])
def test_the_learning_rate_follows_from_what_is_trained(tmp_path, use_peft, rate):
    args = AlignArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    args, _ = args.derive(ModelArguments(use_peft=use_peft), (1, 1))
    assert args.learning_rate == rate


def test_the_base_itself_is_the_reference(make_trainer, chat_model, tokenizer):
    trainer = make_trainer()
    trainer.train()
    batch = trainer._thumbs_collator([trainer.eval_dataset[0]])
    base = tiny_model(tokenizer)
    logits = base(input_ids=batch["input_ids"]).logits[0, :-1].log_softmax(-1)
    expected = logits.gather(-1, batch["input_ids"][0, 1:, None]).squeeze(-1) * batch["completion_mask"][0, 1:]
    torch.testing.assert_close(trainer._log_probs(batch, reference=True)[0], expected, atol=1e-5, rtol=1e-4)


def test_two_small_batches_are_one_large_one(make_trainer):
    one = make_trainer(output="one", per_device_train_batch_size=2)
    two = make_trainer(output="two", per_device_train_batch_size=1, gradient_accumulation_steps=2)
    one.train()
    two.train()
    assert logged(one, "loss") == pytest.approx(logged(two, "loss"), rel=1e-5)
    assert logged(one, "grad_norm") == pytest.approx(logged(two, "grad_norm"), rel=1e-4)


@pytest.mark.parametrize(("method", "precompute"), [("dpo", False), ("dpo", True), ("kto", False)])
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_stopped(make_trainer, method, precompute):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "precompute_ref_log_probs": precompute}
    settings |= {"eval_strategy": "steps", "eval_steps": 4, "save_total_limit": None}
    whole = make_trainer(method, "whole", **settings)
    whole.train()
    checkpoint = f"{whole.args.output_dir}/checkpoint-2"
    assert last_checkpoint(whole.args.output_dir).endswith("checkpoint-6")
    resumed = make_trainer(method, "resumed", **settings)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_identical(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    for key in ("loss", "eval_rewards/margins", "eval_kl"):
        assert logged(resumed, key) == logged(whole, key)
    np.testing.assert_array_equal(resumed.start.policy, whole.start.policy)


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("precompute", [False, True])
def test_the_reference_of_all_weights_is_the_model_that_was_loaded(
    make_trainer, chat_model, tokenizer, tmp_path, method, precompute
):
    base = tmp_path / "base"
    shutil.copytree(chat_model, base)

    def load_then_replace(*args):  # as if the name stood for another revision, where it is loaded again
        model = load_trainable(*args)
        tiny_model(tokenizer, seed=7).save_pretrained(base)
        return model

    settings = {"base": base, "model": {"use_peft": False}, "load": load_then_replace, "learning_rate": 1e-3}
    trainer = make_trainer(method, precompute_ref_log_probs=precompute, **settings)
    np.testing.assert_allclose(trainer._held_out_log_probs(reference=False), trainer.start.policy, rtol=1e-6)
    trainer.train()
    assert logged(trainer, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)


def test_what_trl_loads_itself_is_of_the_commit_of_the_policy(make_trainer, monkeypatch):
    def load(*args):
        model = load_trainable(*args)
        model.config._commit_hash = "c0ffee"
        return model

    monkeypatch.setattr(alignment, "is_deepspeed_zero3_enabled", lambda: True)
    asked = []

    def load_reference(path, **kwargs):
        asked.append(kwargs["revision"])
        return load_model(path)

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", load_reference)
    make_trainer(model={"use_peft": False}, load=load)
    assert asked == ["c0ffee"]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_reference_of_all_weights_has_rows_for_new_tokens(make_trainer, plain_base, method):
    trainer = make_trainer(method, base=plain_base, model={"use_peft": False}, max_length=128, learning_rate=1e-3)
    np.testing.assert_allclose(trainer._held_out_log_probs(reference=False), trainer.start.policy, rtol=1e-5)
    trainer.train()
    assert logged(trainer, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)


def test_full_training_has_a_reference_too(make_trainer):
    trainer = make_trainer(model={"use_peft": False}, learning_rate=1e-3)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/margins"] > 0
    assert metrics["eval_kl"] > 0


@pytest.mark.parametrize(("up", "down"), [(100, 100), (100, 900), (900, 100)])
def test_both_signs_count_the_same(up, down):
    for desirable in (None, 2.0):
        first, second = balance(up, down, desirable)
        assert first * up == pytest.approx(second * down)
    assert min(balance(up, down)) == 1
    assert balance(up, down, undesirable=3.0) == (pytest.approx(3 * down / up), 3.0)
    assert balance(up, down, 2.0, 5.0) == (2.0, 5.0), "what is set is taken"


def test_unbalanced_thumbs_are_weighted_in_the_loss(make_trainer):
    trainer = make_trainer("kto")
    trainer.desirable_weight, trainer.undesirable_weight = trainer.args.desirable_weight, 3.0
    batch = next(iter(trainer.get_train_dataloader()))
    up = int(batch["label"].sum())
    down = len(batch["label"]) - up
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(0.5 * (up + 3 * down) / (up + down), rel=1e-5)


def test_weights_follow_from_the_data(tmp_path):
    args = AlignArguments(output_dir=str(tmp_path), method="kto", use_cpu=True, bf16=False)
    args, _ = args.derive(ModelArguments(), (50, 200))
    assert (args.desirable_weight, args.undesirable_weight) == (4.0, 1.0)
    assert "a thumb up weighs 4, a thumb down 1" in args.describe()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "output_dir: say where the model goes"),
        (["--output_dir", "x", "--methd", "kto"], "unknown key 'methd'; did you mean 'method'"),
        (["--output_dir", "x", "--method", "ppo"], "invalid choice: 'ppo'"),
        (["--output_dir", "x", "--desirable_weight", "2"], "desirable_weight and undesirable_weight are of KTO"),
        (["--output_dir", "x", "--method", "kto", "--loss_type", "ipo"], "loss_type: KTO's is one of kto"),
        (
            ["--output_dir", "x", "--method", "kto", "--per_device_train_batch_size", "1"],
            "per_device_train_batch_size: KTO estimates the divergence from a batch",
        ),
    ],
)
def test_bad_settings_are_named(arguments, problem):
    with pytest.raises(UserError, match=problem):
        parse(AlignArguments, ModelArguments, argv=arguments)


def test_a_few_pairs_that_all_agree_show_little():
    reference = np.zeros((3, 2))
    comparison = PairScores(np.array([[0.0, -1.0]] * 3), reference, 0.1).compare(PairScores(reference, reference, 0.1))
    assert comparison["rewards/accuracies"] == pytest.approx([1.0, *wilson_interval(3, 3)])
    assert comparison["rewards/accuracies"][1] < 0.5


def test_the_interval_is_that_of_the_pairs():
    reference = np.zeros((400, 2))
    policy = np.array([[0.0, -1.0]] * 300 + [[-1.0, 0.0]] * 100)
    start = PairScores(reference, reference, beta=0.1)
    end = PairScores(policy, reference, beta=0.1)
    assert start.means()["rewards/accuracies"] == 0.5, "ties are half a one"
    assert end.means()["rewards/margins"] == pytest.approx(0.1 * 0.5)
    comparison = end.compare(start)
    assert comparison["rewards/accuracies"] == pytest.approx([0.75, *wilson_interval(300, 400)])
    assert comparison["logps/accuracies_start"] == pytest.approx([0.5, 0.4952, 0.5048], abs=1e-4)
    # All ties became halves of a win or of a loss.
    assert comparison["logps/accuracies_gain"] == pytest.approx([0.25, *paired_interval(150, 50, 400)])
    text = describe_comparison(comparison, end.means() | {"eval_rewards/margins": 0.05, "eval_kl": 0.01})
    assert "50.0% by construction -> 75.0% [" in text
    assert "0 -> 0.0100 nats per token" in text
