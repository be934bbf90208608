import math

import pytest
from transformers import AutoModelForCausalLM, SchedulerType

from hfchat.errors import UserError
from hfchat.training.dial import TOKENS_PER_PARAMETER, Schedule, Shape
from hfchat.training.pretrain_arguments import PretrainArguments
from tests.conftest import tiny_model


@pytest.mark.parametrize(
    ("depth", "hidden_size", "heads", "intermediate_size"),
    [(1, 64, 1, 192), (4, 256, 4, 704), (12, 768, 12, 2048), (20, 1280, 20, 3456)],
)
def test_a_depth_has_one_shape(depth, hidden_size, heads, intermediate_size):
    assert Shape.from_depth(depth) == Shape(depth, hidden_size, heads, intermediate_size)


def test_no_depth_is_no_model():
    with pytest.raises(UserError, match="depth must be at least 1, not 0"):
        Shape.from_depth(0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_shape_is_that_of_the_model(tokenizer, architecture, tied):
    config = Shape.from_depth(3).model_config(
        architecture, tokenizer, block_size=96, tie_word_embeddings=tied, dropout=0.1
    )
    assert config.model_type == architecture
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 192, 3)
    assert config.max_position_embeddings == 96
    assert config.tie_word_embeddings == tied
    assert config.vocab_size % 64 == 0
    assert len(tokenizer) <= config.vocab_size < len(tokenizer) + 64
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    dropouts = ["attention_dropout"] if architecture == "llama" else ["resid_pdrop", "embd_pdrop", "attn_pdrop"]
    assert [getattr(config, name) for name in dropouts] == [0.1] * len(dropouts)
    assert AutoModelForCausalLM.from_config(config).num_parameters() > 0


@pytest.mark.parametrize(
    ("tokens", "batch"), [(400_000, 2048), (4_000_000, 4096), (40_000_000, 2**14), (2_488_796_160, 2**16)]
)
def test_batches_grow_as_a_power_of_the_tokens(tokens, batch):
    """2,048 x (tokens / 400,000)^0.383, rounded to a power of two: 2,048, 4,947, 11,948 and 58,205."""
    assert Schedule(256, tokens).batch_tokens == batch


@pytest.mark.parametrize(
    ("width", "share_of_batch", "muon", "adamw", "embeddings"),
    [
        (256, 1, 0.01, 0.003, 0.03),
        (512, 1, 0.005, 0.0015, 0.03 / 2**0.5),
        (1024, 1, 0.0025, 0.00075, 0.015),
        (1024, 0.25, 0.00125, 0.000375, 0.0075),  # half, which is the root of a quarter
    ],
)
def test_rates_fall_with_the_width_and_with_the_root_of_the_batch(width, share_of_batch, muon, adamw, embeddings):
    plan = Schedule(width, 40_000_000)
    tokens_per_step = int(share_of_batch * plan.batch_tokens)
    assert plan.learning_rate("muon", tokens_per_step) == pytest.approx(muon)
    assert plan.learning_rate("adamw", tokens_per_step) == pytest.approx(adamw)
    assert plan.embedding_learning_rate(tokens_per_step) == pytest.approx(embeddings)
    assert plan.weight_decay == 0.1


def test_wider_models_learn_more_slowly_and_longer_runs_from_larger_batches():
    plans = [Schedule(64 * depth, tokens) for depth, tokens in [(4, 10**8), (8, 6 * 10**8), (12, 2.4e9), (20, 10**10)]]
    for optimizer in ("muon", "adamw"):
        rates = [plan.learning_rate(optimizer, plan.batch_tokens) for plan in plans]
        assert rates == sorted(rates, reverse=True)
        assert len(set(rates)) == len(rates)
    embeddings = [plan.embedding_learning_rate(plan.batch_tokens) for plan in plans]
    assert embeddings == sorted(embeddings, reverse=True)
    batches = [plan.batch_tokens for plan in plans]
    assert batches == sorted(batches)
    assert batches[0] < batches[-1]
    assert all(math.log2(batch).is_integer() for batch in batches)


def test_a_smaller_batch_than_the_best_learns_more_slowly_a_larger_one_no_faster():
    plan = Schedule(512, 600_000_000)
    for rate in (lambda tokens: plan.learning_rate("muon", tokens), plan.embedding_learning_rate):
        small, smaller, best, larger = (rate(int(share * plan.batch_tokens)) for share in (0.5, 0.25, 1, 4))
        assert smaller < small < best == larger


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer)


def arguments(**settings):
    """As parsed, with nothing set but what is given."""
    where = {"model_name_or_path": "unused"} if "model_name_or_path" in settings else {"tokenizer_name": "unused"}
    defaults = {"output_dir": "unused", "use_cpu": True, "bf16": False, "block_size": 32} | where
    return PretrainArguments(**defaults | settings)


