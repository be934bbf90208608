"""Count the tokens of documents, as the tokenizer of a model to be trained sees them."""

from pathlib import Path

from datatrove.pipeline.tokens import TokensCounter


class CountTokens(TokensCounter):
    """Puts `token_count` into each document's metadata.

    Args:
        tokenizer_name_or_path: A tokenizer's folder (with `tokenizer.json`), or its Hub id.
    """

    def __init__(self, tokenizer_name_or_path: str):
        file = Path(tokenizer_name_or_path) / "tokenizer.json"
        # Few documents at a time: a batch is held in memory, and documents may be books.
        super().__init__(str(file) if file.is_file() else tokenizer_name_or_path, batch_size=100)
