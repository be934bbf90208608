"""Load one split of a dataset: a corpus made by a recipe, any other local folder or file, or a Hub id."""

from pathlib import Path
from typing import TYPE_CHECKING

from hfchat.errors import UserError
from hfchat.lineage import describe

if TYPE_CHECKING:
    from datasets import Dataset

_FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_split(dataset_name: str, split: str, column: str) -> "Dataset":
    """`datasets.load_dataset` for one split, its failures as one line.

    A local file has no splits of its own: it is loaded whole, whatever `split` is asked for.

    Args:
        dataset_name: Folder, `.jsonl`, `.json`, `.parquet` or `.csv` file, or Hub id.
        split: Name of the split.
        column: A column that must be there.

    Raises:
        UserError: If there is no such dataset, split or column, or no row.
    """
    from datasets import config, load_dataset

    path = Path(dataset_name)
    cache_dir = None
    if path.exists():
        # datasets keys the cache of a local folder with a card by its path: rows changed in place would go unseen.
        cache_dir = str(Path(config.HF_DATASETS_CACHE) / "hfchat" / describe(path)["sha256"][:16])
    try:
        if path.is_file():
            if path.suffix not in _FILE_BUILDERS:
                raise UserError(
                    f"dataset_name {dataset_name}: must be one of {', '.join(_FILE_BUILDERS)}, or a folder"
                )
            dataset = load_dataset(
                _FILE_BUILDERS[path.suffix], data_files=dataset_name, split="train", cache_dir=cache_dir
            )
        else:
            looks_local = path.is_absolute() or dataset_name.startswith(".") or dataset_name.count("/") > 1
            if (looks_local or path.suffix in _FILE_BUILDERS) and not path.is_dir():
                raise UserError(f"dataset_name {dataset_name}: no such file or folder{_hint(column)}")
            dataset = load_dataset(dataset_name, split=split, cache_dir=cache_dir)
    except UserError:
        raise
    except Exception as error:  # the errors of the builders have no common base
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"dataset_name {dataset_name}: cannot load split '{split}': {reason}") from error
    if column not in dataset.column_names:
        raise UserError(f"dataset_name {dataset_name}: has no column '{column}', only {dataset.column_names}")
    if len(dataset) == 0:
        raise UserError(f"dataset_name {dataset_name}: split '{split}' is empty")
    return dataset


def _hint(column: str) -> str:
    if column == "messages":
        return ""
    return "; a corpus is made by `python recipes/prepare_data.py --config recipes/configs/demo/prepare_data.yaml`"
