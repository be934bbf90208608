"""A certified model as one GGUF file for llama.cpp, certified by its own answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.behaviour import Prompts, behaviour, compare, context_length
from hfchat.certificates import Certificate
from hfchat.errors import UserError
from hfchat.export.checks import MAX_RELOAD_DRIFT
from hfchat.gguf.conversion import GGUF_FILE, check_installed, evaluated_type, write_gguf
from hfchat.models import load_model, load_tokenizer
from hfchat.token_ids import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def export_gguf(model_folder: Path, conversations: Sequence[Messages]) -> Certificate:
    """Write `<model>-gguf/model.gguf`, in the dtype of the model, and compare what it says with what the model says.

    The file is loaded again by transformers, which reads GGUF itself.

    Args:
        model_folder: A certified model.
        conversations: To compare on.

    Returns:
        The certificate, which is also beside the file.

    Raises:
        UserError: If the converter is not installed or does not know the architecture or the tokenizer, or if the file
            does not say what the model says.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    check_installed()
    output = model_folder.with_name(f"{model_folder.name}-gguf")
    output.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(str(model_folder))
    model = load_model(str(model_folder), dtype="auto")
    certificate = Certificate(output, Prompts.render(conversations, tokenizer, context_length(model)))
    write_gguf(model_folder, output / GGUF_FILE, evaluated_type(model_folder))

    # What transformers reads from the file is held against the model that it was made of.
    before = behaviour(model.float(), certificate.prompts, tokenizer)
    advice = "llama.cpp's converter changed it: report it there, and serve the model as it is"
    try:
        reloaded = AutoModelForCausalLM.from_pretrained(
            output, gguf_file=GGUF_FILE, dtype=torch.float32, trust_remote_code=False,
            quantization_config=GgufConfig(dequantize=True),
        )  # fmt: skip
        read_tokenizer = AutoTokenizer.from_pretrained(output, gguf_file=GGUF_FILE, trust_remote_code=False)
    except (OSError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--gguf: {output / GGUF_FILE} is written, but transformers cannot read it again, so it cannot be "
            f"certified: {reason}"
        ) from error
    _check_gguf_tokenizer(certificate, tokenizer, read_tokenizer, context_length(model), advice)
    after = behaviour(reloaded, certificate.prompts, tokenizer)
    difference = compare(before, after, certificate.prompts, model, tokenizer)
    certificate.check_difference("gguf", difference, MAX_RELOAD_DRIFT, advice)
    certificate.issue()
    return certificate


def _check_gguf_tokenizer(
    certificate: Certificate,
    tokenizer: "PreTrainedTokenizerBase",
    reloaded: "PreTrainedTokenizerBase",
    context: int,
    advice: str,
) -> None:
    same = reloaded.chat_template == tokenizer.chat_template
    certificate.check("chat template", same, "the same" if same else "another", "the same", advice)
    for role in ("eos", "pad"):
        wanted, found = getattr(tokenizer, f"{role}_token_id"), getattr(reloaded, f"{role}_token_id")
        certificate.check(f"{role} token", found == wanted, found, wanted, advice)
    reloaded.chat_template = tokenizer.chat_template
    prompts = Prompts.render(certificate.prompts.messages, reloaded, context)
    same = prompts.sequences == certificate.prompts.sequences
    certificate.check("token ids", same, "the same" if same else "the prompts become others", "the same", advice)
