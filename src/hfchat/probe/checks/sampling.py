"""Every field of a request is honoured, or refused with a 4xx that names it; no field is ignored.

https://platform.openai.com/docs/api-reference/chat/create
"""

import json
import re
from collections.abc import Mapping

from hfchat.probe.registry import check
from hfchat.probe.sse import parse_events
from hfchat.probe.target import Target, body_of, finish_reason_of, refusal, refused_by_choice, text_of
from hfchat.probe.verdicts import FailedError, SkippedError

_TOKENS = 48
_STOP = 8  # characters: more than most tokens have
_NEVER = "never said by a model"
_BESIDE = 100  # tokens of another client's answer


async def _greedy(target: Target) -> str:
    return text_of(await target.answer(max_tokens=_TOKENS))


@check({"max_tokens": "max_tokens", "max_completion_tokens": "max_completion_tokens"})
async def an_answer_has_the_asked_length(target: Target, field: str) -> str:
    """Exactly as many tokens and `finish_reason` "length", or fewer and another `finish_reason`."""
    response = await target.chat(**{"max_tokens": None, field: 5})
    if field == "max_completion_tokens":
        refused_by_choice(response, field)
    body = body_of(response)
    tokens, reason = body["usage"]["completion_tokens"], finish_reason_of(body)
    if tokens > 5 or (reason == "length") != (tokens == 5):
        raise FailedError(f"{tokens} tokens of 5, finish_reason {reason}")
    return f"{tokens} tokens, {reason}"


async def _stop(target: Target) -> tuple[str, str]:
    """Characters from the middle of the answer to the usual question, and the answer up to them."""
    text = await target.once(_greedy)
    clean = max(re.findall("[^\N{REPLACEMENT CHARACTER}]+", text), key=len, default="")
    if len(clean) < 2 * _STOP:
        raise SkippedError(f"the answer is too short to be stopped: {text!r}")
    begin = text.find(clean) + len(clean) // 2
    stop = text[begin : begin + _STOP]
    return stop, text[: text.find(stop)]


def _is_stopped(text: str, reason: str, expected: str) -> str:
    if (text, reason) != (expected, "stop"):
        raise FailedError(f"{text!r} and finish_reason {reason}, not {expected!r} and stop")
    return f"{len(expected)} characters before it, stop"


@check()
async def a_stop_string_ends_the_answer(target: Target) -> str:
    """`stop`: the answer is the text before it. Here it is spread over several tokens."""
    stop, expected = await target.once(_stop)
    body = await target.answer(max_tokens=_TOKENS, stop=stop)
    return _is_stopped(text_of(body), finish_reason_of(body), expected)


@check()
async def a_stop_string_never_leaks_into_a_stream(target: Target) -> str:
    """Text that may be the beginning of it is held back until that is known."""
    stop, expected = await target.once(_stop)
    stream = await target.stream(max_tokens=_TOKENS, stop=[stop])
    return _is_stopped(stream.text(), "".join(stream.finish_reasons()), expected)


@check()
async def the_first_of_several_stop_strings_counts(target: Target) -> str:
    """There may be up to four of them."""
    stop, expected = await target.once(_stop)
    later = (await target.once(_greedy))[len(expected) + _STOP :][:_STOP]
    body = await target.answer(max_tokens=_TOKENS, stop=[_NEVER, later or _NEVER, stop])
    return _is_stopped(text_of(body), finish_reason_of(body), expected)


@check()
async def an_end_comes_with_other_stop_strings_too(target: Target) -> str:
    """A stop string that never comes changes nothing."""
    body = await target.answer(max_tokens=_TOKENS, stop=[_NEVER])
    if text_of(body) != await target.once(_greedy):
        raise FailedError(f"{text_of(body)!r}, but without it {await target.once(_greedy)!r}")
    return finish_reason_of(body)


@check()
async def temperature_0_repeats(target: Target) -> str:
    """The most likely token is taken each time, so the answer is the same each time."""
    first, second = await target.once(_greedy), text_of(await target.answer(max_tokens=_TOKENS))
    if first != second:
        raise FailedError(f"{first!r}, then {second!r}")
    return "twice the same"


@check()
async def temperature_2_does_not_repeat(target: Target) -> str:
    """A temperature that is ignored gives the same answer each time."""
    texts = {text_of(await target.answer(temperature=2)) for _ in range(3)}
    if len(texts) == 1:
        raise FailedError(f"three times {texts.pop()!r}")
    return f"{len(texts)} of 3 answers differ"


@check()
async def a_seed_repeats(target: Target) -> str:
    """`seed`: the same answer for the same seed, another one for another seed. Or it is refused by name."""
    texts = []
    for seed in (7, 7, 8, 9):
        response = await target.chat(temperature=1.5, seed=seed)
        refused_by_choice(response, "seed")
        texts.append(text_of(body_of(response)))
    if texts[0] != texts[1]:
        raise FailedError(f"with the same seed {texts[0]!r}, then {texts[1]!r}")
    if len(set(texts)) == 1:
        raise FailedError(f"with three seeds the same: {texts[0]!r}")
    return f"twice the same, {len(set(texts))} of 3 seeds differ"


