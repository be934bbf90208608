"""Loads a saved model in a process that knows nothing of its training: `python -m hfchat.export.reloading REQUEST`."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hfchat.behaviour import Behaviour, Prompts, behaviour, context_length
from hfchat.errors import UserError

if TYPE_CHECKING:
    import torch

_REQUEST, _REPORT, _LOGITS = "request.json", "report.json", "logits.safetensors"


@dataclass(frozen=True)
class Reloaded:
    """What a fresh process finds in the folder of a model.

    Attributes:
        weights: Digest of each weight, by its name.
        loading: What loading complained of: names of weights, by the kind of complaint.
        tied: Whether the output layer is the embeddings.
        embeddings: Rows of the input and of the output embeddings.
        tokens: Number of the tokenizer's tokens.
        special_tokens: For `eos`, `pad` and `bos`, the ids by where they stand: `tokenizer`, `config` and
            `generation_config`.
        chat_template: The tokenizer's.
        template_problem: What `hfchat.chat_template.check_chat_template` refuses; None if nothing.
        sequences: Token ids of the conversations.
        prompts: Token ids of the prompts.
        answers: Token ids of the greedy answers.
    """

    weights: dict[str, str]
    loading: dict[str, list[str]]
    tied: bool
    embeddings: list[int]
    tokens: int
    special_tokens: dict[str, dict[str, int | list[int] | None]]
    chat_template: str
    template_problem: str | None
    sequences: list[list[int]]
    prompts: list[list[int]]
    answers: list[list[int]]


def reload(folder: Path, prompts: Prompts, device: "torch.device") -> tuple[Behaviour, Reloaded]:
    """Load a saved model in a fresh process and ask it.

    Args:
        folder: A model with its tokenizer.
        prompts: Their messages are rendered anew, with the saved tokenizer.
        device: Where to run, in float32 and with as many threads as here, so that sums are added in the same order.

    Returns:
        What the model says, and what else was found.

    Raises:
        UserError: If the folder does not load.
    """
    import torch
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="hfchat-certify-") as scratch:
        request = {
            "folder": str(folder.resolve()),
            "messages": prompts.messages,
            "device": str(device),
            "threads": torch.get_num_threads(),
        }
        (Path(scratch) / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        try:
            _in_fresh_process(Path(scratch))
        except UserError as error:
            raise UserError(f"{folder}: does not load in a fresh process: {error}; export it again") from error
        reloaded = Reloaded(**json.loads((Path(scratch) / _REPORT).read_text(encoding="utf-8")))
        logits = load_file(Path(scratch) / _LOGITS)
        return Behaviour([logits[str(i)] for i in range(len(logits))], reloaded.answers), reloaded


def _in_fresh_process(scratch: Path) -> None:
    command = [sys.executable, "-m", "hfchat.export.reloading", str(scratch)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        *_, last = finished.stderr.strip().splitlines() or ["it ended without a word"]
        raise UserError(last.removeprefix("error: "))


def answer(scratch: Path) -> None:
    """What the fresh process does: read the request in a folder, and write what it finds and the logits into it."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from hfchat.adapters import weight_digests
    from hfchat.chat_template import check_chat_template
    from hfchat.models import is_tied, load_tokenizer

    request = json.loads((scratch / _REQUEST).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    tokenizer = load_tokenizer(request["folder"])
    # What `load_model` does, but for what loading complains of, which is to be reported.
    model, loading = AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    try:
        check_chat_template(tokenizer, model.config)
        problem = None
    except UserError as error:
        problem = str(error)
    prompts = Prompts.render(request["messages"], tokenizer, context_length(model.config))
    weights = weight_digests(model)  # as stored: what it says is computed in float32
    said = behaviour(model.float().to(request["device"]), prompts, tokenizer)
    reloaded = Reloaded(
        weights=weights,
        loading={name: sorted(map(str, keys)) for name, keys in loading.items() if keys},
        tied=is_tied(model),
        embeddings=[len(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())],
        tokens=len(tokenizer),
        special_tokens={
            role: {
                "tokenizer": getattr(tokenizer, f"{role}_token_id"),
                "config": getattr(model.config, f"{role}_token_id", None),
                "generation_config": getattr(model.generation_config, f"{role}_token_id", None),
            }
            for role in ("eos", "pad", "bos")
        },
        chat_template=tokenizer.chat_template,
        template_problem=problem,
        sequences=prompts.sequences,
        prompts=prompts.prompts,
        answers=said.answers,
    )
    save_file({str(i): logits.contiguous() for i, logits in enumerate(said.logits)}, scratch / _LOGITS)
    (scratch / _REPORT).write_text(json.dumps(dataclasses.asdict(reloaded)), encoding="utf-8")


if __name__ == "__main__":
    from hfchat.errors import run

    run(lambda: answer(Path(sys.argv[1])))
