"""From conversations to token ids, so that nothing a person writes can end their turn or begin another one's."""

import copy
import re
from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hfchat.serving.engine import PromptError

NOTHING_RENDERED = "the chat template makes nothing of this conversation"
_PRIVATE_USE = range(0xE000, 0xF900)  # code points that no text should have (Unicode, 23.5)


class PromptEncoder:
    """Encodes prompts for one model; not to be used by two threads at a time.

    A conversation is encoded exactly as it was for the training, except where a message contains the text of a special
    token: that becomes ordinary tokens that spell it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int):
        """
        Args:
            tokenizer: A fast tokenizer with a chat template.
            vocabulary: Number of embeddings of the model.
        """
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = sorted(special, key=len, reverse=True)  # so that the longest of two alternatives is found
        self._pattern = re.compile("|".join(map(re.escape, self._special)))
        self._spelling = copy.deepcopy(tokenizer.backend_tokenizer)
        self._spelling.encode_special_tokens = True  # as ordinary text, says tokenizers

    def conversation(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The ids of a conversation and the beginning of its answer.

        Raises:
            PromptError: If the chat template refuses the conversation, or makes nothing of it.
        """
        ids = self._conversation(messages)
        if not ids:
            raise PromptError(NOTHING_RENDERED)
        return self._checked(ids)

    def _conversation(self, messages: Sequence[dict[str, str]]) -> list[int]:
        contents = "".join(message["content"] for message in messages)
        if not self._special or not self._pattern.search(contents):
            return self._render(messages, tokenize=True)
        # What people wrote goes through the template as stand-ins, so the special tokens that it has then are its own.
        mark = next((chr(code) for code in _PRIVATE_USE if chr(code) not in contents), None)
        if mark is None:
            raise PromptError("a special token among too many private characters")
        hidden = [
            message | {"content": self._pattern.sub(lambda found: self._stand_in(found[0], mark), message["content"])}
            for message in messages
        ]
        rendered = self._render(hidden, tokenize=False)
        ids, end = [], 0
        for found in self._pattern.finditer(rendered):
            ids += self._spell(rendered[end : found.start()], mark)
            ids.append(self._tokenizer.convert_tokens_to_ids(found[0]))
            end = found.end()
        return ids + self._spell(rendered[end:], mark)

    def text(self, text: str | Sequence[int]) -> list[int]:
        """The ids of a prompt without a template, or the same ids once they are checked.

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

    def _render(self, messages: Sequence[dict[str, str]], tokenize: bool) -> list[int] | str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=tokenize, return_dict=False
            )
        except (TemplateError, ValueError) as error:
            raise PromptError(" ".join(str(error).split())) from error

    def _stand_in(self, special: str, mark: str) -> str:
        return f"{mark}{self._special.index(special)}{mark}"

    def _spell(self, text: str, mark: str) -> list[int]:
        text = re.sub(f"{mark}(\\d+){mark}", lambda found: self._special[int(found[1])], text)
        return self._spelling.encode(text, add_special_tokens=False).ids
