"""`POST /v1/chat/completions` (https://platform.openai.com/docs/api-reference/chat)."""

from collections.abc import Sequence

from starlette.responses import Response

from hfchat.serving.engines.engine import Logprob, TokenLogprobs
from hfchat.serving.openai.generation import Generation, Part
from hfchat.serving.openai.protocol import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    ContentLogprob,
    Delta,
    TopLogprob,
    Usage,
)


class ChatHandler:
    """Turns a request into its answer, or raises the `ApiError` that says why not."""

    def __init__(self, generation: Generation, default_max_tokens: int):
        self._generation = generation
        self._default_max_tokens = default_max_tokens

    async def __call__(self, request: ChatCompletionRequest) -> Response:
        generation = self._generation
        version, reservation = generation.admit(request, answers=request.n or 1)
        generation.guarding.check_logprobs(bool(request.logprobs))
        messages = [message.plain() for message in request.messages]
        texts = [message["content"] for message in messages]
        # Before the guards, which would read all of what no context can hold.
        prompt = await generation.encode("messages", version.engine.encode(messages))
        verdict = await generation.guarding.check_prompt(texts)
        if verdict.texts != texts:
            messages = [{**message, "content": text} for message, text in zip(messages, verdict.texts, strict=True)]
            prompt = await generation.encode("messages", version.engine.encode(messages))
        max_tokens = generation.max_tokens(version.engine, prompt, "messages", request.limit, self._default_max_tokens)
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        sampling = generation.sampling(version.engine, request, max_tokens, logprobs)
        prompts = [(prompt, sampling, verdict.message)]
        return generation.answer(version, reservation, request, prompts, _ChatFormat(logprobs is not None), messages)


class _ChatFormat:
    id_prefix = "chatcmpl"

    def __init__(self, logprobs: bool):
        self._wants_logprobs = logprobs

    def whole(self, identity: dict, answers: Sequence[Sequence[Part]], usage: Usage) -> ChatCompletion:
        choices = [
            Choice(
                index=index,
                message=AnswerMessage(content="".join(part.text for part in parts)),
                logprobs=self._logprobs([token for part in parts for _, token in part.logprobs]),
                finish_reason=parts[-1].finish_reason,
            )
            for index, parts in enumerate(answers)
        ]
        return ChatCompletion(**identity, choices=choices, usage=usage)

    def chunks(self, identity: dict, part: Part, first: bool) -> list[ChatCompletionChunk]:
        choices = []
        if first:
            choices.append(ChunkChoice(index=part.index, delta=Delta(role="assistant", content="")))
        if part.text or part.logprobs:
            logprobs = self._logprobs([token for _, token in part.logprobs])
            choices.append(ChunkChoice(index=part.index, delta=Delta(content=part.text), logprobs=logprobs))
        if part.finish_reason is not None:
            choices.append(ChunkChoice(index=part.index, delta=Delta(), finish_reason=part.finish_reason))
        return [ChatCompletionChunk(**identity, choices=[choice]) for choice in choices]

    def usage(self, identity: dict, usage: Usage) -> ChatCompletionChunk:
        return ChatCompletionChunk(**identity, choices=[], usage=usage)

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> ChoiceLogprobs | None:
        if not self._wants_logprobs:
            return None
        content = [
            ContentLogprob(**_fields(token.chosen), top_logprobs=[TopLogprob(**_fields(top)) for top in token.top])
            for token in tokens
        ]
        return ChoiceLogprobs(content=content)


def _fields(token: Logprob) -> dict:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes)}
