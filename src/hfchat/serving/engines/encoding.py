"""From conversations and texts to token ids."""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hfchat.serving.engines.engine import PromptError
from hfchat.token_ids import encode_conversation, prepare_to_spell

NOTHING_RENDERED = "the chat template makes nothing of this conversation"


class PromptEncoder:
    """Encodes prompts for one model; not to be used by two threads at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int):
        """
        Args:
            tokenizer: A fast tokenizer with a chat template.
            vocabulary: Number of embeddings of the model.
        """
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        prepare_to_spell(tokenizer)

    def conversation(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The ids of a conversation and the beginning of its answer, as in training (`hfchat.token_ids`).

        Raises:
            PromptError: If the chat template refuses the conversation, or makes nothing of it.
        """
        try:
            ids = encode_conversation(self._tokenizer, messages, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            raise PromptError(" ".join(str(error).split())) from error
        if not ids:
            raise PromptError(NOTHING_RENDERED)
        return self._checked(ids)

    def text(self, text: str | Sequence[int]) -> list[int]:
        """The ids of a prompt without a template; a prompt that is ids already is checked.

        Raises:
            PromptError: If it is empty, or has an id that is not in the vocabulary.
        """
        ids = self._checked(self._tokenizer.encode(text) if isinstance(text, str) else list(text))
        if not ids:
            raise PromptError("it is empty")
        return ids

    def _checked(self, ids: list[int]) -> list[int]:
        unknown = next((id for id in ids if not 0 <= id < self._vocabulary), None)
        if unknown is not None:
            raise PromptError(f"the vocabulary has no token {unknown}, only 0 to {self._vocabulary - 1}")
        return ids
