"""`POST /v1/completions`: a prompt without a template (https://platform.openai.com/docs/api-reference/completions).

A client of this endpoint writes the whole prompt, so special tokens in it are read as such; in chats they are not.
"""

from collections.abc import Sequence

from starlette.responses import Response

from hfchat.serving.openai.generation import Generation, Part
from hfchat.serving.openai.protocol import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Usage,
)


class CompletionHandler:
    """Turns a request into its answers, or raises the `ApiError` that says why not."""

    def __init__(self, generation: Generation, default_max_tokens: int):
        self._generation = generation
        self._default_max_tokens = default_max_tokens  # for a null; OpenAI's 16 is for no word of it

    async def __call__(self, request: CompletionRequest) -> Response:
        generation = self._generation
        answers = len(request.prompts) * (request.n or 1)
        version, reservation = generation.admit(request, answers)
        generation.guarding.check_logprobs(request.logprobs is not None)
        prompts = []
        for text in request.prompts:
            # Before the guards, which would read all of what no context can hold.
            prompt = await generation.encode("prompt", version.engine.encode_text(text))
            guarded, message = await self._guarded(text)
            if guarded != text:
                prompt = await generation.encode("prompt", version.engine.encode_text(guarded))
            limit = "max_tokens", request.max_tokens
            max_tokens = generation.max_tokens(version.engine, prompt, "prompt", limit, self._default_max_tokens)
            sampling = generation.sampling(version.engine, request, max_tokens, request.logprobs)
            prompts.append((prompt, sampling, message))
        return generation.answer(
            version, reservation, request, prompts, _CompletionFormat(request.logprobs is not None)
        )

    async def _guarded(self, prompt: str | list[int]) -> tuple[str | list[int], str | None]:
        """The prompt as the guards let it through, and the message in place of an answer if one has blocked it."""
        guarding = self._generation.guarding
        if not isinstance(prompt, str):
            guarding.check_token_prompt()
            return prompt, None
        verdict = await guarding.check_prompt([prompt])
        return verdict.texts[0], verdict.message


class _CompletionFormat:
    id_prefix = "cmpl"

    def __init__(self, logprobs: bool):
        self._wants_logprobs = logprobs

    def whole(self, identity: dict, answers: Sequence[Sequence[Part]], usage: Usage) -> Completion:
        choices = [self._choice(parts) for parts in answers]
        return Completion(**identity, choices=choices, usage=usage)

    def chunks(self, identity: dict, part: Part, first: bool) -> list[Completion]:
        if not (part.text or part.logprobs or part.finish_reason):
            return []
        return [Completion(**identity, choices=[self._choice([part])])]

    def usage(self, identity: dict, usage: Usage) -> Completion:
        return Completion(**identity, choices=[], usage=usage)

    def _choice(self, parts: Sequence[Part]) -> CompletionChoice:
        logprobs = None
        if self._wants_logprobs:
            tokens = [entry for part in parts for entry in part.logprobs]
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
