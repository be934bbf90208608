"""What the context cannot hold is refused before anything is computed for it."""

from hfchat.probe.checks import afterwards_it_answers
from hfchat.probe.registry import check
from hfchat.probe.target import Target, body_of, refusal
from hfchat.probe.verdicts import FailedError, SkippedError

_WORDS = 150_000  # 750 kB, and more than the 131,072 tokens of the longest common context
_QUICK_S = 15.0
_HUGE = 100_000_000


@check({"unstreamed": False, "streamed": True})
async def a_prompt_beyond_the_context_is_refused(target: Target, stream: bool) -> str:
    """Quickly, and not cut in silence: the model would answer nonsense to half a question.

    `context_length_exceeded` of https://platform.openai.com/docs/guides/error-codes
    """
    messages = [{"role": "user", "content": "word " * _WORDS}]
    async with target.within(_QUICK_S, "no answer within {limit}"):
        response = await target.chat(messages=messages, max_tokens=1, stream=stream)
    if response.status_code == 200 and not stream:
        read = body_of(response)["usage"]["prompt_tokens"]
        if read >= _WORDS:
            raise SkippedError(f"the context is longer: {read} tokens were read")
        raise FailedError(f"the prompt was cut in silence to {read} tokens")
    return refusal(response)


@check({"unstreamed": False, "streamed": True})
async def an_answer_beyond_the_context_is_refused(target: Target, stream: bool) -> str:
    """`max_tokens` that no context has room for: the answer would be shorter than asked for, and say "length"."""
    body = target.chat_body(max_tokens=_HUGE, stream=stream)
    async with (
        target.within(_QUICK_S, "no answer within {limit}, as if it were possible"),
        target.client.stream("POST", "chat/completions", json=body) as response,
    ):
        if response.status_code == 200:
            raise FailedError(f"{_HUGE} tokens were promised: 200")
        await response.aread()
    return refusal(response, "max_tokens")


check(module=__name__)(afterwards_it_answers)
