"""How much disk a training fills."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Disk:
    """What a training writes, in bytes.

    Attributes:
        checkpoint: One checkpoint: the trained weights and the optimizer's state.
        checkpoints: As many as are held at a time: those kept, and the one that is being written.
        outputs: The finished model, and for an adapter the merged one too.
        tokens: The tokenized corpus.
    """

    checkpoint: int
    checkpoints: int
    outputs: int
    tokens: int = 0

    @property
    def total(self) -> int:
        return self.checkpoints + self.outputs + self.tokens


def checkpoints_held(saves: int, save_total_limit: int | None) -> int:
    """The most checkpoints that are on disk together: an old one goes when the new one is whole."""
    if save_total_limit is None or save_total_limit <= 0:
        return saves
    return min(saves, save_total_limit + 1)
