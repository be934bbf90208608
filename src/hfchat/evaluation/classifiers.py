"""A `text-classification` model as a measure: how sure it is of one of its labels."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.errors import UserError
from hfchat.lineage import describe
from hfchat.models import check_kernels

if TYPE_CHECKING:
    from transformers import Pipeline

_BATCH_SIZE = 32


class TextClassifier:
    """The probability that a classifier gives a label: `toxic`, `negative`, `REJECTION`.

    Args:
        name: Folder or Hub id of a sequence-classification model, such as `unitary/toxic-bert`.
        label: One of its labels.

    Raises:
        UserError: If there is no such classifier, or it has no such label. Its weights are not read yet.
    """

    def __init__(self, name: str, label: str):
        from transformers import AutoConfig

        self.name = name
        self.label = label
        try:
            check_kernels(name)
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(f"classifier {name}: cannot be loaded: {str(error).splitlines()[0]}") from error
        labels = list(config.id2label.values())
        if label not in labels:
            raise UserError(f"classifier {name}: has no label {label!r}, only {', '.join(labels)}; set label")
        identity = describe(name)["sha256"]
        self.signature = f"p({label})|" + (
            identity if identity.startswith("hub:") else f"{Path(name).name}@{identity[:12]}"
        )

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The probability of each text, cut where the classifier's context ends."""
        found = self._pipeline(list(texts), top_k=None, truncation=True, batch_size=_BATCH_SIZE)
        return [next(one["score"] for one in scores if one["label"] == self.label) for scores in found]

    @cached_property
    def _pipeline(self) -> "Pipeline":
        from transformers import pipeline

        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        try:
            return pipeline(
                "text-classification", model=self.name, device=device,
                trust_remote_code=False, model_kwargs={"use_safetensors": True},
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise UserError(f"classifier {self.name}: cannot be loaded: {str(error).splitlines()[0]}") from error