def sequences_per_step(args):
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def test_what_is_not_set_follows_from_the_model(model):
    args = arguments()
    args = args.derive(model, blocks=1000)
    plan = Schedule.of(model)
    assert plan.tokens == TOKENS_PER_PARAMETER * model.num_parameters()
    assert args.tokens_per_step == plan.batch_tokens == sequences_per_step(args) * 32
    assert args.max_steps == math.ceil(plan.tokens / plan.batch_tokens)
    assert args.optimizer == "muon"
    assert args.learning_rate == plan.learning_rate("muon", plan.batch_tokens)
    assert args.embedding_learning_rate == plan.embedding_learning_rate(plan.batch_tokens)
    assert args.weight_decay == plan.weight_decay


def test_what_is_not_set_follows_from_the_length_that_is(model):
    args = arguments(num_train_epochs=2)
    args = args.derive(model, blocks=10_000)
    plan = Schedule.of(model, tokens=2 * 10_000 * 32)
    assert args.tokens_per_step == plan.batch_tokens < Schedule.of(model).batch_tokens
    assert args.max_steps == 2 * math.ceil(10_000 * 32 / plan.batch_tokens)
    short = arguments(per_device_train_batch_size=4, max_steps=10).derive(model, blocks=1000)
    long = arguments(per_device_train_batch_size=4, max_steps=100_000).derive(model, blocks=1000)
    assert long.learning_rate < short.learning_rate


@pytest.mark.parametrize("block_size", [32, 512, 2048, 8192])
def test_a_long_batch_is_gathered_in_parts(model, block_size):
    args = arguments(block_size=block_size)
    args = args.derive(model, blocks=1000)
    asked = max(Schedule.of(model).batch_tokens, block_size)
    assert args.tokens_per_step == asked
    assert args.train_batch_size * block_size <= max(4096, block_size)


def test_an_evaluation_has_the_batch_of_the_training(model):
    """Its logits then need less memory than those that the training made, with their gradients."""
    for settings in ({}, {"per_device_train_batch_size": 3}, {"block_size": 2048, "chunked_loss": True}):
        args = arguments(**settings)
        args = args.derive(model, blocks=1000)
        assert args.eval_batch_size == args.train_batch_size
    args = arguments(per_device_eval_batch_size=5)
    args = args.derive(model, blocks=1000)
    assert args.eval_batch_size == 5


def test_what_was_asked_is_not_changed_by_what_follows_from_it(model):
    asked = arguments()
    before = dict(vars(asked))
    assert asked.derive(model, blocks=1000).learning_rate > 0
    assert vars(asked) == before
    assert asked.learning_rate is None


def test_what_is_set_stays(model):
    settings = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 7, "learning_rate": 0.5,
        "embedding_learning_rate": 0.25, "weight_decay": 0.0, "optimizer": "adamw",
    }  # fmt: skip
    args = arguments(**settings)
    args = args.derive(model, blocks=1000)
    assert {key: getattr(args, key) for key in settings} == settings


def test_epochs_are_counted_in_blocks(model):
    for epochs, steps in ((1, 25), (2, 50), (0.5, 13)):
        args = arguments(per_device_train_batch_size=4, gradient_accumulation_steps=1, num_train_epochs=epochs)
        args = args.derive(model, blocks=100)
        assert args.max_steps == steps
    args = arguments(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1, max_steps=9)
    args = args.derive(model, blocks=100)
    assert args.max_steps == 9


def test_a_model_that_is_trained_already_learns_gently_and_by_adamw(model):
    args = arguments(model_name_or_path="unused", num_train_epochs=1)
    args = args.derive(model, blocks=1000)
    assert args.optimizer == "adamw"
    assert args.learning_rate == args.embedding_learning_rate == 1e-4


def test_a_stable_schedule_decays_over_the_last_fifth(model):
    args = arguments(max_steps=101, lr_scheduler_type="warmup_stable_decay")
    assert args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY
    args = args.derive(model, blocks=1000)
    assert args.lr_scheduler_kwargs == {"num_decay_steps": 21, "decay_type": "1-sqrt"}
    args = arguments(
        max_steps=101, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 3}
    )
    args = args.derive(model, blocks=1000)
    assert args.lr_scheduler_kwargs == {"num_decay_steps": 3}
    args = arguments(max_steps=101)
    args = args.derive(model, blocks=1000)
    assert not args.lr_scheduler_kwargs


def test_two_lines_say_what_is_going_to_be_trained(model):
    args = arguments(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1234, learning_rate=0.02)
    args = args.derive(model, blocks=1000)
    first, second = args.describe(model).splitlines()
    assert first == f"LlamaForCausalLM: 2 layers, 128 wide, {model.num_parameters():,} parameters"
    assert second.startswith("1,234 steps of 256 tokens (4 x 32 x 2 accumulated)")
    assert "muon, learning rate 0.02 (" in second
    assert second.endswith(" FLOP")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"block_size": 4}, "block_size must be at least 8, not 4"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, not 1\.0"),
        ({"validation_documents": 0}, "validation_documents must be at least 1, not 0"),
        ({"streaming": True, "num_train_epochs": 1}, "num_train_epochs: the length of a stream is not known"),
        ({"tokenizer_name": None}, "tokenizer_name: needed to train from scratch"),
        ({"output_dir": None}, "output_dir: say where the model goes"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, problem):
    with pytest.raises(ValueError, match=problem):
        arguments(**settings)
