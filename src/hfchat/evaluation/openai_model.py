"""A model behind a URL: any server that speaks the OpenAI API."""

import os
from collections.abc import Sequence
from typing import Any

from hfchat.errors import UserError
from hfchat.evaluation.model import EvaluatedModel, Loss, Prompt, Reply
from hfchat.results import COMPUTED_BY, ModelIdentity

_TIMEOUT = 600.0  # seconds for one answer
_REMOTE = "remote"


class RemoteModel(EvaluatedModel):
    """A chat model behind an OpenAI-compatible URL. The key is `OPENAI_API_KEY`, where the server wants one.

    Args:
        name: See `EvaluatedModel`.
        path: `https://host/v1#model`; without `#model` the only one that the server has.
        batch_size: Questions that are asked at a time.
    """

    gives_losses = False
    is_served = True

    def __init__(self, name: str, path: str, batch_size: int):
        super().__init__(name, path, batch_size)
        url, _, self._model_name = path.partition("#")
        self._client = openai_client(url)
        if not self._model_name:
            self._model_name = only_model(self._client, url)

    def describe(self) -> ModelIdentity:
        identity = f"remote:{self.path.partition('#')[0]}#{self._model_name}"
        return ModelIdentity(
            self.path, identity, ["unknown"], "remote", dtype=None, chat_template=None, engine=_REMOTE
        )

    def computed_by(self, needs_weights: bool) -> str:
        return f"{COMPUTED_BY}{_REMOTE}"

    def check(self, prompt: Prompt, targets: Sequence[str], max_new_tokens: int, place: str) -> int:
        if isinstance(prompt, str):
            raise UserError(f"{place}: a text to continue, but {self.path} takes only messages; leave the model out")
        return 0

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Reply]:
        def ask(prompt: Prompt) -> Reply:
            completion = chat(self._client, self._model_name, prompt, max_new_tokens, stop)
            choice = completion.choices[0]
            tokens = completion.usage.completion_tokens if completion.usage else 0
            return Reply(choice.message.content or "", tokens, choice.finish_reason != "length")

        return list(map(ask, prompts))

    def losses(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> list[Loss]:
        raise UserError(f"{self.path}: the OpenAI API gives no likelihoods of given texts; leave the model out")


def openai_client(url: str) -> Any:
    """A client of an OpenAI-compatible server, which tries again what failed for the time being."""
    import openai

    return openai.OpenAI(
        base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=_TIMEOUT, max_retries=4
    )


def only_model(client: Any, url: str) -> str:
    """The name of the model that a server has.

    Raises:
        UserError: If it cannot be reached, or has not exactly one.
    """
    import openai

    try:
        names = [model.id for model in client.with_options(timeout=10, max_retries=1).models.list()]
    except openai.OpenAIError as error:
        raise UserError(f"{url}: cannot be asked for its models: {_line(error)}") from error
    if len(names) != 1:
        raise UserError(f"{url}: has {len(names)} models; name one: {url}#{names[0] if names else 'model'}")
    return names[0]


def chat(client: Any, model: str, prompt: Prompt, max_new_tokens: int, stop: Sequence[str] = ()) -> Any:
    """One completion at temperature 0.

    Raises:
        UserError: If the server does not give one.
    """
    import openai

    options = {"stop": list(stop)} if stop else {}
    try:
        return client.chat.completions.create(
            model=model, messages=prompt, max_tokens=max_new_tokens, temperature=0, **options
        )
    except openai.OpenAIError as error:
        raise UserError(f"{client.base_url}: {model} does not answer: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:300]
