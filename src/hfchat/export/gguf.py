"""A certified model as one GGUF file for llama.cpp, certified by its own answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.behaviour import Prompts, behaviour, compare, context_length
from hfchat.certificates import Certificate, NotCertifiedError
from hfchat.errors import UserError
from hfchat.export.checks import MAX_RELOAD_DRIFT
from hfchat.gguf.conversion import GGUF_FILE, check_installed, evaluated_type, write_gguf, write_ggufs
from hfchat.gguf.modelfile import modelfile
from hfchat.gguf.price import certificate_of, measure_prices
from hfchat.lineage import CERTIFICATE
from hfchat.models import generation_config, load_config, load_model, load_tokenizer
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
    certificate = Certificate(output, Prompts.render(conversations, tokenizer, context_length(model.config)))
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
    _check_gguf_tokenizer(certificate, tokenizer, read_tokenizer, context_length(model.config), advice)
    after = behaviour(reloaded, certificate.prompts, tokenizer)
    difference = compare(before, after, certificate.prompts, model, tokenizer)
    certificate.check_difference("gguf", difference, MAX_RELOAD_DRIFT, advice)
    certificate.issue()
    return certificate


def export_quantized(
    model_folder: Path, types: Sequence[str], conversations: Sequence[Messages], max_drift: float | None = None
) -> Iterator[Certificate]:
    """Write `<model>-gguf-<type>/model.gguf` for each type, with its price, and a Modelfile for Ollama beside it.

    Args:
        model_folder: A certified model.
        types: Names of `hfchat.gguf.weight_types.WEIGHT_TYPES`.
        conversations: To measure the price on.
        max_drift: The limit of the mean KL divergence in nats per token; by default that of each type.

    Returns:
        The certificates, as they are issued.

    Raises:
        UserError: If llama.cpp cannot make the files.
        NotCertifiedError: If a file costs more than the limit; the others are there.
    """
    check_installed()
    files = {}
    for weights in types:
        files[weights] = model_folder.with_name(f"{model_folder.name}-gguf-{weights}") / GGUF_FILE
        files[weights].parent.mkdir(exist_ok=True)
        (files[weights].parent / CERTIFICATE).unlink(missing_ok=True)  # of the file that was there
    write_ggufs(model_folder, files)

    # One measurement for all, because most of it is what the model says.
    prices = measure_prices(model_folder, files, conversations)
    tokenizer, model_config = load_tokenizer(str(model_folder)), load_config(str(model_folder))
    text = modelfile(GGUF_FILE, tokenizer, generation_config(model_folder, model_config), context_length(model_config))
    refused = None
    for weights, file in files.items():
        (file.parent / "Modelfile").write_text(text, encoding="utf-8")
        certificate = certificate_of(file, prices[weights], max_drift)
        try:
            certificate.issue()
            yield certificate
        except NotCertifiedError as error:
            refused = refused or error
    if refused is not None:
        raise refused


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
