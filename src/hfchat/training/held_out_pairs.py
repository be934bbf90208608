"""What a training on preferences changed: held-out pairs before and after it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from hfchat.intervals import paired_interval


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of held-out pairs, each of shape `(pairs, 2)`: the chosen and the rejected answer's, in nats.

    Attributes:
        policy: Under the model as it is.
        reference: Under the model as it was.
        beta: Factor of the rewards.
    """

    policy: np.ndarray
    reference: np.ndarray
    beta: float

    @property
    def margins(self) -> np.ndarray:
        """Reward of each chosen answer less that of the rejected one."""
        rewards = self.beta * (self.policy - self.reference)
        return rewards[:, 0] - rewards[:, 1]

    @property
    def preferred(self) -> np.ndarray:
        """Whether the chosen answer of each pair has the higher reward; a tie counts as a half."""
        return np.heaviside(self.margins, 0.5)

    @property
    def more_probable(self) -> np.ndarray:
        """Whether the chosen answer of each pair is the more probable one; a tie counts as a half."""
        return np.heaviside(self.policy[:, 0] - self.policy[:, 1], 0.5)

    def means(self) -> dict[str, float]:
        """What an evaluation logs of them, see `hfchat.training.alignment`."""
        return {
            "loss": float(-logsigmoid(torch.from_numpy(self.margins)).mean()),
            "rewards/accuracies": float(self.preferred.mean()),
            "rewards/margins": float(self.margins.mean()),
            "logps/accuracies": float(self.more_probable.mean()),
        }

    def compare(self, start: "PairScores") -> dict[str, list[float]]:
        """These scores against those before the training: of the same pairs, or of more that begin with these.

        Returns:
            `[mean, low, high]` with the 95% interval of `hfchat.intervals`: reward accuracy, the accuracy by
            probability before and after, and the difference of these two.
        """
        before = start.more_probable[: len(self.policy)]
        gain = self.more_probable - before
        return {
            "rewards/accuracies": _share(self.preferred),
            "logps/accuracies_start": _share(before),
            "logps/accuracies": _share(self.more_probable),
            "logps/accuracies_gain": [float(gain.mean()), *_limits(gain)],
        }


def _limits(outcomes: np.ndarray) -> tuple[float, float]:
    """The interval of a mean of outcomes between -1 and 1; halves count as such."""
    return paired_interval(outcomes.clip(min=0).sum(), -outcomes.clip(max=0).sum(), len(outcomes))


def _share(won: np.ndarray) -> list[float]:
    """The share of wins and its interval: that of wins less losses, moved from -1 and 1 to 0 and 1."""
    return [float(won.mean()), *((1 + limit) / 2 for limit in _limits(2 * won - 1))]


def describe_comparison(comparison: Mapping[str, list[float]], metrics: Mapping[str, float]) -> str:
    """Before and after, as a report."""

    def share(name: str) -> str:
        mean, low, high = comparison[name]
        return f"{mean:.1%} [{low:.1%}, {high:.1%}]"

    lines = [
        "on held-out pairs (95% intervals):",
        f"  the chosen answer has the higher reward: 50.0% by construction -> {share('rewards/accuracies')}",
        f"  it is the more probable one: {share('logps/accuracies_start')} -> {share('logps/accuracies')}, "
        f"difference {share('logps/accuracies_gain')}",
        f"  reward margin: 0 -> {metrics['eval_rewards/margins']:.3f}",
    ]
    if "eval_kl" in metrics:
        lines.append(f"  divergence from the reference: 0 -> {metrics['eval_kl']:.4f} nats per token")
    return "\n".join(lines)
