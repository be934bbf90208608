"""From conversations and texts to token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hfchat.chat import Chat, Json
from hfchat.serving.engines.engine import PromptError
from hfchat.serving.engines.template_abilities import RefusedError, TemplateAbilities
from hfchat.token_ids import encode_conversation, prepare_to_spell

NOTHING_RENDERED = "the chat template makes nothing of this conversation"


@dataclass(frozen=True)
class EncodedChat:
    """A conversation and the beginning of its answer.

    Attributes:
        ids: Its tokens.
        may_think: Whether the chat template has a switch for reasoning, and it was not turned off.
    """

    ids: list[int]
    may_think: bool


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
        self._abilities = TemplateAbilities(tokenizer)
        prepare_to_spell(tokenizer)

    def conversation(self, chat: Chat) -> EncodedChat:
        """A conversation with its tools and the beginning of its answer, as in training (`hfchat.token_ids`).

        Raises:
            PromptError: If the chat template refuses the conversation, has no place for something in it, or makes
                nothing of it.
        """
        try:
            options = self._abilities.options(chat)
            tools = self._tools(chat)
            messages = self._abilities.messages(chat)
            ids = encode_conversation(self._tokenizer, messages, tools, options, add_generation_prompt=True)
        except RefusedError as error:
            raise PromptError(str(error), error.field) from error
        except (TemplateError, ValueError) as error:
            raise PromptError(" ".join(str(error).split())) from error
        except (TypeError, AttributeError, KeyError) as error:
            # Templates do not check what they get; without these two it is the template that is to blame.
            field = "chat_template_kwargs" if chat.template_options else "tools"
            if not chat.template_options and not chat.tools:
                raise
            raise PromptError(f"the chat template of this model cannot take them: {error}"[:300], field) from error
        if not ids:
            raise PromptError(NOTHING_RENDERED)
        # Where reasoning can be turned off and is not, the model decides itself whether it thinks.
        switch = self._abilities.switch
        return EncodedChat(self._checked(ids), switch is not None and options.get(switch) is not False)

    def _tools(self, chat: Chat) -> list[Json] | None:
        """The tools as the model has learned them; None where it is to call none."""
        if not chat.functions:
            return None
        if "tools" not in self._abilities.variables:
            raise RefusedError("the chat template of this model has no place for them", "tools")
        return chat.shown_tools

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
