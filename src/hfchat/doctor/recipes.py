"""Which recipe a YAML is for, and how its settings are read."""

import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfchat import pipeline
from hfchat.config import parse
from hfchat.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """A recipe that can be examined.

    Attributes:
        name: Name of its file in `recipes/`.
        folder: Folder of `recipes/configs/`, if its YAMLs have one to themselves.
        kind: `"pretraining"` or `"tuning"` for those that train a model, else `"other"`.
        shortened: The setting that says how many tokens a sample answer has; the calibration makes shorter answers and
            scales their time.
    """

    name: str
    folder: str | None = None
    kind: str = "other"
    shortened: str | None = None

    @property
    def script(self) -> Path:
        return pipeline.recipes_root() / "recipes" / f"{self.name}.py"

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """What the recipe itself parses: one instance of each dataclass in its `ARGUMENTS`.

        Raises:
            UserError: As `hfchat.config.parse`.
        """
        return parse(*runpy.run_path(str(self.script))["ARGUMENTS"], argv=argv)


RECIPES = (
    Recipe("prepare_data", "data"),
    Recipe("prepare_conversations", "conversations"),
    Recipe("prepare_feedback"),
    Recipe("gate"),
    Recipe("train_tokenizer", "tokenizers"),
    Recipe("pretrain", kind="pretraining"),
    Recipe("finetune", kind="tuning", shortened="sample_max_new_tokens"),
    Recipe("align", "align", kind="tuning", shortened="sampled_tokens"),
    Recipe("evaluate"),
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
