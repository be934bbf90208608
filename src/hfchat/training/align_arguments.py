"""Settings of preference tuning."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trl import DPOConfig, KTOConfig

from hfchat.config import setting
from hfchat.training.run_arguments import TuningArguments, derived_dtype, replaced, settle_device

if TYPE_CHECKING:
    from hfchat.training.adapters import ModelArguments

# All weights: the default of TRL's `DPOConfig` and `KTOConfig`, twice what Tulu 3 (arXiv:2411.15124) and Zephyr
# (arXiv:2310.16944) train 8 and 7 billion weights at. An adapter wants ten times that, see `training/finetuning.py`.
_FULL, _LORA = 1e-6, 1e-5
_LOSSES = {"dpo": "sigmoid", "kto": "kto"}


@dataclass
class AlignArguments(TuningArguments, DPOConfig, KTOConfig):
    """The settings of TRL's `DPOConfig` and `KTOConfig` with the defaults of this recipe, and the preferences.

    What is None is derived: from the method, the kind of training and the data, or from the machine.
    """

    method: Literal["dpo", "kto"] = setting(
        "dpo", "DPO learns from pairs of answers, KTO from single answers with a thumb up or down."
    )
    dataset_name: str = setting(
        "outputs/conversations/hh-rlhf",
        "Rows with `chosen` and `rejected`, or for KTO with `label`: a folder, file or Hub id.",
        identity=False,
    )
    min_thumbs: int = setting(
        100, "KTO: refuse fewer thumbs of either sign. With 100, the 95%% interval of a share is +-10 points."
    )
    sampled_prompts: int = setting(16, "Held-out prompts to answer when the divergence is measured; 0 for none.")
    sampled_tokens: int = setting(48, "Longest of these answers, in tokens.")

    loss_type: list[str] | None = setting(
        None, "By default sigmoid for DPO and kto for KTO; TRL documents the others."
    )
    desirable_weight: float | None = setting(None, "KTO: weight of thumbs up; by default it balances the two signs.")
    undesirable_weight: float | None = setting(
        None, "KTO: weight of thumbs down; by default it balances the two signs."
    )
    train_sampling_strategy: str | None = setting(
        None,
        "By default random for DPO; KTO needs sequential, because its rows are shuffled once.",
        choices=["random", "sequential", "group_by_length"],
    )
    learning_rate: float | None = setting(None, f"By default {_LORA:g} for an adapter, {_FULL:g} for all weights.")
    per_device_train_batch_size: int = setting(4, "Pairs, or thumbs, per device and step.")
    num_train_epochs: float = setting(1, "Preferences are soon overfitted.")

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise ValueError("output_dir: say where the model goes, e.g. --output_dir outputs/mine/aligned")
        if self.max_length is None or self.max_length < 2:
            raise ValueError("max_length: must be at least 2 tokens; longer rows are left out")
        if self.min_thumbs < 1 or self.sampled_prompts < 0 or self.sampled_tokens < 1:
            raise ValueError("min_thumbs and sampled_tokens must be at least 1, and sampled_prompts at least 0")
        losses = self.loss_type or [_LOSSES[self.method]]
        self.loss_type = losses
        if self.method == "kto":
            self._check_kto(losses)
        elif (self.desirable_weight, self.undesirable_weight) != (None, None):
            raise ValueError(
                "desirable_weight and undesirable_weight are of KTO; leave them out, or pass --method kto"
            )
        self.train_sampling_strategy = self.train_sampling_strategy or (
            "sequential" if self.method == "kto" else "random"
        )
        settle_device(self)
        super().__post_init__()

    def _check_kto(self, losses: list[str]) -> None:
        known = KTOConfig.__dataclass_fields__["loss_type"].metadata["choices"]
        if len(losses) != 1 or losses[0] not in known:
            raise ValueError(f"loss_type: KTO's is one of {', '.join(known)}, not {' '.join(losses)}")
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                "per_device_train_batch_size: KTO estimates the divergence from a batch, which needs 2 thumbs at least"
            )

    def derive(self, model: "ModelArguments", thumbs: tuple[int, int]) -> tuple["AlignArguments", "ModelArguments"]:
        """These settings and those of the model, with what was not set and follows from them and from the data.

        Args:
            model: How the model is trained.
            thumbs: How many completions to learn from are desirable, and how many are not.
        """
        rate = (_LORA if model.use_peft else _FULL) if self.learning_rate is None else self.learning_rate
        derived = replaced(self, learning_rate=rate)
        if self.method == "kto":
            weights = balance(*thumbs, self.desirable_weight, self.undesirable_weight)
            derived = replaced(
                derived,
                desirable_weight=weights[0],
                undesirable_weight=weights[1],
                loss_type=(self.loss_type or ["kto"])[0],  # `KTOTrainer` takes one
            )
        return derived, replaced(model, dtype=derived_dtype(model, self))

    def describe(self) -> str:
        """The method and what it weighs, in a line."""
        text = f"{self.method.upper()} with beta {self.beta:g} and learning rate {self.learning_rate:g}"
        if self.method == "kto":
            text += f"; a thumb up weighs {self.desirable_weight:.3g}, a thumb down {self.undesirable_weight:.3g}"
        return text


def balance(
    up: int, down: int, desirable: float | None = None, undesirable: float | None = None
) -> tuple[float, float]:
    """Weights of thumbs up and down with which both signs count the same.

    KTO asks for `desirable * up / (undesirable * down)` between 1 and 4/3 (arXiv:2402.01306, equation 8); this is 1,
    with a weight of 1 for the more frequent sign.

    Args:
        up: Thumbs up.
        down: Thumbs down.
        desirable: Weight of a thumb up, if it is set; that of a thumb down then follows.
        undesirable: Weight of a thumb down, if it is set.

    Returns:
        The weights of a thumb up and of a thumb down.
    """
    if desirable is None:
        if undesirable is None:
            return max(1.0, down / up), max(1.0, up / down)
        return undesirable * down / up, undesirable
    return desirable, desirable * up / down if undesirable is None else undesirable
