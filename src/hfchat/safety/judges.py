"""Judges of whole texts: a `text-classification` model, or a moderation endpoint."""

import asyncio
import hashlib
import logging
import os
from collections.abc import Sequence
from itertools import chain, islice
from typing import TypedDict

import httpx

from hfchat.errors import UserError
from hfchat.models import check_kernels
from hfchat.safety.streams import Judge

_LOGGER = logging.getLogger("hfchat.safety")


class ModerationResult(TypedDict):
    """What a moderation endpoint says about one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]


class GuardError(Exception):
    """A guard cannot tell whether a text is harmless. The text must not be taken for harmless."""


class Classifier:
    """A sequence-classification model, which flags a text by the probability of one of its labels.

    A text longer than the model's context is judged in windows that overlap by a quarter, and is as bad as the worst
    of them: nothing is hidden behind 512 tokens.

    Args:
        model: Folder or Hub id, such as `unitary/toxic-bert`.
        label: One of its labels.
        threshold: Flags from this probability, in (0, 1].

    Raises:
        ValueError: If there is no such model, or it has no such label. Names the key.
    """

    def __init__(self, model: str, label: str, threshold: float):
        from transformers import AutoConfig, pipeline

        try:
            check_kernels(model)
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            labels = list(config.id2label.values())
            if label not in labels:
                raise ValueError(f"label: {model} has no label {label!r}; it has {', '.join(labels)}")
            self._pipeline = pipeline(
                "text-classification", model=model, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        except UserError as error:
            raise ValueError(f"model: {error}") from error
        except OSError as error:
            raise ValueError(f"model: {model} cannot be loaded: {str(error).splitlines()[0]}") from error
        self._label = label
        self._threshold = threshold
        # RoBERTa's positions begin after that of the padding, so two of them are not for tokens.
        positions = getattr(config, "max_position_embeddings", None) or 514
        self._window = min(self._pipeline.tokenizer.model_max_length, positions - 2)
        self._busy = asyncio.Lock()

    async def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        async with self._busy:  # one at a time: the model takes all cores anyway
            scores = await asyncio.to_thread(self.scores, texts)
        return [[self._label] if score >= self._threshold else [] for score in scores]

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The probability of the label for each text, of its worst window."""
        windows = [self._windows(text) for text in texts]
        judged = iter(self._pipeline(list(chain.from_iterable(windows)), top_k=None, truncation=True))
        scores = []
        for of_text in windows:
            found = [{one["label"]: one["score"] for one in labels} for labels in islice(judged, len(of_text))]
            scores.append(max((labels[self._label] for labels in found), default=0.0))
        return scores

    def _windows(self, text: str) -> list[str]:
        encoded = self._pipeline.tokenizer(
            text,
            truncation=True,
            max_length=self._window,
            stride=self._window // 4,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        # Special tokens have the offsets (0, 0).
        spans = [[offsets for offsets in window if offsets[1]] for window in encoded["offset_mapping"]]
        return [text[span[0][0] : span[-1][1]] for span in spans if span]


class Moderation:
    """An endpoint with OpenAI's shape (https://platform.openai.com/docs/api-reference/moderations).

    Args:
        url: Its base, as an OpenAI client takes it: `http://localhost:9000/v1`, to which `/moderations` is added.
        model: Which model to ask for, if the endpoint has several.
        categories: Only these count; None takes the endpoint's own `flagged`.
        threshold: A category counts from this score; None takes the endpoint's own decision.
        api_key: Sent as a bearer token.
        timeout_s: Seconds that a response may take.
        transport: Transport of the HTTP client, for tests.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        categories: Sequence[str] | None = None,
        threshold: float | None = None,
        api_key: str | None = None,
        timeout_s: float = 10,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self._url = url.rstrip("/") + "/moderations"
        self._body = {"model": model} if model else {}
        self._categories = categories
        self._threshold = threshold
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout_s, transport=transport)

    async def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """The categories of each text.

        Raises:
            GuardError: If the endpoint fails.
        """
        try:
            response = await self._client.post(self._url, json={"input": list(texts), **self._body})
            response.raise_for_status()
            results = response.json()["results"]
            return [self._found(result) for _, result in zip(texts, results, strict=True)]
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise GuardError(f"the moderation endpoint gave no verdict ({type(error).__name__})") from error

    async def close(self) -> None:
        await self._client.aclose()

    def _found(self, result: ModerationResult) -> list[str]:
        if self._threshold is not None:
            found = [name for name, score in result["category_scores"].items() if score >= self._threshold]
        else:
            found = [name for name, flagged in result["categories"].items() if flagged]
        if self._categories is not None:
            return [name for name in found if name in self._categories]
        if self._threshold is None and result["flagged"] and not found:
            return ["flagged"]
        return found


class Lenient:
    """A judge that lets texts pass, with a warning in the log, while another one cannot decide."""

    def __init__(self, judge: Judge):
        self._judge = judge

    async def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        try:
            return await self._judge(texts)
        except GuardError as error:
            _LOGGER.warning("a text passes without a verdict: %s (%s)", error, error.__cause__)
            return [[] for _ in texts]


class Remembering:
    """A judge that does not ask again about texts it knows: with each request, a whole conversation comes again.

    Args:
        judge: Asked about the others. Its verdicts must not depend on the texts beside a text.
        size: How many verdicts to keep, those of the latest texts. Only hashes of the texts are kept.
    """

    def __init__(self, judge: Judge, size: int = 4096):
        self._judge = judge
        self._size = size
        self._known: dict[bytes, list[str]] = {}

    async def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        known = {key: self._known.pop(key) for key in dict.fromkeys(keys) if key in self._known}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            known |= zip(new, await self._judge(list(new.values())), strict=True)
        self._known |= known
        while len(self._known) > self._size:
            del self._known[next(iter(self._known))]
        return [known[key] for key in keys]


def key_from_environment(variable: str | None) -> str | None:
    """An API key, which does not belong in a file.

    Raises:
        ValueError: If the variable is not set.
    """
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise ValueError(f"api_key_env: the environment has no {variable}")
    return key
