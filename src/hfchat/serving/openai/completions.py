"""`POST /v1/completions`: a prompt without a template (https://platform.openai.com/docs/api-reference/completions).

A client of this endpoint writes the whole prompt, so special tokens in it are read as such; in chats they are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from hfchat.serving.engines.engine import Engine, Prompt
from hfchat.serving.openai.events import Events
from hfchat.serving.openai.formats import Identity, Part, tokens_of
from hfchat.serving.openai.protocol import Completion, CompletionChoice, CompletionLogprobs, Usage


@dataclass(frozen=True)
class PlainPrompt:
    """A `Source` (see `hfchat.serving.openai.formats`) that is a prompt already: a text, or the ids of its tokens."""

    prompt: str | list[int]
    chat = None
    names = ()

    @property
    def texts(self) -> list[str] | None:
        return [self.prompt] if isinstance(self.prompt, str) else None

    def replaced(self, texts: Sequence[str]) -> Self:
        return type(self)(texts[0])

    async def encode(self, engine: Engine) -> Prompt:
        return await engine.encode_text(self.prompt)


class CompletionFormat:
    """A `Format` (see `hfchat.serving.openai.formats`)."""

    id_prefix = "cmpl"
    prompt_field = "prompt"

    def __init__(self, wants_logprobs: bool):
        self._wants_logprobs = wants_logprobs

    def whole(self, identity: Identity, answers: Sequence[Sequence[Part]], usage: Usage) -> Completion:
        choices = [self._choice(parts) for parts in answers]
        return Completion(**identity, choices=choices, usage=usage)

    def events(self, identity: Identity, include_usage: bool) -> Events:
        return Events(self, identity, include_usage)

    def chunks(self, identity: Identity, part: Part, first: bool) -> list[Completion]:
        return [] if part.is_empty else [Completion(**identity, choices=[self._choice([part])])]

    def usage(self, identity: Identity, usage: Usage) -> Completion:
        return Completion(**identity, choices=[], usage=usage)

    def _choice(self, parts: Sequence[Part]) -> CompletionChoice:
        logprobs = None
        if self._wants_logprobs:
            tokens = tokens_of(parts)
            logprobs = CompletionLogprobs(
                tokens=[token.chosen.token for _, token in tokens],
                token_logprobs=[token.chosen.logprob for _, token in tokens],
                top_logprobs=[{top.token: top.logprob for top in token.top} for _, token in tokens],
                text_offset=[start for start, _ in tokens],
            )
        return CompletionChoice(
            index=parts[0].index,
            text="".join(part.text for part in parts),
            logprobs=logprobs,
            finish_reason=parts[-1].finish_reason,
        )
