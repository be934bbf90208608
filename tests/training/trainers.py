"""A `PretrainTrainer` for a tiny model, as `recipes/pretrain.py` makes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfchat.training.corpus import Corpus
from hfchat.training.pretrain_arguments import PretrainArguments
from hfchat.training.pretraining import PretrainTrainer
from tests.conftest import tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def trainer_for(
    packed: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", output_dir: Path, **settings: Any
) -> PretrainTrainer:
    """Three steps with Muon, unless `settings` say otherwise; nothing is saved or evaluated."""
    defaults = {
        "tokenizer_name": "that of the test", "block_size": 32, "max_steps": 3, "per_device_train_batch_size": 8,
        "learning_rate": 1e-2, "bf16": False, "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
        "save_strategy": "no", "eval_strategy": "no", "sample_prompts": ["The recipe"], "seed": 3,
    }  # fmt: skip
    args = PretrainArguments(output_dir=str(output_dir), **defaults | settings)
    model = tiny_model(tokenizer)
    corpus = Corpus(packed["train"], packed["validation"])
    return PretrainTrainer(model, args.derive(model, corpus.blocks), corpus, tokenizer)


def losses(trainer: PretrainTrainer) -> list[float]:
    """Those that were logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
