"""A corpus that no disk holds: blocks made while training, from a stream that can be resumed."""

import copy
import itertools
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch.utils.data import IterableDataset as TorchIterableDataset

from hfchat.errors import UserError
from hfchat.training.packing import encode_documents, make_block

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerBase

_BATCH = 64  # documents

# Where a stream stands: the number of its next block, how often its source has been read to its end and the state of
# that, and the tokens of documents that are in no block yet, with whether each opens one.
_Place = TypedDict("_Place", {"block": int, "pass": int, "source": Any, "tokens": list[int], "opens": list[bool]})


class StreamedDataset(TorchIterableDataset):
    """Endless blocks from a stream of documents, in its order; documents are cut where a block ends.

    Each process reads its own share of the stream, so a run is resumed with the same number of processes.

    Args:
        documents: One per row. With several processes, the share of this one.
        column: Its column of text.
        block_size: Tokens per item.
        tokenizer: Its `bos_token` (or else `eos_token`) separates documents.
    """

    def __init__(
        self, documents: "IterableDataset", column: str, block_size: int, tokenizer: "PreTrainedTokenizerBase"
    ):
        self.documents = documents
        self.column = column
        self.block_size = block_size
        # A copy, because a thread tokenizes: how `encode_documents` has special tokens split is state of a tokenizer.
        self.tokenizer = copy.deepcopy(tokenizer)
        self._trained = 0  # blocks, when it was resumed
        # Where the stream stood before each batch of documents that blocks not yet saved come from.
        self._places = deque[_Place]([{"block": 0, "pass": 0, "source": None, "tokens": [], "opens": []}])

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        place = self._places[0]
        number = place["block"]
        tokens, opens = np.array(place["tokens"], dtype=np.int64), np.array(place["opens"], dtype=bool)
        for documents, source, passes in _one_ahead(self._batches(place)):
            tokens = np.concatenate([tokens, *documents], dtype=np.int64)
            opens = np.concatenate([opens, *(np.arange(len(document)) == 0 for document in documents)])
            while len(tokens) > self.block_size:
                if number >= self._trained:
                    yield make_block(tokens[: self.block_size + 1], opens[: self.block_size + 1])
                tokens, opens = tokens[self.block_size :], opens[self.block_size :]
                number += 1
            self._places.append(
                {
                    "block": number,
                    "pass": passes,
                    "source": source,
                    "tokens": tokens.tolist(),
                    "opens": opens.tolist(),
                }
            )

    def forget(self, blocks: int) -> None:
        """Drop the places in the stream that `save` can no longer be asked for after `blocks` of its blocks."""
        while len(self._places) > 1 and self._places[1]["block"] <= blocks:
            self._places.popleft()

    def save(self, file: Path, blocks: int) -> None:
        """Write down where the stream stands when `blocks` of its blocks have been trained on, all runs together."""
        self.forget(blocks)
        file.write_text(json.dumps({**self._places[0], "trained": blocks}), encoding="utf-8")

    def resume(self, file: Path) -> None:
        """Go on where `save` was called. The cost does not depend on how far that was.

        Raises:
            UserError: If there is no such file: another number of processes wrote the checkpoint.
        """
        try:
            place = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"streaming: {file.parent} has no {file.name}; a stream goes on with as many processes as it had"
            ) from error
        self._trained = place.pop("trained")
        self._places = deque([place])

    def _batches(self, place: _Place) -> Iterator[tuple[list[np.ndarray], Any, int]]:
        """Endlessly, documents, the state of the source after them, and how often it has been read to its end."""
        for passes in itertools.count(place["pass"]):
            # A dataset of its own for each pass: one that is read again would start where it was resumed; with another
            # epoch, datasets would shuffle its files, and processes would come by each other's documents.
            documents = self.documents.select_columns([self.column])
            if passes == place["pass"] and place["source"] is not None:
                documents.load_state_dict(place["source"])
            rows = iter(documents)
            batch = [row[self.column] for row in itertools.islice(rows, _BATCH)]
            if not batch and passes > place["pass"]:
                raise UserError("streaming: no document is left to train on; lower validation_documents")
            while batch:
                yield encode_documents(batch, self.tokenizer), documents.state_dict(), passes
                batch = [row[self.column] for row in itertools.islice(rows, _BATCH)]


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items; a thread makes the next one meanwhile, so that reading and tokenizing need not wait for a step."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        upcoming = pool.submit(next, items)
        while True:
            item = upcoming.result()
            upcoming = pool.submit(next, items)
            yield item