@check()
async def several_answers_are_given(target: Target) -> str:
    """`n`: so many choices, by index. Or it is refused by name."""
    response = await target.chat(n=2, temperature=1, max_tokens=8)
    refused_by_choice(response, "n")
    indexes = [choice["index"] for choice in body_of(response)["choices"]]
    if indexes != [0, 1]:
        raise FailedError(f"choices {indexes}")
    return "choices 0 and 1"


@check()
async def logprobs_are_of_the_answer(target: Target) -> str:
    """`logprobs`: the tokens' bytes join to the text, and no value is above 0. Or it is refused by name."""
    response = await target.chat(logprobs=True, top_logprobs=2, max_tokens=8)
    refused_by_choice(response, "logprobs")
    body = body_of(response)
    entries = (body["choices"][0].get("logprobs") or {}).get("content")
    if not entries:
        raise FailedError("ignored: the answer has none")
    joined = b"".join(bytes(entry["bytes"] or ()) for entry in entries).decode(errors="replace")
    if joined.partition(text_of(body))[1] != text_of(body):
        raise FailedError(f"their tokens are {joined!r}, but the text is {text_of(body)!r}")
    if any(entry["logprob"] > 0 or len(entry["top_logprobs"]) != 2 for entry in entries):
        raise FailedError("a logprob is more than 0, or not as many alternatives as asked for")
    return f"{len(entries)} tokens, {entries[0]['logprob']:.2f} the first"


_OUT_OF_RANGE: Mapping[str, Mapping[str, object]] = {
    "temperature -1": {"temperature": -1},
    "temperature 3": {"temperature": 3},
    "temperature a text": {"temperature": "hot"},
    "top_p -1": {"top_p": -1},
    "top_p 2": {"top_p": 2},
    "n 0": {"n": 0},
    "n -1": {"n": -1},
    "n 1000": {"n": 1000},
    "n 100000": {"n": 100_000},
    "n 2^70": {"n": 2**70},
    "max_tokens -1": {"max_tokens": -1},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens 1.5": {"max_tokens": 1.5},
    "max_tokens a text": {"max_tokens": "many"},
    "stop of 100": {"stop": [f"stop {i}" for i in range(100)]},
    "stop a number": {"stop": 7},
    "presence_penalty 3": {"presence_penalty": 3},
    "frequency_penalty -3": {"frequency_penalty": -3},
    "seed a text": {"seed": "lucky"},
    "seed 2^70": {"seed": 2**70},
    "top_logprobs 1000": {"logprobs": True, "top_logprobs": 1000},
    "logit_bias a list": {"logit_bias": [1, 2]},
    "response_format unknown": {"response_format": {"type": "poem"}},
    "an unknown field": {"hfchat_probe_unknown": 1},
}


@check(_OUT_OF_RANGE)
async def a_value_out_of_range_is_refused(target: Target, fields: Mapping[str, object]) -> str:
    """With a 4xx that names the field: an answer would belong to another request than the client's."""
    return refusal(await target.chat(**fields), list(fields)[-1])


_EXTREMES: Mapping[str, Mapping[str, object]] = {
    "temperature 1e-10": {"temperature": 1e-10},
    "temperature 1e-39": {"temperature": 1e-39},
    "temperature 5e-324": {"temperature": 5e-324},
    "top_p 1e-39": {"temperature": 1, "top_p": 1e-39},
    "top_p 0": {"temperature": 1, "top_p": 0},
    "all penalties": {"temperature": 2, "presence_penalty": 2, "frequency_penalty": 2},
    "the largest seed, twice": {"temperature": 1, "n": 2, "seed": 2**63 - 1},
}


@check(_EXTREMES)
async def an_extreme_value_ends_nobody_elses_answer(target: Target, fields: Mapping[str, object]) -> str:
    """It is in range, so it is honoured, or refused by name. Answers are computed together: a logit that is divided by
    next to nothing is not a number any more, and an error in one row of a batch can end all of them.
    """
    async with target.streaming(max_tokens=_BESIDE) as beside:
        parts = beside.aiter_bytes()
        received = await anext(parts)  # it has begun
        response = await target.chat(**{"max_tokens": 4, **fields})
        received += b"".join([part async for part in parts])
    *events, last = parse_events(received)
    if last != "[DONE]" or any("error" in json.loads(event) for event in events):
        raise FailedError(f"the answer beside it ended with {last[:80]!r}")
    if response.status_code != 200:
        return f"{refusal(response)}; the answer beside it came to its end"
    return "answered, and so was the one beside it"
