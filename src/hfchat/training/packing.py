"""A corpus as a stream of tokens, cut into blocks in which documents do not see each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_BATCH = 256  # documents
IGNORE = -100  # the label that PyTorch's cross entropy leaves out


def tokenize_corpus(
    dataset: "Dataset", column: str, tokenizer: "PreTrainedTokenizerBase", folder: Path, description: str
) -> None:
    """Write `tokens.bin` (all documents, each opened and closed by the BOS token), `starts.npy` and `bytes.npy`.

    Args:
        dataset: One document per row.
        column: Its column of text.
        tokenizer: Its `bos_token` (or else `eos_token`) separates documents.
        folder: Where to write. If it is there already, it is whole, and is left alone.
        description: For the progress bar.
    """
    if folder.exists():
        return
    scratch = folder.with_name(folder.name + ".writing")
    scratch.mkdir(parents=True, exist_ok=True)
    starts, size, position = [], 0, 0
    with (scratch / "tokens.bin").open("wb") as file, tqdm(total=len(dataset), desc=description, unit="doc") as bar:
        for batch in dataset.select_columns([column]).iter(_BATCH):
            texts = batch[column]
            for document in encode_documents(texts, tokenizer):
                file.write(document.tobytes())  # NumPy's own `tofile` loses the system's error
                starts.append(position)
                position += len(document)
            size += sum(len(text.encode()) for text in texts)
            bar.update(len(texts))
            bar.set_postfix(tokens=f"{position:,}")
    np.save(scratch / "starts.npy", np.array(starts, dtype=np.int64))
    np.save(scratch / "bytes.npy", np.array(size, dtype=np.int64))
    scratch.rename(folder)


def encode_documents(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[np.ndarray]:
    """The tokens of each document between two separators; of the type that all ids of the tokenizer fit in."""
    separator = separator_id(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [np.array([separator, *ids, separator], dtype=_dtype(tokenizer)) for ids in encoded]


def separator_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that opens and closes a document: BOS, or EOS where a tokenizer has no BOS."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


class PackedDataset(TorchDataset):
    """Consecutive blocks of a tokenized corpus; nothing is dropped and only the last block is padded.

    An item is what `make_block` returns. Any item is read in constant time, so resuming at any step costs nothing.

    Args:
        folder: Written by `tokenize_corpus`.
        block_size: Tokens per item.
        tokenizer: The one that wrote it.
    """

    def __init__(self, folder: Path, block_size: int, tokenizer: "PreTrainedTokenizerBase"):
        self.block_size = block_size
        self.pad_token_id = separator_id(tokenizer) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.tokens = np.memmap(folder / "tokens.bin", dtype=_dtype(tokenizer), mode="r")
        self.starts = np.load(folder / "starts.npy", mmap_mode="r")
        self.num_bytes = int(np.load(folder / "bytes.npy"))

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.block_size)

    @property
    def padded_share(self) -> float:
        """Share of positions that are padding."""
        return 1 - (len(self.tokens) - 1) / (len(self) * self.block_size)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.block_size
        window = np.full(self.block_size + 1, self.pad_token_id, dtype=np.int64)
        available = self.tokens[first : first + self.block_size + 1]
        window[: len(available)] = available
        # Where documents open in the window, relative to it.
        low, high = np.searchsorted(self.starts, [first, first + self.block_size + 1])
        opens = np.zeros(self.block_size + 1, dtype=bool)
        opens[self.starts[low:high] - first] = True
        opens[len(available) :] = True  # padding: a document of its own at each position
        return make_block(window, opens)


def make_block(window: np.ndarray, opens: np.ndarray) -> dict[str, torch.Tensor]:
    """What a model is trained on, each of shape `(block_size,)` and type int64:

    - `input_ids`,
    - `position_ids`, which start at 0 with every document. In packed input without an attention mask, this is what
      tells transformers to keep documents apart (`masking_utils.find_packed_sequence_indices`),
    - `labels` and `shift_labels`, both the *next* token of each position, so that the first token of a block is
      predicted by the last of the one before. The opening token of a document is nobody's label.

    Args:
        window: Tokens of the block and the one after it; shape `(block_size + 1,)`, int64.
        opens: Whether each opens a document; of the same shape, bool.
    """
    offsets = np.arange(len(window) - 1)
    positions = offsets - np.maximum.accumulate(np.where(opens[:-1], offsets, 0))
    labels = torch.from_numpy(np.where(opens[1:], IGNORE, window[1:]))
    return {
        "input_ids": torch.from_numpy(window[:-1].copy()),
        "position_ids": torch.from_numpy(positions),
        "labels": labels,
        "shift_labels": labels,
    }


def collate_for_flash_attention(blocks: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | int]:
    """Stack what `make_block` makes, and say where its documents lie.

    In a batch of more than one row, transformers gives flash attention no heed to positions
    (`modeling_flash_attention_utils._is_packed_sequence`): without this, documents would see each other.

    Returns:
        The blocks' tensors, of shape `(batch, block_size)`; `cu_seq_lens_q` and `cu_seq_lens_k`, both where each
        document begins in the flattened batch, and its end, of shape `(documents + 1,)` and type int32;
        `max_length_q` and `max_length_k`, both the most tokens that one can have.
    """
    batch = {key: torch.stack([block[key] for block in blocks]) for key in blocks[0]}
    rows, block_size = batch["position_ids"].shape
    starts = batch["position_ids"].flatten().eq(0).nonzero().flatten()
    lengths = torch.nn.functional.pad(starts, (0, 1), value=rows * block_size).int()
    return {
        **batch,
        "cu_seq_lens_q": lengths,
        "cu_seq_lens_k": lengths,
        "max_length_q": block_size,
        "max_length_k": block_size,
    }


def _dtype(tokenizer: "PreTrainedTokenizerBase") -> type[np.unsignedinteger]:
    return np.uint16 if len(tokenizer) <= 2**16 else np.uint32
