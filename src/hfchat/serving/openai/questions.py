"""From the prompt of a request to a question that an engine can be asked: encoded, guarded and checked."""

import asyncio
import logging
from dataclasses import dataclass

from hfchat.serving.engines.engine import Engine, EngineError, Prompt, PromptError, PromptTooLongError, Sampling
from hfchat.serving.http.record import RequestRecord
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.formats import Format, Source
from hfchat.serving.openai.guarding import Guarding
from hfchat.serving.openai.requests import AnswerableRequest

_LOGGER = logging.getLogger("hfchat.serving")
_MAX_TOKENS = 2**31 - 1  # of an answer, where only an upstream knows its context
# A smaller temperature is raised to this, as in vLLM (`vllm/sampling_params.py`: "may cause numerical errors").
_LEAST_TEMPERATURE = 1e-2


@dataclass
class Question:
    """A prompt that has passed all checks.

    Attributes:
        source: What it was made of, as the guards have let it through.
        prompt: As the engine made it.
        sampling: How to answer it.
        refusal: What is answered if a guard has blocked it.
        tokens: Length of the prompt, as far as it has been counted.
    """

    source: Source
    prompt: Prompt
    sampling: Sampling
    refusal: str | None
    tokens: int


def check_honoured(engine: Engine, request: AnswerableRequest) -> None:
    """Refuse a request with a field that its engine would not honour."""
    asked = {
        "logprobs": request.top_tokens is not None,
        "presence_penalty": bool(request.presence_penalty),
        "frequency_penalty": bool(request.frequency_penalty),
        "logit_bias": bool(request.logit_bias),
        "top_k": request.top_k is not None,
        "min_p": request.min_p is not None,
        "repetition_penalty": request.repetition_penalty is not None,
    }
    for field, reason in engine.cannot.items():
        if asked[field]:
            message = f"{field}: not with the engine of this server, because {reason}."
            raise ApiError(400, message, param=field, code="unsupported_field")


@dataclass(frozen=True)
class QuestionReader:
    """Makes questions of prompts.

    Attributes:
        guarding: Looks at prompts.
        max_wait_s: Seconds that a request may wait for its prompt to be encoded.
        default_max_tokens: Length of an answer whose request does not say.
    """

    guarding: Guarding
    max_wait_s: float | None
    default_max_tokens: int

    async def read(
        self, engine: Engine, request: AnswerableRequest, source: Source, format: Format, record: RequestRecord
    ) -> Question:
        """Encode and check a prompt.

        Raises:
            ApiError: If it cannot be answered. Says why not.
        """
        field = format.prompt_field
        # Before the guards, which would read all of what no context can hold.
        prompt = await _encode(engine, source, field, self.max_wait_s)
        refusal, texts = None, source.texts
        if texts is None:
            self.guarding.check_token_prompt()
        else:
            verdict = await self.guarding.check_prompt(source, record)
            refusal = verdict.message
            if verdict.texts != list(texts):
                source = source.replaced(verdict.texts)
                prompt = await _encode(engine, source, field, self.max_wait_s)
        max_tokens = _max_tokens(engine, prompt, field, request.limit, self.default_max_tokens)
        return Question(source, prompt, _sampling(engine, request, max_tokens), refusal, prompt.tokens or 0)


async def _encode(engine: Engine, source: Source, field: str, seconds: float | None) -> Prompt:
    """The prompt that an engine makes, in no more time than a request may wait."""
    try:
        async with asyncio.timeout(seconds):
            return await source.encode(engine)
    except (PromptError, EngineError) as error:
        raise as_api_error(error, field) from error
    except TimeoutError:
        message = f"The server is busy: the prompt was not read in {seconds:g} s."
        raise ApiError(503, message, code="queue_timeout", headers={"Retry-After": "10"}) from None


def _refused(error: PromptError, field: str | None) -> ApiError:
    code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else None
    return ApiError(400, f"{field}: {error}" if field else str(error), param=field, code=code)


def _max_tokens(
    engine: Engine, prompt: Prompt, prompt_field: str, limit: tuple[str, int | None], default: int
) -> int | None:
    """The length of an answer, checked against the context before anything is computed."""
    field, asked = limit
    context = engine.context_length
    if prompt.tokens is None or context is None:
        if asked is not None and asked > _MAX_TOKENS:
            message = f"{field}: at most {_MAX_TOKENS}, not {asked}."
            raise ApiError(400, message, param=field, code="context_length_exceeded")
        return asked  # the upstream checks
    room = context - prompt.tokens
    if room < 1:
        message = f"{prompt_field}: {prompt.tokens} tokens, but the context holds {context}, the answer included."
        raise ApiError(400, message, param=prompt_field, code="context_length_exceeded")
    if asked is None:
        return min(room, default)
    if asked > room:
        message = (
            f"{field}: {prompt.tokens} tokens of {prompt_field} and {asked} of the answer exceed the context of "
            f"{context}; at most {room} are left for the answer."
        )
        raise ApiError(400, message, param=field, code="context_length_exceeded")
    return asked


def _sampling(engine: Engine, request: AnswerableRequest, max_tokens: int | None) -> Sampling:
    temperature = engine.temperature if request.temperature is None else request.temperature
    if temperature is not None and temperature > 0:
        temperature = max(temperature, _LEAST_TEMPERATURE)
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=engine.top_p if request.top_p is None else request.top_p,
        top_k=None if request.top_k is None else max(request.top_k, 0),  # -1 is all for vLLM, as 0 is
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        seed=request.seed,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logprobs=request.top_tokens,
        stop=tuple(request.stops),
    )


def as_api_error(error: Exception, prompt_field: str = "prompt") -> ApiError:
    """What a client is told of an error; `prompt_field` is the field of its prompt."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptError):
        code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else None
        blamed = error.field or prompt_field
        return ApiError(400, f"{blamed}: {error}", param=blamed, code=code)
    if isinstance(error, PromptError):  # what an engine sees only when it begins
        return _refused(error, error.field)
    if isinstance(error, EngineError):
        return ApiError(500, f"The answer could not be generated: {error}", code="engine_error")
    _LOGGER.error("unexpected error in an answer", exc_info=error)
    return ApiError(500, "Something in the server went wrong; its log says what.")
