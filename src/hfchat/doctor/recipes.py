"""Which recipe a YAML is for, and how its settings are read."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hfchat import pipeline
from hfchat.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """A recipe that can be examined.

    Attributes:
        name: Of its file in `recipes/`.
        arguments: Where its dataclasses are, as `module:Class`; a class without a module is the recipe's own.
        kind: `"pretraining"` or `"tuning"` for those that train a model, else `"other"`.
        folder: Of `recipes/configs/`, if its YAMLs have one to themselves.
        shortened: Lengths of sample answers in tokens; the calibration makes shorter ones and scales their time.
    """

    name: str
    arguments: tuple[str, ...]
    kind: str = "other"
    folder: str | None = None
    shortened: tuple[str, ...] = ()

    @property
    def script(self) -> Path:
        return pipeline.recipes_root() / "recipes" / f"{self.name}.py"

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """What the recipe's own `parse` would return.

        Raises:
            UserError: As `hfchat.config.parse`.
        """
        from hfchat.config import parse

        return parse(*map(self._load, self.arguments), argv=argv)

    def _load(self, where: str) -> type:
        module, _, name = where.rpartition(":")
        return getattr(importlib.import_module(module) if module else self._module(), name)

    def _module(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"hfchat_recipe_{self.name}", self.script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


_MODEL = "hfchat.training.adapters:ModelArguments"
RECIPES = (
    Recipe("prepare_data", ("PrepareDataArguments",), folder="data"),
    Recipe("prepare_conversations", ("PrepareConversationsArguments",), folder="conversations"),
    Recipe("prepare_feedback", ("PrepareFeedbackArguments", "hfchat.feedback.curation:CurationArguments")),
    Recipe("gate", ("GateArguments",)),
    Recipe("train_tokenizer", ("TrainTokenizerArguments",), folder="tokenizers"),
    Recipe("pretrain", ("hfchat.training.pretrain_arguments:PretrainArguments",), "pretraining"),
    Recipe(
        "finetune",
        ("hfchat.training.finetuning:FinetuneArguments", _MODEL),
        "tuning",
        shortened=("sample_max_new_tokens",),
    ),
    Recipe(
        "align",
        ("hfchat.training.align_arguments:AlignArguments", _MODEL),
        "tuning",
        folder="align",
        shortened=("sampled_tokens",),
    ),
    Recipe("evaluate", ("EvaluateArguments",)),
)


def find_recipe(config: str | None, name: str | None) -> Recipe:
    """The recipe that a YAML is for: by its name, `<stage>.yaml`, or by its folder.

    Args:
        config: Path of the YAML; None without one.
        name: Name of the recipe, which wins.

    Raises:
        UserError: If there is no such recipe, or neither the file nor its folder says which.
    """
    known = ", ".join(recipe.name for recipe in RECIPES)
    if name is not None:
        for recipe in RECIPES:
            if recipe.name == name:
                return recipe
        raise UserError(f"--recipe {name}: must be one of {known}")
    if config is None:
        raise UserError("--config: name the YAML of a run, or --recipe and the recipe's own settings")
    path = Path(config)
    for recipe in RECIPES:
        if path.stem == recipe.name or (recipe.folder and path.absolute().parent.name == recipe.folder):
            return recipe
    raise UserError(f"--config {config}: its name does not say which recipe it is for; pass --recipe, one of {known}")
