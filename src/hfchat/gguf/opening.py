"""A GGUF file that is given as a model: its tokenizer, chat template and configuration, for those who make prompts.

transformers reads them out of the file, in a process of its own (`python -m hfchat.gguf.opening FILE FOLDER`), which
takes seconds; they are kept in the cache as an ordinary folder for the next time.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hfchat.chat_template import check_chat_template, keep_fingerprint
from hfchat.errors import UserError
from hfchat.gguf.conversion import check_installed, made_once
from hfchat.gguf.converter import FINGERPRINT_KEY
from hfchat.gguf.process import as_process, work_in_process
from hfchat.models import load_config, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_MAGIC = b"GGUF"


def tokenizer_of(file: Path, *, allow_mismatch: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file, with its chat template.

    Args:
        file: The file.
        allow_mismatch: Take another chat template than the one that was trained.

    Raises:
        UserError: If the file is not valid, has no chat template or another one than was trained, or if transformers
            cannot read its tokenizer.
    """
    tokenizer = load_tokenizer(str(_opened(file)))
    tokenizer.name_or_path = str(file)
    check_chat_template(tokenizer, allow_mismatch=allow_mismatch)
    return tokenizer


def config_of(file: Path) -> "PreTrainedConfig":
    """The configuration of the model in a GGUF file.

    Raises:
        UserError: If the file is not valid, or if transformers cannot read it.
    """
    return load_config(str(_opened(file)))


def weights_of(file: Path) -> str:
    """The type of most weights of a GGUF file, by llama.cpp's name in lower case.

    Raises:
        UserError: If the file is not valid.
    """
    return json.loads((_opened(file) / "weights.json").read_text(encoding="utf-8"))["weights"]


def _opened(file: Path) -> Path:
    """A folder with the tokenizer and the configuration of a file."""
    check_installed()
    try:
        with file.open("rb") as start:
            magic = start.read(len(_MAGIC))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}; name a GGUF file") from error
    if magic != _MAGIC:
        raise UserError(f"{file}: is not a valid GGUF file; download it again, or name a model folder")
    stat = file.stat()
    seen = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    name = f"opened-{hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]}"

    def open_in_process(folder: Path) -> None:
        print(f"reading the tokenizer of {file} (once)", file=sys.stderr)
        try:
            work_in_process("hfchat.gguf.opening", str(file), str(folder))
        except UserError as error:
            raise UserError(
                f"{file}: cannot be opened: {error}; serve the model folder that it was made of"
            ) from error

    return made_once(name, open_in_process)


def _open(file: str, folder: str) -> None:
    from cyllama.llama.llama_cpp import GGUFContext
    from gguf import Keys, LlamaFileType

    # llama.cpp's own reader first: it is quick, and tells a cut file from a whole one.
    metadata = GGUFContext.from_file(file).get_all_metadata()
    if Keys.Tokenizer.CHAT_TEMPLATE not in metadata:
        raise UserError("it has no chat template, so it is of a base model, or of a chat model without its tokenizer")

    from transformers import AutoConfig, AutoTokenizer

    path = Path(file)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.chat_template = metadata[Keys.Tokenizer.CHAT_TEMPLATE]
    keep_fingerprint(tokenizer, metadata.get(FINGERPRINT_KEY))
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    number = metadata.get(Keys.General.FILE_TYPE)
    names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_").lower() for kind in LlamaFileType}
    (Path(folder) / "weights.json").write_text(json.dumps({"weights": names.get(number, "unknown")}), encoding="utf-8")


if __name__ == "__main__":
    as_process(lambda: _open(*sys.argv[1:]))
