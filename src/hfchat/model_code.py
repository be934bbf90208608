"""Code that the folder of a model brings: nothing here runs it, but others might who get the folder from here."""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hfchat.errors import UserError
from hfchat.lineage import CHECKPOINTS, LINEAGE

# What Python imports, or the system loads.
_CODE = (".py", ".pyc", ".pyw", ".pyd", ".so", ".dll", ".dylib")
_PICKLES = (
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".msgpack", ".h5", ".keras",
)  # fmt: skip
# What `Trainer` leaves beside a model. No loader of models opens these.
_OF_THE_TRAINER = ("training_args.bin", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth")
# Keys of a model's JSON files with which transformers looks for code in the repository of the model, or in another.
_KEYS_OF_CODE = ("auto_map", "custom_pipelines")
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
_LIBRARIES = ("transformers", "torch", "peft")  # from which PEFT may be told to take a class


def refuse_code(folder: str | Path) -> None:
    """Refuse the folder of a model or tokenizer that brings code for whoever loads it.

    Code is: modules (`*.py` and compiled ones), weights in pickles, and the keys of JSON files that have a loader
    fetch code, such as `auto_map` in `config.json`, `tokenizer_config.json` or the configuration of a processor.
    Checkpoints of the training (`checkpoints/`) are no part of a model, so they are not looked at.

    Raises:
        UserError: One line that names the files, or the file and its key, and says what to do. Also for a JSON file
            that cannot be read, because nobody can tell what is in it.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and not _is_checkpoint(path, folder))
    if code := [path for path in files if path.suffix.lower() in _CODE]:
        raise UserError(
            f"{_named(code, folder)}: a model must not bring code; delete it, and if the model does not load without "
            "it, take one of an architecture that Transformers has"
        )
    if pickles := [path for path in files if is_pickle(path)]:
        raise UserError(
            f"{_named(pickles, folder)}: weights in pickles run code when they are loaded; save them as safetensors, "
            "and delete these"
        )
    for path in files:
        if path.suffix.lower() == ".json" and path.name != LINEAGE:  # no loader opens that
            _refuse_keys(path)


def refuse_kernels(config: Any, name: str | Path) -> None:
    """Refuse a configuration that names a repository for its kernels, such as `"attn_implementation": "owner/kernel"`.

    Transformers fetches kernels from the Hub and runs them, whatever `trust_remote_code` says.

    Args:
        config: The JSON of a configuration.
        name: Its file or model, for the error.

    Raises:
        UserError: Names the key.
    """
    for key, value in _entries(config):
        if key in _KERNELS and _names_a_repository(value):
            raise UserError(f"{name}: {key} names code of a repository, {_shown(value)}; delete the key")


def is_pickle(path: Path) -> bool:
    """Whether a loader of models would read a file as a pickle, which can run code."""
    name = path.name.lower()
    return name.endswith(_PICKLES) and not any(fnmatch(name, pattern) for pattern in _OF_THE_TRAINER)


def _is_checkpoint(path: Path, folder: Path) -> bool:
    return path.relative_to(folder).parts[0] == CHECKPOINTS


def _named(paths: list[Path], folder: Path) -> str:
    names = [path.relative_to(folder).as_posix() for path in paths]
    return f"{folder}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def _refuse_keys(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON, so nobody can tell what it asks for; mend it") from error
    refuse_kernels(content, path)
    for key, value in _entries(content):
        if key in _KEYS_OF_CODE and value and not isinstance(value, int):  # in a vocabulary it is a token with its id
            raise UserError(
                f"{path}: {key} asks whoever loads the model to run code from its repository; delete the key, and if "
                "the model does not load without it, take one of an architecture that Transformers has"
            )
        if key == "parent_library" and isinstance(value, str) and value.partition(".")[0] not in _LIBRARIES:
            raise UserError(f"{path}: {key} has PEFT import {_shown(value)}; give the adapter a task_type instead")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, at any depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _names_a_repository(value: Any) -> bool:
    """`owner/kernel`, alone or as one of several by the names of a model's parts."""
    if isinstance(value, dict):
        return any(map(_names_a_repository, value.values()))
    return isinstance(value, str) and "/" in value


def _shown(value: Any) -> str:
    return repr(value)[:100]
