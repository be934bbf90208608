"""What is checked of an exported model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.certificates import Certificate
from hfchat.errors import UserError
from hfchat.export.reloading import Reloaded
from hfchat.model_code import is_pickle
from hfchat.models import is_tied

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS = 4096  # of the output layer that are compared at a time

# Limits of the mean KL divergence of a step, in nats per token. In brackets, what it is on SmolLM2-135M-Instruct with
# random adapters that move the model by 5e-4 to 0.1 nats. `hfchat.certificates.MAX_DRIFT` is that of the training.
MAX_QUANTIZATION_DRIFT = 1.0  # a base in 4 bits (0.3; another base is far beyond)
MAX_MERGE_DRIFT = 1e-9  # the order of sums (1e-11); without one matrix of the adapter, it is 6e-8 or more
MAX_ROUNDING_DRIFT = 0.02  # weights in bfloat16 (3e-4 at most)
MAX_RELOAD_DRIFT = 1e-9  # nothing (0)
# Two tokens are one to a model whose output layer has the same row for both. New tokens start so, as the mean of the
# others, and differ by what rounding to bfloat16 did (0.003 of their length) if they are not trained.
MIN_ROW_DISTANCE = 0.01


def check_tokens(
    certificate: Certificate, report: Reloaded, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel"
) -> None:
    """Check the template, the special tokens and the embeddings.

    Args:
        certificate: Gets the checks.
        report: What a fresh process has found.
        tokenizer: The tokenizer of the training.
        model: What should have been saved.
    """
    _check_template(certificate, report, tokenizer)
    _check_special_tokens(certificate, report)
    _check_embeddings(certificate, report, tokenizer.eos_token_id, model)


def _check_template(certificate: Certificate, report: Reloaded, tokenizer: "PreTrainedTokenizerBase") -> None:
    prompts = certificate.prompts
    again = "restore the tokenizer of the training, or export again"
    forms = _stored_templates(certificate.folder) | {"as loaded": report.chat_template}
    differing = [name for name, template in forms.items() if template != tokenizer.chat_template]
    certificate.check(
        "chat template", not differing, f"differs {' and '.join(differing)}" if differing else "the same in all forms",
        "the same in all forms", again,
    )  # fmt: skip
    problem = report.template_problem
    certificate.check("template fingerprint", problem is None, problem or "as recorded", "as recorded", again)
    same = (report.sequences, report.prompts) == (prompts.sequences, prompts.prompts)
    certificate.check("token ids", same, "the same" if same else "the prompts become others", "the same", again)


def _check_special_tokens(certificate: Certificate, report: Reloaded) -> None:
    # Whoever generates may go by any of the three places that name a special token.
    for role, ids in report.special_tokens.items():
        configured = [ids["config"], ids["generation_config"]]
        known = ids["tokenizer"] is None or all(
            ids["tokenizer"] in (id if isinstance(id, list) else [id]) or (id is None and role == "bos")
            for id in configured
        )
        certificate.check(
            f"{role} token",
            known,
            ", ".join(f"{place} {id}" for place, id in ids.items()),
            "the same in all",
            f"set {role}_token_id in config.json and generation_config.json to that of the tokenizer",
        )
    eos, pad = (report.special_tokens[role]["tokenizer"] for role in ("eos", "pad"))
    advice = "set another pad_token: see set_chat_template"
    certificate.check("pad is not eos", eos != pad, f"eos {eos}, pad {pad}", "two tokens", advice)


def _check_embeddings(certificate: Certificate, report: Reloaded, end: int, model: "PreTrainedModel") -> None:
    # What the output layer cannot tell apart, no training and no sampling can.
    distance, nearest = nearest_row(model, end)
    certificate.check(
        "end of turn",
        distance >= MIN_ROW_DISTANCE,
        f"its row in the output layer is {distance:.2g} of its length from the next ({nearest})",
        f"at least {MIN_ROW_DISTANCE}",
        "the model cannot tell the end of a turn from another token, so it never stops: train its row in the output "
        "layer, as recipes/finetune.py does",
    )

    # A head that is saved apart from the embeddings, or rows that are missing, are seen only after loading.
    tied = "tied" if report.tied else "not tied"
    wanted = "tied" if is_tied(model) else "not tied"
    configured = json.loads((certificate.folder / "config.json").read_text(encoding="utf-8")).get(
        "tie_word_embeddings"
    )
    certificate.check(
        "embeddings and head",
        tied == wanted and configured in (None, report.tied),
        f"{tied}, tie_word_embeddings {configured}",
        wanted,
        "the head was saved apart from the embeddings, or lost: export again with tie_word_embeddings as in the base",
    )
    certificate.check(
        "embeddings", min(report.embeddings) >= report.tokens,
        f"{min(report.embeddings)} rows for {report.tokens} tokens", "one for each",
        "the tokenizer has tokens that the model does not know: use the tokenizer of the training",
    )  # fmt: skip


@torch.no_grad()
def nearest_row(model: "PreTrainedModel", token: int) -> tuple[float, int]:
    """How far a token's row of the output layer is from the nearest other one, relative to its length, and whose."""
    head = model.get_output_embeddings()
    rows = head.weight if getattr(head, "bias", None) is None else torch.cat([head.weight, head.bias[:, None]], dim=1)
    row = rows[token].double()
    squares = torch.cat([(part.double() - row).square().sum(1) for part in rows.split(_ROWS)])
    squares[token] = torch.inf
    nearest = int(squares.argmin())
    return float((squares[nearest] / row.square().sum()).sqrt()), nearest


def check_files(certificate: Certificate) -> None:
    """Check that no file is missing, and that weights are safetensors.

    Raises:
        UserError: If a file is missing without which nothing else can be checked.
    """
    folder = certificate.folder
    names = {path.name for path in folder.iterdir()}
    missing = sorted({"config.json", "generation_config.json", "tokenizer_config.json"} - names)
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    if missing:
        raise UserError(f"{folder}: not certified: it has no {', no '.join(missing)}; export it again")
    pickles = sorted(path.name for path in folder.rglob("*") if is_pickle(path))
    certificate.check(
        "weights' format", not pickles, ", ".join(pickles) or "safetensors", "safetensors",
        "pickles run code when they are loaded: delete them",
    )  # fmt: skip


def _stored_templates(folder: Path) -> dict[str, str]:
    forms = {}
    if (folder / "chat_template.jinja").is_file():
        forms["in chat_template.jinja"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if "chat_template" in config:
        forms["in tokenizer_config.json"] = config["chat_template"]
    return forms
