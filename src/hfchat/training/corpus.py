"""The two sides of a corpus: what is trained on, and what is validated on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hfchat.dataset import has_split, load_split, without_nulls
from hfchat.errors import UserError
from hfchat.training.packing import PackedDataset, tokenize_corpus
from hfchat.training.streaming import StreamedDataset

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    from hfchat.training.pretrain_arguments import PretrainArguments

_WORTHWHILE_EPOCHS = 4  # so often, text is worth nearly as much as new text (Muennighoff et al., arXiv:2305.16264)


@dataclass(frozen=True)
class Corpus:
    """Attributes:
    train: Blocks to train on.
    validation: Blocks to validate on.
    """

    train: PackedDataset | StreamedDataset
    validation: PackedDataset

    @property
    def blocks(self) -> int | None:
        """Blocks to train on; None for a stream."""
        return len(self.train) if isinstance(self.train, PackedDataset) else None

    def describe(self, tokens: int) -> str:
        """What there is to learn from, and a warning where it is read too often.

        Args:
            tokens: How many the whole training reads, those that it reads again among them.
        """
        if isinstance(self.train, StreamedDataset):
            return f"a stream of documents; {len(self.validation.tokens):,} tokens to validate on"
        there_is = (
            f"{len(self.train.tokens):,} tokens of {len(self.train.starts):,} documents to train on, "
            f"{len(self.validation.tokens):,} to validate on; 0% cropped, {self.train.padded_share:.3%} padding, "
            f"{self.train.cut_share:.3%} of the documents cut although a block would hold them"
        )
        times = round(tokens / len(self.train.tokens))  # whole ones: an epoch has padding, and ends with a whole step
        if times <= _WORTHWHILE_EPOCHS:
            return there_is
        return (
            f"{there_is}\nwarning: each text is read {times:,} times, and teaches less and less after "
            f"{_WORTHWHILE_EPOCHS} times; add texts, or pass --max_steps -1 --num_train_epochs {_WORTHWHILE_EPOCHS}"
        )


def load_corpus(args: "PretrainArguments", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> Corpus:
    """Tokenize a corpus into `folder`, once, or open it as a stream.

    Without a split for validation, the first `args.validation_documents` (at most a tenth) are held out; of a stream,
    their repetitions too.

    Raises:
        UserError: If the dataset cannot be loaded, or has too few documents to hold any out.
    """
    column = args.text_column
    # One process of all machines tokenizes, because they share the folder of the run.
    with args.main_process_first(local=False, desc="tokenizing the corpus"):
        train, validation = load_documents(args)
        tokenize_corpus(validation, column, tokenizer, folder / "tokens-validation", "tokenizing, validation")
        packed = PackedDataset(folder / "tokens-validation", args.block_size, tokenizer)
        if not args.streaming:
            tokenize_corpus(train, column, tokenizer, folder / "tokens-train", "tokenizing, train")
            return Corpus(PackedDataset(folder / "tokens-train", args.block_size, tokenizer), packed)
    share = _share(train, column, args.process_index, args.world_size)
    return Corpus(StreamedDataset(share, column, args.block_size, tokenizer), packed)


def load_documents(args: "PretrainArguments") -> tuple["Dataset | IterableDataset", "Dataset"]:
    """The documents to train on and those to validate on, as `load_corpus` says.

    Raises:
        UserError: As `load_corpus`.
    """
    name, column, config_name = args.dataset_name, args.text_column, args.dataset_config_name
    train = _load(args, "train", args.streaming)
    if has_split(name, "validation", config_name=config_name):
        return train, _load(args, "validation", streaming=False)
    if args.streaming:
        validation = _collect(train.take(args.validation_documents), column)
        texts = frozenset(validation[column])
        # `train.skip` would be wrong: where processes share the files, each would skip the first documents of its own.
        # What a document says tells it apart wherever it is read.
        return train.filter(lambda text: text not in texts, input_columns=[column]), validation
    held_out = min(args.validation_documents, len(train) // 10)
    if held_out == 0:
        raise UserError(f"dataset_name {name}: has no validation split, and fewer than 10 documents to take it from")
    return train.select(range(held_out, len(train))), train.select(range(held_out))


def _load(args: "PretrainArguments", split: str, streaming: bool) -> "Dataset | IterableDataset":
    """A split without the rows that have no text; of a stream, nobody knows how many they are."""
    name, column = args.dataset_name, args.text_column
    rows = load_split(name, split, column, config_name=args.dataset_config_name, streaming=streaming)
    if not streaming:
        return without_nulls(rows, column, name)
    return rows.filter(
        lambda text: _is_text(text, f"dataset_name {name}: the column '{column}'"), input_columns=[column]
    )


def _is_text(value: object, place: str) -> bool:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place} must hold texts, not {type(value).__name__}")
    return value is not None


def _share(documents: "IterableDataset", column: str, process: int, processes: int) -> "IterableDataset":
    """What one of several processes reads: its own files if all processes have as many, else every n-th document."""
    from datasets.distributed import split_dataset_by_node

    # What is held out is at the front, so the first process is the first one whose files can be held out whole.
    if next(iter(split_dataset_by_node(documents, rank=0, world_size=processes)), None) is None:
        return documents.filter(
            lambda _, number: number % processes == process, with_indices=True, input_columns=[column]
        )
    return split_dataset_by_node(documents, rank=process, world_size=processes)


def _collect(documents: "IterableDataset", column: str) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict({column: [row[column] for row in documents]})
